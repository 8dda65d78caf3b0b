"""What each verdict means, and its colour, in the report and on a terminal."""

from __future__ import annotations

MEANINGS = {
    "verbatim": "a generated image is a copy of a training image",
    "partial": "a region of a generated image is a copy",
    "unconfirmed": "images were generated, but none is similar enough to a given training image to count as a copy",
    "not_selected": "not looked at: screened, but not selected for generation; this does not clear the caption",
    "unknown": "no match was found, but not all images could be compared",
    "error": "could not be audited; the table verdicts states why",
}
COLOURS = {
    "verbatim": "#a3333d",
    "partial": "#a1621a",
    "unconfirmed": "#6b7680",
    "not_selected": "#8d98a1",
    "unknown": "#75629a",
    "error": "#555555",
}
