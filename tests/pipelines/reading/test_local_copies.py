"""Models and weights of a URI are copied to this machine, whole and once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from audit.errors import AuditError
from pipelines.reading.local_copies import fetched

FILES = {"unet/config.json": b"{}", "unet/model.safetensors": b"weights", "tokenizer/vocab.json": b"[]"}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A folder that lies elsewhere, and an empty cache."""
    monkeypatch.setenv("CROSSAUDIT_CACHE", str(tmp_path / "cache"))
    store = fsspec.filesystem("memory")
    for name, content in FILES.items():
        store.pipe(f"/models/mine/{name}", content)
    yield "memory://models/mine"
    store.rm("/models", recursive=True)


def contents(folder: str) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()
    }


def copies() -> list[Path]:
    return sorted(Path(os.environ["CROSSAUDIT_CACHE"], "fetched").glob("*"))


def test_a_path_of_this_machine_is_itself() -> None:
    assert fetched("/models/mine") == "/models/mine"
    assert fetched("runwayml/stable-diffusion-v1-5") == "runwayml/stable-diffusion-v1-5"


def test_a_folder_is_copied_once_under_its_own_name(model: str) -> None:
    first = fetched(model)
    assert Path(first).name == "mine"
    assert contents(first) == FILES
    written = {path: path.stat().st_mtime_ns for path in Path(first).rglob("*")}
    assert fetched(f"{model}/") == fetched(model) == first
    assert {path: path.stat().st_mtime_ns for path in Path(first).rglob("*")} == written


def test_a_file_keeps_its_name_too(model: str) -> None:
    copy = Path(fetched(f"{model}/unet/model.safetensors"))
    assert (copy.name, copy.read_bytes()) == ("model.safetensors", b"weights")


def test_what_has_changed_is_copied_again(model: str) -> None:
    first = fetched(model)
    fsspec.filesystem("memory").pipe("/models/mine/unet/model.safetensors", b"other weights")
    second = fetched(model)
    assert second != first
    assert contents(second)["unet/model.safetensors"] == b"other weights"
    assert contents(first) == FILES


def test_without_weights_a_folder_is_its_configuration(model: str) -> None:
    assert contents(fetched(model, weights=False)).keys() == {"unet/config.json", "tokenizer/vocab.json"}
    assert contents(fetched(model)) == FILES


def test_several_at_once_have_one_copy_and_leave_nothing(model: str, tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_bytes(content)
    with ThreadPoolExecutor(8) as threads:
        # Not of memory: there all readers of a file share one position in it.
        found = set(threads.map(fetched, [f"file://{tmp_path}/mine"] * 8))
    assert len(found) == 1
    assert contents(found.pop()) == FILES
    assert len(copies()) == 1


def test_what_is_not_there_is_named(model: str) -> None:
    with pytest.raises(AuditError, match="memory://models/yours: no such file or folder"):
        fetched("memory://models/yours")


class Short(MemoryFileSystem):
    """A store that gives less than it says, as of a file that is written anew meanwhile."""

    protocol = "short"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("short://"))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        file = super()._open(path, mode, **options)
        file.seek(1)
        return file


def test_a_copy_that_is_not_whole_is_none(model: str) -> None:
    fsspec.register_implementation("short", Short, clobber=True)
    with pytest.raises(AuditError, match=r"cannot be copied: \S+ came with \d bytes instead of \d"):
        fetched("short://models/mine")
    assert copies() == []


def test_where_there_is_no_room_nothing_is_left(model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CROSSAUDIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(AuditError, match=r"(?s)memory://models/mine: cannot be copied: .*CROSSAUDIT_CACHE"):
        fetched(model)
