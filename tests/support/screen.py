"""Show what a terminal shows."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
from contextlib import suppress

from tests.support.paths import ROOT

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


def on_a_terminal(*arguments: str, width: int = 80) -> tuple[int, list[str]]:
    """Run `crossaudit ARGUMENTS` in a terminal, and return its exit code and the lines on the screen at its end."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (50, width))
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    environment = os.environ | {"TERM": "xterm-256color"}
    with subprocess.Popen(command, cwd=ROOT, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        content = b""
        with suppress(OSError):  # Linux raises an error once no process has the terminal open
            while chunk := os.read(master, 1 << 16):
                content += chunk
    os.close(master)
    return process.returncode, screen(content.decode())
