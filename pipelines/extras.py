"""Say how to install what `crossaudit[run]` adds to a core install."""

from __future__ import annotations

from audit.errors import UsageError

# The modules that `crossaudit[run]` brings.
MODULES = frozenset(
    {
        "aiohttp",
        "braceexpand",
        "duckdb",
        "faiss",
        "jinja2",
        "markupsafe",
        "matplotlib",
        "open_clip",
        "prompt_toolkit",
        "psutil",
        "pydantic",
        "pygments",
        "ray",
        "rich",
        "torchvision",
        "typer",
        "yaml",
    }
)


def missing(error: Exception) -> UsageError | None:
    """Return how to install a module that could not be imported. Returns None for any other error."""
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if name not in MODULES:
        return None
    what = f"the command line needs more packages: {name} is not installed"
    return UsageError(what, hint="Install them with `pip install 'crossaudit[run]'`.")
