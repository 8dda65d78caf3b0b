"""The token without which a Ray cluster answers nobody (https://docs.ray.io/en/latest/ray-security/token-auth.html)."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from audit.errors import AuditError, UsageError, first_line

# Where Ray looks for the token of this user unless RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH says otherwise.
TOKEN = Path("~/.ray/auth_token")


def has_token() -> bool:
    """Whether Ray would find a token here."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or TOKEN.expanduser().is_file()


def require_token(address: str) -> None:
    """Raises UsageError if this process would use the cluster at `address` without a token."""
    if os.environ.get("RAY_AUTH_MODE", "token") != "disabled" and has_token():
        return
    hint = (
        "Start every machine of it with RAY_AUTH_MODE=token and the token of `ray get-auth-token --generate`; "
        "set both here too (docs/cluster.md)."
    )
    raise UsageError(f"the cluster {address} is used with a token only", where="engine.address", hint=hint)


def private_token() -> None:
    """Makes the token of this user readable for no other one; Ray writes it as readable as any file."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = TOKEN.expanduser()
    try:
        if path.is_file():
            if path.stat().st_mode & 0o077:
                path.chmod(0o600)
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    except FileExistsError:
        return  # another run was faster, and did the same
    except OSError as error:
        hint = "Set RAY_AUTH_TOKEN_PATH to a file that only you can read and that holds a token."
        raise AuditError(
            f"no token for Ray can be kept there: {first_line(error)}", where=str(path), hint=hint
        ) from error
