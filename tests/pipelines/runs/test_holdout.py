from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit.duplicates.captions import caption_groups, caption_id
from audit.errors import AuditError, UsageError
from pipelines.demo.demo import bundle
from pipelines.reading.dataset import open_dataset, sample
from pipelines.runs.holdout import CANARIES, CONTROLS, EXCLUSIONS, TRAINING, hold_out, misses
from tests.support.called import crossaudit
from tests.support.newspaper import newspaper

TEXTS = newspaper(300)
# The first caption occurs thrice, once with other punctuation.
ROWS = [*TEXTS, TEXTS[0], TEXTS[0].replace(".", "!")]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    for number, rows in enumerate((ROWS[:120], ROWS[120:])):
        keys = [f"{number}-{row}" for row in range(len(rows))]
        pq.write_table(pa.table({"caption": rows, "key": keys}), folder / f"{number}.parquet", row_group_size=50)
    return folder


@pytest.fixture(scope="module")
def held(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("held") / "out"
    hold_out(open_dataset([str(dataset)]), out, 100, 5, 0)
    return out


def test_every_row_is_trained_on_or_listed_as_excluded(held: Path) -> None:
    controls, canaries, excluded, training = (
        pq.read_table(held / name) for name in (CONTROLS, CANARIES, EXCLUSIONS, TRAINING)
    )
    assert (len(controls), len(canaries)) == (100, 20)
    assert Counter(canaries["dose"].to_pylist()) == {1: 5, 5: 5, 20: 5, 100: 5}
    places = [
        (row["file"], row["row"]) for table in (training, excluded) for row in table.select(["file", "row"]).to_pylist()
    ]
    assert len(places) == len(set(places)) == len(ROWS)


def test_held_out_captions_are_not_trained_on_and_canaries_as_often_as_their_dose(held: Path) -> None:
    controls, canaries, training = (pq.read_table(held / name) for name in (CONTROLS, CANARIES, TRAINING))
    texts = [*controls["caption"].to_pylist(), *training["caption"].to_pylist()]
    groups = caption_groups(texts)
    assert not set(groups[: len(controls)]) & set(groups[len(controls) :])
    times: Counter[str] = Counter()
    for row in training.to_pylist():
        times[row["caption"]] += row["repeats"]
    for canary in canaries.to_pylist():
        assert times[canary["caption"]] == canary["dose"]
        assert canary["key"] == f"{canary['file'][0]}-{canary['row']}"


def test_the_draw_depends_on_the_captions_and_the_seed_alone(dataset: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"caption": ROWS[::-1] + ROWS[:50]}), tmp_path / "one.parquet")
    one, other = open_dataset([str(dataset)]), open_dataset([str(tmp_path / "one.parquet")])
    assert sample(one, 40, 0) == sample(other, 40, 0)
    assert sample(one, 40, 0) != sample(one, 40, 1)
    assert len(sample(one, 10_000, 0)) == len(set(ROWS))


def test_clean_writes_the_dataset_without_the_held_out_rows(dataset: Path, held: Path, tmp_path: Path) -> None:
    done = crossaudit("clean", held / EXCLUSIONS, *sorted(dataset.glob("*.parquet")), "--out", tmp_path / "cleaned")
    assert done.returncode == 0, done.stderr
    left = [
        text for file in sorted((tmp_path / "cleaned").glob("*")) for text in pq.read_table(file)["caption"].to_pylist()
    ]
    assert sorted(left) == sorted(pq.read_table(held / TRAINING)["caption"].to_pylist())


def test_too_many_captions_and_a_full_folder_are_refused(dataset: Path, held: Path, tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="500 captions are to be set aside, but the dataset has only"):
        hold_out(open_dataset([str(dataset)]), tmp_path / "out", 500, 0, 0)
    with pytest.raises(UsageError, match="is not empty"):
        hold_out(open_dataset([str(dataset)]), held, 10, 1, 0)


def test_misses_are_counted_by_dose() -> None:
    canaries = pa.table({"caption_id": list("abcde"), "dose": [1, 1, 100, 100, 100]})
    verdicts = pa.table(
        {"caption_id": list("abcdx"), "verdict": ["verbatim", "not_selected", "partial", "unknown", "verbatim"]}
    )
    [one, hundred] = misses(verdicts, canaries).to_pylist()
    assert (one["dose"], one["canaries"], one["confirmed"], one["miss_rate"]) == (1, 2, 1, 0.5)
    assert (hundred["canaries"], hundred["confirmed"]) == (2, 1)
    assert one["low"] < 0.5 < one["high"]


@pytest.mark.slow
def test_the_command_accepts_the_shipped_controls_and_refuses_a_newspaper(tmp_path: Path) -> None:
    captions = bundle() / "captions.parquet"
    good = crossaudit("controls", "check", captions, "--controls", bundle() / "calibration.txt")
    assert (good.returncode, "like the dataset" in good.stdout) == (0, True), good
    (tmp_path / "news.txt").write_text("\n".join(newspaper(300)), "utf-8")
    pq.write_table(pq.read_table(captions).slice(0, 600), tmp_path / "some.parquet")
    bad = crossaudit("controls", "check", tmp_path / "some.parquet", "--controls", tmp_path / "news.txt")
    assert bad.returncode == 1
    assert "unlike the dataset" in bad.stderr
    assert "words that tell control captions: " in bad.stderr


def test_the_command_proposes_captions_and_says_what_they_cannot_stand_for(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "proposed.txt"
    done = crossaudit("controls", "propose", dataset, "--out", out, "--count", "20")
    assert done.returncode == 0, done.stderr
    assert "They cannot stand for" in done.stdout
    assert len(out.read_text("utf-8").splitlines()) == 20
    assert crossaudit("controls", "propose", dataset, "--out", tmp_path / "x.csv").returncode == 2


def test_the_caption_ids_of_canaries_are_those_of_a_run(held: Path) -> None:
    canaries = pq.read_table(held / CANARIES)
    assert canaries["caption_id"].to_pylist() == [caption_id(text) for text in canaries["caption"].to_pylist()]
