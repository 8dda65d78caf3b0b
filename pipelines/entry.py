"""Start the command line `crossaudit`, or say what to install first."""

from __future__ import annotations

import sys

from pipelines.extras import missing


def main() -> None:
    """Run the command line. Exits with status 2 if the packages that it needs are not installed."""
    try:
        from pipelines.cli import main as command_line
    except ModuleNotFoundError as error:
        if (needed := missing(error)) is None:
            raise
        print(f"crossaudit: {needed}", file=sys.stderr)
        sys.exit(2)
    command_line()
