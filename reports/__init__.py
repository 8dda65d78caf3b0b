"""Read finished runs: run SQL queries, check the accounting, list exclusions and write HTML reports.

`open_run` is imported when it is used, so that `import reports` is fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reports.audit_run import open_run as open_run

__all__ = ["open_run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'reports' has no attribute {name!r}")
    from reports import audit_run

    return getattr(audit_run, name)


def __dir__() -> list[str]:
    return __all__
