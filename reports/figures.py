"""Draw the figures of the reports as SVG."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from reports.record.histograms import Histogram

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# INK and FAINT follow the page in light and dark (`reports.inline_svg`).
DATA, CONTROL, LINE, INK, FAINT = "#2b6777", "#c9b79c", "#a3333d", "#333a40", "#d9dcdf"
NULL = "#d08c3f"  # control captions
POINTS = 72  # per inch, as in SVG
STRIP_BASE = 0.66  # where the axis of a strip is, from the top
AXES = {
    "scores": ("Screening score", "Captions (logarithmic)"),
    "similarities": ("Similarity to the nearest training image", "Share of captions"),
}
# Inches around the axes of a fixed layout, per character of the vertical axis, and per line of the legend.
LEFT, RIGHT, BOTTOM, TOP, CHARACTER, LINE_HEIGHT = 0.4, 0.1, 0.55, 0.1, 0.08, 0.2
METHODS = {
    "none": "#333a40",
    "rescale": "#2b6777",
    "padding": "#a3333d",
    "attenuate": "#d08c3f",
    "stabilise": "#5b7f3b",
    "delayed_guidance": "#6a4c93",
    "dilute": "#1f8a9e",
    "weak_guidance": "#8c6d5a",
}
STYLE: Any = {
    "font.size": 10.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "svg.hashsalt": "crossaudit",
}


def histogram(name: str, found: Histogram) -> str:
    """Draw the histogram of `scores` or `similarities` of a record as SVG, with its cut."""
    paint = {"scores": _scores, "similarities": _similarities}[name]
    return _draw(*AXES[name], paint, found, size=(5.4, 3.1), any_script=True, fixed=True)


def tradeoff(settings: Sequence[Mapping[str, Any]]) -> str:
    """Draw the share of remaining copies against fidelity: one mark per mitigation setting, one colour per method.

    Each mark is labelled with its number in `settings`. A setting has `method`, `share_above` with `share_above_low`
    and `share_above_high`, and `ordinary_clip`.
    """
    return _draw(
        "CLIP score of ordinary captions",
        "Confirmed captions still copied",
        _tradeoff,
        settings,
        size=(6.4, 3.6),
        any_script=True,
        fixed=True,
    )


def data_uri(svg: str) -> str:
    """Return an SVG as a data URI."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _draw(
    x: str,
    y: str,
    paint: Any,
    *data: Any,
    size: tuple[float, float] = (4.6, 3.2),
    any_script: bool = False,
    fixed: bool = False,
) -> str:
    """Draw a figure. See `_figure` for `any_script`.

    With `fixed`, the room for labels follows from their number of characters. Without, they are drawn to be measured,
    which takes longer than the rest.
    """
    layout = None if fixed else "constrained"
    with _figure(any_script, figsize=size, layout=layout) as figure, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        axes = figure.subplots()
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        paint(axes, *data)
        labels = axes.get_legend_handles_labels()[1]
        if labels:
            figure.legend(loc="outside upper left", fontsize=9, ncols=2)
        if fixed:
            width, height = size
            left = LEFT + CHARACTER * max(len(label.get_text()) for label in axes.get_yticklabels())
            top = TOP + LINE_HEIGHT * math.ceil(len(labels) / 2)
            figure.subplots_adjust(left / width, BOTTOM / height, 1 - RIGHT / width, 1 - top / height)
        return _svg(figure)


@contextmanager
def _figure(any_script: bool, **options: Any) -> Iterator[Figure]:
    """Provide a figure in our style. With `any_script`, text stays text, and the reader's fonts draw every script."""
    import matplotlib  # takes longer to import than a page without figures needs in all
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE | ({"svg.fonttype": "none"} if any_script else {})):
        yield Figure(**options)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _scores(axes: Any, found: Histogram) -> None:
    everyone, control, confirmed = (np.array(found.counts[name]) for name in ("captions", "control", "confirmed"))
    axes.stairs(everyone, found.edges, fill=True, color=DATA, label=f"{everyone.sum():,} audited captions")
    if confirmed.any():
        label = f"{confirmed.sum():,} of them confirmed as copies"
        axes.stairs(confirmed, found.edges, fill=True, color=LINE, label=label)
    if control.any():
        expected = control * everyone.sum() / control.sum()
        label = f"{control.sum():,} control captions, scaled"
        axes.stairs(expected, found.edges, color=NULL, linewidth=1.8, label=label)
    if found.cut is not None:
        axes.axvline(found.cut, color=INK, linewidth=1.2, linestyle="--", label="lowest score in the budget")
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set_ylim(bottom=0.6)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _similarities(axes: Any, found: Histogram) -> None:
    for name, sign, colour in (("generated", 1, DATA), ("control", -1, NULL)):
        counts = np.array(found.counts[name])
        if counts.any():
            label = f"{counts.sum():,} {name} captions"
            axes.stairs(sign * counts / counts.sum(), found.edges, fill=True, color=colour, label=label)
    axes.axhline(0, color=INK, linewidth=0.6)
    if found.cut is not None:
        axes.axvline(found.cut, color=INK, linewidth=1.2, linestyle="--", label=f"threshold {found.cut:.2f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * abs(value):.0f} %")


def strip(name: str, found: Histogram) -> tuple[str, Callable[[float], float], tuple[float, float]]:
    """Draw a small histogram of the control captions over the range of all captions, with its cut.

    Returns:
        The figure as SVG; a function that returns the horizontal position of a value in it; and its width and height.
        The axis is at the share STRIP_BASE of the height.
    """
    size = (3.4, 0.62)
    with _figure(any_script=True, figsize=size, dpi=POINTS) as figure:
        axes = figure.add_axes((0.03, 1 - STRIP_BASE, 0.94, STRIP_BASE))
        axes.stairs(found.counts["control"], found.edges, fill=True, color=NULL)
        if found.cut is not None:
            axes.axvline(found.cut, color=INK, linewidth=1, linestyle="--")
        axes.set_xlim(found.edges[0], found.edges[-1])
        axes.spines["left"].set_visible(False)
        axes.set_yticks([])
        axes.tick_params(labelsize=9)
        svg = _svg(figure)
        left, scale = axes.transData.transform((0.0, 0.0))[0], axes.transData.transform((1.0, 0.0))[0]
    return svg, lambda value: left + (scale - left) * value, (size[0] * POINTS, size[1] * POINTS)


def token_attention(shares: Sequence[float]) -> str:
    """Draw the attention to each token of a prompt, by position; position 0 is the start of the prompt."""
    return _draw(
        "Position of the token", "Attention", _token_attention, shares, size=(4.6, 1.8), any_script=True, fixed=True
    )


def _token_attention(axes: Any, shares: Sequence[float]) -> None:
    axes.bar(range(len(shares)), shares, color=DATA, width=0.8)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


def _tradeoff(axes: Any, settings: Sequence[Mapping[str, Any]]) -> None:
    numbered = list(enumerate(settings, 1))
    for method, colour in METHODS.items():
        points = [(number, point) for number, point in numbered if point["method"] == method]
        x, y, low, high = (
            [point[name] for _, point in points]
            for name in ("ordinary_clip", "share_above", "share_above_low", "share_above_high")
        )
        if points:
            plain = method == "none"
            axes.vlines(x, low, high, color=colour, alpha=0.25, linewidth=1)
            label = "no mitigation" if plain else method
            axes.plot(x, y, marker="D" if plain else "o", markersize=5, color=colour, linestyle="", label=label)
        for number, point in points:
            where = (point["ordinary_clip"], point["share_above"])
            axes.annotate(str(number), where, (5, 4), textcoords="offset points", fontsize=8.5, color=colour)
    axes.set_ylim(-0.04, 1.04)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


def attention(tokens: Sequence[str], attention_PT: np.ndarray) -> str:
    """Draw a heat map of the attention to each token in each step, [tokens, steps]."""
    return _draw(
        "Step", "", _attention, tokens, attention_PT, size=(7.2, 0.6 + 0.26 * max(4, len(tokens))), any_script=True
    )


def entropies(entropy_T: np.ndarray, band_T2: np.ndarray | None, control_captions: int) -> str:
    """Draw the entropy of the attention in each step.

    Args:
        entropy_T: The entropy per step, in nats, [steps].
        band_T2: The range of the control captions per step, [steps, 2], or None.
        control_captions: The number of control captions behind the range.

    Returns:
        The figure as SVG.
    """
    return _draw("Step", "Entropy of attention (nats)", _entropies, entropy_T, band_T2, control_captions)


def falls(tokens: Sequence[str], fall: Sequence[float]) -> str:
    """Draw by how much the score drops without each token, in the given order from top to bottom."""
    return _draw(
        "Drop in score without the token",
        "",
        _falls,
        tokens,
        fall,
        size=(4.6, 0.9 + 0.26 * len(tokens)),
        any_script=True,
    )


def _attention(axes: Any, tokens: Sequence[str], attention_PT: np.ndarray) -> None:
    # Shares range from thousandths (words) to almost 1 (BOS), so the colour scale is logarithmic.
    shares = np.log10(np.clip(attention_PT, 1e-3, 1))
    picture = axes.imshow(shares, aspect="auto", cmap="YlGnBu", vmin=-3, vmax=0, interpolation="nearest")
    axes.set_yticks(range(len(tokens)), [_label(token) for token in tokens], fontsize=9)
    axes.set_xticks([0, attention_PT.shape[1] - 1], [1, attention_PT.shape[1]])
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = axes.figure.colorbar(picture, ax=axes, ticks=[-3, -2, -1, 0], pad=0.02)
    bar.ax.set_yticklabels(["0.1 %", "1 %", "10 %", "100 %"], fontsize=9)
    bar.outline.set_visible(False)


def _entropies(axes: Any, entropy_T: np.ndarray, band_T2: np.ndarray | None, control_captions: int) -> None:
    steps = np.arange(1, len(entropy_T) + 1)
    if band_T2 is not None:
        label = f"90 % of {control_captions:,} control captions"
        axes.fill_between(steps, band_T2[:, 0], band_T2[:, 1], color=CONTROL, alpha=0.5, linewidth=0, label=label)
    axes.plot(steps, entropy_T, color=LINE, linewidth=1.6, label="this caption")


def _falls(axes: Any, tokens: Sequence[str], fall: Sequence[float]) -> None:
    places = range(len(tokens))
    axes.barh(places, fall, color=[LINE if value > 0 else "#b9c2c9" for value in fall], height=0.7)
    axes.set_yticks(places, [_label(token) for token in tokens], fontsize=9)
    axes.invert_yaxis()
    axes.axvline(0, color=INK, linewidth=0.6)


def _label(token: str) -> str:
    """Return a token as an axis label, without mathematics and characters that the font or SVG cannot represent."""
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in token)
    return (shown[:24] or "\N{OPEN BOX}").replace("$", r"\$")
