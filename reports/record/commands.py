"""Write commands with the paths of the run, to be pasted into a shell."""

from __future__ import annotations

import shlex
from typing import Any

from reports.record.part import Part
from reports.record.source import Source


class NextStep(Part):
    """Something to do, and the commands for it, with the paths of this run."""

    purpose: str
    commands: list[str]


def next_steps(source: Source, *, confirmed: bool, mitigated: bool, reviewed: bool) -> list[NextStep]:
    """Return what to do next.

    Args:
        source: The run.
        confirmed: Whether a caption was confirmed.
        mitigated: Whether mitigation was measured.
        reviewed: Whether people have judged the confirmed captions.
    """
    run = shell_word(source.path)
    steps = []
    if confirmed:
        dataset = " ".join(shell_word(path) for name in ("captions", "images") for path in _paths(source, name))
        steps.append(
            NextStep(
                purpose="Remove what the model reproduces from the dataset, then train again. The policy dedup keeps "
                "the first row of each group; drop removes them all.",
                commands=[
                    f"crossaudit exclusions {run} --policy dedup",
                    f"crossaudit clean {shell_word(f'{source.path}/exclusions.parquet')} {dataset} --out cleaned",
                ],
            )
        )
    if confirmed and not mitigated:
        steps.append(
            NextStep(
                purpose="Without training again: measure how well mitigation during generation prevents copies, and "
                "how it affects ordinary captions.",
                commands=[f"crossaudit mitigate {run}"],
            )
        )
    if confirmed and not reviewed:
        steps.append(
            NextStep(
                purpose="Let two people or more judge the confirmed captions, blind and beside decoys.",
                commands=[f"crossaudit review {run}"],
            )
        )
    steps.append(
        NextStep(
            purpose="Answer a rights holder: is an image in the dataset, and does the model reproduce it?",
            commands=[f"crossaudit lookup {run} --image IMAGE.png"],
        )
    )
    if not source.manifest.purged:
        steps.append(
            NextStep(
                purpose="Delete the pictures that are not evidence. They may contain personal data.",
                commands=[f"crossaudit purge {run} --keep confirmed"],
            )
        )
    return steps


def explain(source: Source, caption: str, seed: int | None) -> str:
    """Return the command that explains how the model processes a caption, as the run generated it."""
    generate = source.settings.get("generate") or {}
    words = ["crossaudit", "explain", (source.settings.get("model") or {}).get("path", "MODEL"), caption]
    words += ["--calibration", f"{source.path}/calibration.json"]
    words += ["--seed", str(seed)] if seed is not None else []
    for name in ("steps", "guidance_scale"):
        words += [f"--{name.replace('_', '-')}", f"{generate[name]:g}"] if name in generate else []
    return " ".join(map(shell_word, words))


def reproduce(source: Source, caption: str) -> str:
    """Return the command that generates a case again and compares it with the record."""
    return f"crossaudit reproduce {shell_word(source.path)} {shell_word(caption)}"


def shell_word(text: str) -> str:
    r"""Quote a text as one word of bash or zsh. Characters that are not printable are written as \uXXXX."""
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(_escaped(character) for character in text) + "'"


def _escaped(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


def _paths(source: Source, section: str) -> list[str]:
    given: Any = (source.settings.get(section) or {}).get("path", [])
    return [given] if isinstance(given, str) else list(given)
