"""The token of Ray: kept private, and asked for."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from audit.errors import UsageError
from pipelines.engine import ray_token
from pipelines.engine.ray_session import start_ray


def test_the_token_is_readable_for_its_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ray_token, "TOKEN", tmp_path / ".ray" / "auth_token")
    ray_token.private_token()
    first = ray_token.TOKEN.read_text()
    assert len(first) == 64
    assert stat.S_IMODE(ray_token.TOKEN.stat().st_mode) == 0o600
    ray_token.TOKEN.chmod(0o644)
    ray_token.private_token()
    assert ray_token.TOKEN.read_text() == first
    assert stat.S_IMODE(ray_token.TOKEN.stat().st_mode) == 0o600


def test_a_cluster_is_not_used_without_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_token, "TOKEN", tmp_path / "auth_token")
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="must be used with a token"):
        start_ray("127.0.0.1:6379", 1, 1, 0)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a token")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(UsageError, match="RAY_AUTH_MODE=token"):
        start_ray("127.0.0.1:6379", 1, 1, 0)
