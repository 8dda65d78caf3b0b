"""`crossaudit download-weights`: whole files or none, from a real server on this machine."""

from __future__ import annotations

import hashlib
import io
import os
import urllib.request
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from audit.embedding.published import PUBLISHED, address, cache_folder
from audit.errors import AuditError
from pipelines.commands.download_weights import download
from tests.support.called import crossaudit


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as content:
        content.writestr("weights/data.pkl", os.urandom(3 << 20))
    return buffer.getvalue()


WEIGHTS = archive()


class Handler(BaseHTTPRequestHandler):
    """/whole, /cut (fewer bytes than promised), /page (of a proxy that wants a login); it is a proxy, too."""

    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        content = b"<html>please log in</html>" if self.path.endswith("/page") else WEIGHTS
        if self.path.endswith("/gone"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if self.path.endswith("/cut") else content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    # urllib would keep the proxies of the first request of this process.
    monkeypatch.setattr(urllib.request, "_opener", None)


def test_a_file_comes_whole_into_a_folder_that_was_not_there(server: str, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "sscd.pt"
    download(f"{server}/whole", path)
    assert path.read_bytes() == WEIGHTS
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("cut", "the download is incomplete"),
        ("gone", "HTTP Error 404"),
        ("page", r"holds no weights"),
    ],
)
def test_what_does_not_come_whole_leaves_nothing_behind(server: str, tmp_path: Path, page: str, message: str) -> None:
    path = tmp_path / "cache" / "sscd.pt"
    with pytest.raises(AuditError, match=message) as caught:
        download(f"{server}/{page}", path)
    assert f"copy it to {path}" in str(caught.value)
    assert list(path.parent.iterdir()) == []


def test_it_goes_through_a_proxy(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server)
    download("http://weights.example/whole", tmp_path / "sscd.pt")
    assert Handler.asked[-1] == "http://weights.example/whole"
    assert (tmp_path / "sscd.pt").read_bytes() == WEIGHTS


def test_a_folder_that_cannot_be_written_names_the_variable(server: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AuditError, match="CROSSAUDIT_CACHE"):
        download(f"{server}/whole", tmp_path / "file" / "sscd.pt")


def test_the_addresses_are_those_of_the_sscd_project() -> None:
    published = "https://dl.fbaipublicfiles.com/sscd-copy-detection"
    assert {address(name) for name in PUBLISHED} == {
        f"{published}/sscd_disc_mixup.torchvision.pt",
        f"{published}/sscd_disc_large.torchscript.pt",
    }


def test_the_cache_is_of_the_user_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSAUDIT_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.delenv("CROSSAUDIT_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "crossaudit"


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and a proxy that does not answer: nothing listens on port 9 (discard)."""
    monkeypatch.setenv("CROSSAUDIT_CACHE", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")


@pytest.mark.usefixtures("offline")
def test_offline_it_exits_with_1_and_says_what_to_put_where(tmp_path: Path) -> None:
    shown = crossaudit("download-weights", "sscd")
    assert shown.returncode == 1
    assert shown.stdout.strip() == address("sscd_disc_mixup")
    assert "download failed" in shown.stderr
    assert "Traceback" not in shown.stderr
    assert f"copy it to {tmp_path}/sscd_disc_mixup.torchvision.pt" in shown.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("offline")
def test_what_is_there_is_not_downloaded_again_and_its_size_and_sha256_are_printed(tmp_path: Path) -> None:
    (tmp_path / PUBLISHED["sscd_disc_large"]).write_bytes(WEIGHTS)
    shown = crossaudit("download-weights", "sscd_disc_large")
    assert shown.returncode == 0, shown.stderr
    assert f"{len(WEIGHTS):,} bytes, sha256 {hashlib.sha256(WEIGHTS).hexdigest()}" in shown.stdout
    assert crossaudit("download-weights", "sscd_disc_huge").returncode == 2
