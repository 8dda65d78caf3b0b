"""Start the command line `crossaudit`, or say what to install first."""

from __future__ import annotations

import sys

from audit.errors import UsageError

# The modules that `crossaudit[run]` brings.
MODULES = frozenset(
    {
        "braceexpand",
        "duckdb",
        "faiss",
        "jinja2",
        "matplotlib",
        "open_clip",
        "psutil",
        "pydantic",
        "ray",
        "rich",
        "torchvision",
        "typer",
        "yaml",
    }
)


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


def missing(error: Exception) -> UsageError | None:
    """Return how to install a module that could not be imported. Returns None for any other error."""
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if name not in MODULES:
        return None
    what = f"the command line needs more packages: {name} is not installed"
    return UsageError(what, hint="Install them with `pip install 'crossaudit[run]'`.")
