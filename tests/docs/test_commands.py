"""The commands of the documentation run, or a comment before them says why they cannot run here."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.commands import rank_layers
from tests.support.pages import PAGES, Block, blocks, name_of, prose
from tests.support.toy import FEW_GENERATIONS, MEMORIZED, MODEL

BLOCKS = [block for page in PAGES for block in blocks(page) if block.language == "bash"]
RUNNABLE = [page for page in PAGES if any(block.page == page and block.not_run is None for block in BLOCKS)]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
# What stands in the documentation for a caption of the reader's.
STAND_INS = {"a caption": MEMORIZED}
# Several pages show the same line, and each line runs once, unless a later line of its page reads what it writes.
AGAIN = ("exclusions",)
# What a reader may wait for, and a test need not.
SHORTER = {"explain": ["--steps", "2"]}


def words(line: str) -> list[str]:
    """Return the arguments of a line behind `crossaudit`, without redirections."""
    parts = shlex.split(line, comments=True)
    assert parts[0] == "crossaudit", f"mark the block, this is no command of crossaudit: {line}"
    return [STAND_INS.get(part, part) for part in (parts[1 : parts.index(">")] if ">" in parts else parts[1:])]


def of_crossaudit(block: Block) -> list[list[str]]:
    """Return the commands of crossaudit in a block, whether or not it is run."""
    return [words(line) for line in block.lines if line.startswith("crossaudit ")]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_and_option_exists(page: Path) -> None:
    for name, *arguments in [command for block in BLOCKS if block.page == page for command in of_crossaudit(block)]:
        COMMANDS[name].make_context(name, list(arguments))
    for name in re.findall(r"`crossaudit ([\w-]+)", prose(page)):
        assert name in COMMANDS or name.startswith("--"), name


def test_every_block_that_is_not_run_gives_its_reason() -> None:
    assert all(block.not_run is None or len(block.not_run.split()) >= 3 for block in BLOCKS)
    assert sum(len(block.lines) for block in BLOCKS if block.not_run is None) >= 20


@pytest.fixture(scope="module")
def done() -> set[tuple[str, ...]]:
    """The commands that have been run."""
    return set()


@pytest.fixture(scope="module")
def audited_folder(
    tmp_path_factory: pytest.TempPathFactory,
    make_dataset: Callable[[Path], Path],
    planted: bytes,
    audited: Callable[..., str],
) -> Path:
    """A folder as a reader has it after the run: audit.yaml, the model, the dataset, an image to ask for, the run."""
    folder: Path = tmp_path_factory.mktemp("reader") / "work"
    folder.mkdir()
    path = make_dataset(folder)
    settings = yaml.safe_load(path.read_text("utf-8"))
    shutil.move(folder / settings["calibration"]["captions"], folder / "controls.txt")
    shutil.copytree(MODEL, folder / "my-model")
    (folder / "mine.png").write_bytes(planted)
    settings |= {"model": "my-model", "calibration": settings["calibration"] | {"captions": "controls.txt"}}
    for section, few in FEW_GENERATIONS.items():
        settings[section] |= few
    path.write_text(yaml.safe_dump(settings), "utf-8")
    audited(path)
    shutil.copytree(folder, folder.parent / "pristine")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNABLE, ids=name_of)
def test_the_commands_of_a_page_run(
    page: Path, audited_folder: Path, done: set[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_layers, "MOST", 8)  # captions; a reader may wait for more
    # At the same path, which the configuration of a run depends on.
    shutil.rmtree(audited_folder)
    shutil.copytree(audited_folder.parent / "pristine", audited_folder)
    for block in [block for block in BLOCKS if block.page == page and block.not_run is None]:
        for line in block.lines:
            name, *arguments = words(line)
            arguments += [part for part in SHORTER.get(name, []) if part not in arguments]
            if name not in AGAIN and (name, *arguments) in done:
                continue
            done.add((name, *arguments))
            elsewhere = audited_folder / "new"
            elsewhere.mkdir(exist_ok=True)
            monkeypatch.chdir(elsewhere if name == "init" else audited_folder)
            result = CliRunner().invoke(app, [name, *arguments])
            assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
