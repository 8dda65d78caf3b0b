"""Format durations for people. Terminal, report and plan share this format."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Format seconds with at most two units: 1.5 s, 45 s, 4 min 10 s, 25 min, 3 h 20 min, 4 d 2 h."""
    if seconds < 9.95:
        return f"{round(seconds, 1):g} s"
    if (whole := round(seconds)) < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"
