"""Every known bad input of every command: a plain message that names it, a remedy and the documented exit code."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import yaml

from tests.support.called import crossaudit
from tests.support.finished import finish_run
from tests.support.toy import MODEL, settings_of


def assert_plain(arguments: tuple[str, ...], named: str, codes: tuple[int, ...] = (1, 2)) -> str:
    """The command fails with a message of two lines or more: what is wrong with `named`, and what to do."""
    code, output, error = crossaudit(*arguments)
    shown = f"crossaudit {' '.join(arguments)}: exit code {code}\n{output}{error}"
    assert code in codes, shown
    assert "unexpected" not in error.lower(), shown
    assert "Traceback" not in error, shown
    assert "traceback is in" not in error, shown
    assert not re.search(r"\b[A-Z]\w*(Error|Exception|Invalid)\b", error), shown
    assert named in error.replace("\n", ""), shown
    assert len(error.strip().splitlines()) >= 2, shown
    return error


# -- commands that read a run ---------------------------------------------------------------------------------------

OF_A_RUN = {
    "status": (),
    "logs": (),
    "stop": (),
    "mitigate": (),
    "query": ("select * from verdicts",),
    "report": (),
    "check": (),
    "errors": (),
    "purge": ("--keep", "none"),
    "lookup": ("--text", "caption"),
    "reproduce": ("a verbatim caption",),
    "exclusions": (),
    "rank-layers": (),
    "export": ("--format", "csv"),
    "publish": ("--to", "public"),
}


def manifest_of(content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "manifest.json").write_bytes(content)
        return folder

    return make


def a_file(folder: Path) -> Path:
    (folder / "file").write_text("no run")
    return folder / "file"


def foreign_files(folder: Path) -> Path:
    (folder / "thesis.doc").write_text("no run")
    return folder


def a_folder_as_manifest(folder: Path) -> Path:
    (folder / "manifest.json").mkdir()
    return folder


BAD_RUNS: dict[str, Callable[[Path], Path | str]] = {
    "missing": lambda folder: folder / "nowhere",
    "a file": a_file,
    "below a file": lambda folder: a_file(folder) / "run",
    "empty": lambda folder: folder,
    "foreign files": foreign_files,
    "empty manifest": manifest_of(b""),
    "truncated manifest": manifest_of(b'{"version": "0.1.0", "resol'),
    "binary manifest": manifest_of(b"\xff\xfe\x00\x01"),
    "list as manifest": manifest_of(b"[1, 2]"),
    "number as manifest": manifest_of(b"7"),
    "foreign manifest": manifest_of(b'{"name": "my app", "icons": []}'),
    "folder as manifest": a_folder_as_manifest,
    "unknown scheme": lambda folder: "nowhere://bucket/run",
    "NUL in the path": lambda folder: "ru\0n",
    "empty path": lambda folder: "",
}


def chosen(command: str, cause: str) -> bool:
    """Tell whether `make test` runs a combination: three commands with every cause, every command with three."""
    return command in ("status", "query", "mitigate") or cause in ("missing", "a file", "foreign manifest")


@pytest.mark.parametrize(
    ("command", "cause"),
    [
        pytest.param(command, cause, marks=() if chosen(command, cause) else pytest.mark.soak)
        for command, cause in product(OF_A_RUN, BAD_RUNS)
    ],
)
def test_what_is_no_run_is_named(tmp_path: Path, command: str, cause: str) -> None:
    run = str(BAD_RUNS[cause](tmp_path))
    assert_plain((command, run, *OF_A_RUN[command]), run.replace("\0", "\\x00"))


# -- runs that a command cannot use, or whose files are damaged -------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run`, a finished run, and its audit.yaml."""
    folder = tmp_path_factory.mktemp("sound")
    (folder / "audit.yaml").write_text(yaml.safe_dump(settings_of()))
    finish_run(folder / "audit.yaml", "verbatim", "not_selected")
    return folder


@pytest.fixture
def own(sound: Path, tmp_path: Path) -> Path:
    """A run that a test may damage."""
    return Path(shutil.copytree(sound / "run", tmp_path / "run"))


def change(run: Path, **keys: object) -> None:
    path = run / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


NEEDS_FINISHED = ("mitigate", "purge", "lookup --image", "reproduce", "rank-layers", "export", "publish")
CALLS = OF_A_RUN | {"lookup --image": ("--image", __file__)}


@pytest.mark.parametrize("changes", [{"finished": None}, {"kind": "index"}, {"resolved": {"old": 1}}], ids=str)
@pytest.mark.parametrize("call", NEEDS_FINISHED)
def test_a_run_that_the_command_cannot_use_is_named(own: Path, call: str, changes: dict[str, object]) -> None:
    change(own, **changes)
    assert_plain((call.partition(" ")[0], str(own), *CALLS[call]), str(own))


@pytest.mark.parametrize("content", [b"", b"no Parquet at all"], ids=["empty", "garbage"])
@pytest.mark.parametrize(
    "call",
    ["query", "report", "lookup", "reproduce", "exclusions", "purge", "rank-layers", "mitigate", "export", "publish"],
)
def test_a_damaged_part_is_named(own: Path, call: str, content: bytes) -> None:
    part = own / "verdicts/00000.parquet"
    part.write_bytes(content)
    assert_plain((call, str(own), *OF_A_RUN[call]), str(part))


def test_a_question_that_a_run_cannot_answer_is_plain(own: Path, tmp_path: Path) -> None:
    run = str(own)
    assert_plain(("query", run, "select nonsense from verdicts"), "nonsense")
    assert_plain(("reproduce", run, "a caption of another run"), "a caption of another run")
    assert_plain(("lookup", run, "--image", str(tmp_path / "no.png")), str(tmp_path / "no.png"))
    assert_plain(("stop", run), run)
    assert_plain(("logs", run), run)


# -- configurations, and files on the command line --------------------------------------------------------------------

BAD_CONFIGS = {
    "missing": None,
    "not UTF-8": b"model: \xff\xfe",
    "not YAML": b"model: [",
    "a list": b"- model",
    "empty": b"",
    "unknown key": b"modle: x",
    "NUL": b'model: "a\\0b"',
}


@pytest.mark.parametrize("cause", BAD_CONFIGS)
@pytest.mark.parametrize("command", ["run", "plan", "index", "config"])
def test_a_configuration_that_cannot_be_read_is_wrong_usage(tmp_path: Path, command: str, cause: str) -> None:
    path, content = tmp_path / "audit.yaml", BAD_CONFIGS[cause]
    if content is not None:
        path.write_bytes(content)
    code, _, error = crossaudit(command, str(path))
    assert (code, error.startswith(f"crossaudit: {path}: ")) == (2, True), error
    assert "traceback is in" not in error
    assert "unexpected" not in error


@pytest.mark.parametrize("command", ["run", "plan", "index", "config"])
def test_a_folder_in_place_of_a_configuration_is_wrong_usage(tmp_path: Path, command: str) -> None:
    assert_plain((command, str(tmp_path)), str(tmp_path), (2,))


def calls_with_bad_files(folder: Path) -> list[tuple[str, tuple[str, ...]]]:
    """(what is named, the call) of every file that a command takes beside a run and a configuration."""
    junk, texts, nowhere = str(folder / "junk.bin"), str(folder / "texts.txt"), str(folder / "nowhere.txt")
    Path(junk).write_bytes(b"\0\xff junk")
    Path(texts).write_text("one\ntwo\n")
    model, page = str(MODEL), ("--out", str(folder / "page.html"))
    return [
        (nowhere, ("clean", nowhere, texts, "--out", str(folder / "clean"))),
        (junk, ("clean", junk, texts, "--out", str(folder / "clean"))),
        (nowhere, ("explain", nowhere, "a cat", *page)),
        (junk, ("explain", junk, "a cat", *page)),
        (nowhere, ("explain", model, "a cat", "--controls", nowhere, *page)),
        (str(folder), ("explain", model, "a cat", "--calibration", str(folder), *page)),
        (junk, ("explain", model, "a cat", "--calibration", junk, *page)),
        (nowhere, ("explain", model, "a cat", "--calibration", nowhere, *page)),
        (str(folder), ("explain", model, "a cat", "--out", str(folder))),
        (f"{folder}/x.pdf", ("explain", model, "a cat", "--out", f"{folder}/x.pdf")),
        (f"{nowhere}/x.html", ("explain", model, "a cat", "--out", f"{nowhere}/x.html")),
        (
            f"{folder}/x.xls",
            ("rank-layers", model, "--captions", texts, "--controls", texts, "--out", f"{folder}/x.xls"),
        ),
        (nowhere, ("rank-layers", model, "--captions", nowhere, "--controls", texts)),
        (nowhere, ("rank-layers", nowhere, "--captions", texts, "--controls", texts)),
        (texts, ("init", texts)),
        (f"{nowhere}/a.yaml", ("init", f"{nowhere}/a.yaml")),
        (texts, ("demo", "--out", texts)),
    ]


@pytest.mark.parametrize("number", range(17))
def test_a_file_of_the_command_line_that_cannot_be_used_is_named(tmp_path: Path, number: int) -> None:
    named, call = calls_with_bad_files(tmp_path)[number]
    assert_plain(call, named)


# -- what a configuration names ---------------------------------------------------------------------------------------

JUNK = b"\0\xff junk"
DAMAGED = {
    "unet config": "model/unet/config.json",
    "unet weights": "model/unet/diffusion_pytorch_model.safetensors",
    "scheduler": "model/scheduler/scheduler_config.json",
    "tokenizer": "model/tokenizer/vocab.json",
    "control captions": "control_captions.txt",
    "screen table": "control_screen.parquet",
}


@pytest.fixture(scope="module")
def dataset(make_dataset: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sound dataset, its own model and audit.yaml."""
    folder = make_dataset(tmp_path_factory.mktemp("inputs")).parent
    shutil.copytree(MODEL, folder / "model")
    (folder / "audit.yaml").write_text(yaml.safe_dump(settings_of(model="model")))
    return folder


@pytest.mark.parametrize("cause", DAMAGED)
def test_a_damaged_file_that_a_configuration_names_is_found_before_the_run(
    dataset: Path, tmp_path: Path, cause: str
) -> None:
    folder = Path(shutil.copytree(dataset, tmp_path / "own"))
    (folder / DAMAGED[cause]).write_bytes(JUNK)
    # transformers reads several files for a tokenizer, and does not say which of them is damaged.
    named = str(folder / ("model/tokenizer" if cause == "tokenizer" else DAMAGED[cause]))
    assert_plain(("run", str(folder / "audit.yaml"), "--check-only"), named)
