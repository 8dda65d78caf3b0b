"""Find and create the authentication token of a Ray cluster.

Source: https://docs.ray.io/en/latest/ray-security/token-auth.html
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from audit.errors import AuditError, UsageError, first_line

# Where Ray looks for the user's token unless RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH is set.
TOKEN = Path("~/.ray/auth_token")


def has_token() -> bool:
    """Return whether Ray can find a token on this machine."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or TOKEN.expanduser().is_file()


def require_token(address: str) -> None:
    """Raise UsageError if this process would use the cluster at `address` without a token."""
    if os.environ.get("RAY_AUTH_MODE", "token") != "disabled" and has_token():
        return
    hint = (
        "Start Ray on each of its machines with RAY_AUTH_MODE=token and the token of `ray get-auth-token --generate`; "
        "set both on this machine too (docs/how-to/cluster.md)."
    )
    raise UsageError(f"the cluster {address} must be used with a token", where="engine.address", hint=hint)


def private_token() -> None:
    """Create the user's token, or make it private. Ray itself would create it with the default permissions."""
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
        return  # another run created it at the same time
    except OSError as error:
        hint = "Set RAY_AUTH_TOKEN_PATH to a file that holds a token and that only you can read."
        raise AuditError(f"cannot store a token for Ray: {first_line(error)}", where=str(path), hint=hint) from error
