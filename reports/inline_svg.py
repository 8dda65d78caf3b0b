"""Put figures of matplotlib into a page as inline SVG that a strict content-security policy allows.

The SVG has no style sheet and no style attributes, its ids are unlike those of other figures of the page, and the
colours of text and lines follow the page, in light and dark.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from markupsafe import Markup

from reports import figures
from reports.record.histograms import Histogram

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", XLINK)
FOLLOWS_PAGE = {
    figures.INK: "currentColor",
    figures.FAINT: "var(--line)",
    figures.DATA: "var(--data)",
    figures.LINE: "var(--copy)",
    figures.NULL: "var(--control)",
}
_DROPPED = {f"{{{SVG}}}{name}" for name in ("metadata", "style")}
_REFERENCE = re.compile(r"#([\w-]+)")
_FONT = re.compile(r"([\d.]+)px")


def inline(svg: str, name: str, label: str = "") -> Markup:
    """Return a figure as an SVG element.

    Args:
        svg: The figure, as matplotlib writes it.
        name: A name that no other figure of the page has; ids begin with it.
        label: What the figure shows, for those who cannot see it; without one, the figure is hidden from them.

    Returns:
        The element. Text stays text.
    """
    root = ElementTree.fromstring(svg)
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', svg))  # not colours
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in _DROPPED]:
            parent.remove(child)
        for key, value in _presentation(parent.attrib.pop("style", "")):
            parent.set(key, value)
        if (own := parent.attrib.pop("id", None)) in used:
            parent.set("id", f"{name}-{own}")
        for key, value in parent.attrib.items():
            parent.set(
                key, _REFERENCE.sub(lambda found: f"#{name}-{found[1]}" if found[1] in used else found[0], value)
            )
    root.attrib |= dict(zip(("width", "height"), root.attrib["viewBox"].split()[2:], strict=True))
    root.attrib |= {"class": "chart", "role": "img", "aria-label": label} if label else {"aria-hidden": "true"}
    return Markup(ElementTree.tostring(root, "unicode"))


def _presentation(style: str) -> list[tuple[str, str]]:
    """Return the declarations of a style attribute as attributes of SVG."""
    found = []
    for declaration in filter(None, (part.strip() for part in style.split(";"))):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key == "font":
            size = _FONT.search(value)
            found += [("font-size", size[1])] if size else []
        else:
            found.append((key, FOLLOWS_PAGE.get(value, value)))
    return found


class Strip:
    """A small histogram of the control captions, drawn once per page, with a mark per caption."""

    def __init__(self, name: str, found: Histogram) -> None:
        """Draw the histogram of `scores` or `similarities` of a record."""
        svg, self._place, self.size = figures.strip(name, found)
        self._name, self._box = f"strip-{name}", "0 0 {:g} {:g}".format(*self.size)
        drawn = inline(svg, f"{self._name}-drawn")
        self.definition = Markup('<svg class="defs" aria-hidden="true"><defs><g id="{}">{}</g></defs></svg>').format(
            self._name, drawn
        )

    def marked(self, value: float, label: str) -> Markup:
        """Return the histogram with a line at a value.

        Args:
            value: Where to draw the line.
            label: What the figure shows, for those who cannot see it.
        """
        x, (_, height) = self._place(value), self.size
        return Markup(
            '<svg class="strip" viewBox="{}" role="img" aria-label="{}"><use href="#{}"/>'
            '<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{base:.1f}"/></svg>'
        ).format(self._box, label, self._name, x=x, base=height * figures.STRIP_BASE)
