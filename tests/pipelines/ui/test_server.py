"""The pages of a run answer within their limits, and change nothing."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import quote

import pytest

from audit.errors import AuditError
from pipelines.ui.server import MOST_UPLOAD, UiServer
from pipelines.web.local_server import HEADERS
from tests.support.called import crossaudit
from tests.support.serving import Answer, ask, serving

PATHS = ["", "progress", "captions", "image", "sql", "result.csv?sql=show+tables", "style.css", "live.js"]


def upload(server: UiServer, content: bytes, name: str = "mine.png") -> Answer:
    """Send a file as the form does."""
    head = f'--x\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + b"\r\n--x--\r\n"
    return ask(server, "image", "POST", body, Content_Type="multipart/form-data; boundary=x")


def files(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_pages_are_read_only_and_guarded(attacked: UiServer, attacked_run: Path) -> None:
    before = files(attacked_run)
    for path in PATHS:
        answer = ask(attacked, path)
        assert answer.status == 200, path
        assert HEADERS.items() <= answer.headers.items()
        assert ask(attacked, path, token="x" * len(attacked.token)).status == 403
        assert ask(attacked, path, Host="evil.example").status == 403
        assert ask(attacked, path, "DELETE").status == 405
    assert files(attacked_run) == before


def test_the_report_cannot_reach_the_pages(attacked: UiServer) -> None:
    answer = ask(attacked, "report.html")
    assert answer.status == 200
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("sandbox allow-scripts; default-src 'none'")
    assert "allow-same-origin" not in policy
    assert "connect-src" not in policy  # so that it falls back to 'none'


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("captions?page=x", 400, "no such page of captions"),
        ("captions?page=-1", 400, "no such page of captions"),
        ("captions?verdict=guilty", 400, "no such page of captions"),
        ("caption?id=nobody", 404, "the run has no such caption"),
        ("result.csv?sql=drop+view+verdicts", 400, "changes nothing"),
        ("../manifest.json", 404, "Not Found"),
        ("manifest.json", 404, "Not Found"),
    ],
)
def test_what_is_not_there_is_said(attacked: UiServer, path: str, status: int, message: str) -> None:
    answer = ask(attacked, path)
    assert answer.status == status
    assert message in answer.text
    assert "Traceback" not in answer.text


def test_a_page_beyond_the_last_one_is_the_last_one(attacked: UiServer) -> None:
    assert "page 7 of 7" in ask(attacked, "captions?page=999999999").text


def test_percent_and_underscore_are_ordinary_letters_of_a_search(attacked: UiServer) -> None:
    for text in ("%", "_", "100%", "' or '1'='1"):
        assert "0 captions" in ask(attacked, f"captions?text={quote(text)}-no").text


def test_csv_cannot_hold_a_formula(attacked: UiServer) -> None:
    assert ask(attacked, f"result.csv?sql={quote('select $$=1+1$$ as a, 2 as b')}").text == '"a","b"\n"\'=1+1",2\n'


def test_uploads_have_a_limit(attacked: UiServer) -> None:
    assert upload(attacked, b"x" * MOST_UPLOAD).status == 413
    assert "choose an image file" in upload(attacked, b"", name="").text


def test_an_upload_must_be_an_image(finished: Path) -> None:
    server = UiServer(str(finished))
    with serving(server):
        answer = upload(server, b"no image", name="<i>.png")
    assert answer.status == 500
    assert "&lt;i&gt;.png: cannot be read as an image" in answer.text


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="not a run"):
        UiServer(str(tmp_path))
    done = crossaudit("ui", tmp_path)
    assert done.returncode == 1
    assert "this is not a run" in done.stderr


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(attacked_run: Path) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "ui", str(attacked_run)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    # A shell ignores interrupts in what it starts in the background, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().removeprefix("Open ").strip()
            with urllib.request.urlopen(address) as page:
                assert b"Audit of the test model" in page.read()
            process.send_signal(signal.SIGINT)
            _, complaint = process.communicate(timeout=60)
        finally:
            process.kill()  # does nothing to a process that has ended
    assert (process.returncode, complaint) == (0, "")
