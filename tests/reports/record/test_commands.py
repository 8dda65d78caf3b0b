import shlex
import subprocess
from pathlib import Path

import pytest

from reports.record.build import build
from reports.record.commands import shell_word


@pytest.mark.parametrize(
    "text",
    [
        "run",
        "a run",
        'it\'s "quoted"',
        "$HOME `id` !! \\",
        "turned \u202egnp",
        "ring\u0007 \n line",
        "\U0001f468\u200d",
        "",
    ],
)
def test_a_shell_reads_a_word_as_it_was(text: str) -> None:
    command = f"printf %s {shell_word(text)}"
    assert command.isprintable()
    assert subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout.decode() == text


def test_commands_name_the_run_and_its_dataset(run: Path) -> None:
    commands = [shlex.split(command) for step in build(run).next_steps for command in step.commands]
    assert ["crossaudit", "exclusions", str(run), "--policy", "dedup"] in commands
    dataset = ["captions.parquet", "images/*.tar"]
    assert ["crossaudit", "clean", f"{run}/exclusions.parquet", *dataset, "--out", "cleaned"] in commands


def test_a_run_is_named_so_that_it_is_found_from_anywhere(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    assert build(run.name).run.path == str(run)
