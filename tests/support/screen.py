"""Show what a terminal shows."""

from __future__ import annotations

import re

# A control sequence with its parameters and its letter, or one character.
_TOKEN = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|(.)", re.DOTALL)


def screen(output: str) -> list[str]:
    """Return the lines on the screen of a terminal, after it has received `output`.

    It understands what rich writes: styles, the cursor up, erased lines, and the hidden cursor.
    """
    lines: list[list[str]] = [[]]
    row = column = 0
    for number, letter, character in _TOKEN.findall(output):
        if letter == "A":
            row = max(0, row - int(number or 1))
        elif letter == "K":
            lines[row] = []
        elif letter not in ("", "m", "h", "l"):
            raise ValueError(f"unknown control sequence {number}{letter}")
        elif character == "\r":
            column = 0
        elif character == "\n":
            row, column = row + 1, 0
            lines += [[]] * (row == len(lines))
        elif character:
            line = lines[row] = lines[row][:column] + [" "] * (column - len(lines[row])) + lines[row][column:]
            line[column : column + 1] = character
            column += 1
    return ["".join(line).rstrip() for line in lines]
