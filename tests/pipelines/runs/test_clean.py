"""Clean copies of a dataset: what goes, what stays as it was, and that every count is proven."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.duplicates.captions import caption_id
from audit.errors import AuditError, UsageError
from audit.schema import EXCLUSIONS
from pipelines.writing.counts import Counts
from reports.exclusions import write_exclusions
from tests.support.called import crossaudit
from tests.support.cleaned import captions_of, cleaned, members_of
from tests.support.minimal import place, reproduced, row, write_run
from tests.support.toy import png, write_parquet, write_tar

# As img2dataset writes them: two files of five rows, each with a tar of its images. Three rows carry `a cat`.
CAPTIONS = {
    "00000": ["a cat", "a dog", "a fox", "a cat", "a cow"],
    "00001": ["a bee", "a cat", "an ant", "a wasp", "an owl"],
}
GONE = {"00000": [0, 3], "00001": [1]}


def images_of(stem: str) -> list[dict[str, Any]]:
    return [place(f"{stem}.tar", n, f"{stem}{n}") for n in range(5)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for stem, captions in CAPTIONS.items():
        keys = [image["key"] for image in images_of(stem)]
        layout = pa.schema([("caption", pa.string()), ("key", pa.string()), ("tags", pa.list_(pa.string()))])
        table = pa.table([captions, keys, [["t"]] * 5], schema=layout.with_metadata({"owner": "us"}))
        folder.mkdir(exist_ok=True)
        pq.write_table(table, folder / f"{stem}.parquet", row_group_size=2, compression="gzip")
        members = [(f"{key}.{end}", f"{end} of {key}".encode() * 200) for key in keys for end in ("json", "png", "txt")]
        write_tar(folder / f"{stem}.tar", members)
        (folder / f"{stem}_stats.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `data`; read only."""
    rows = [
        row(f"{stem}.parquet", n, caption, images_of(stem)[n])
        for stem, captions in CAPTIONS.items()
        for n, caption in enumerate(captions)
    ]
    images = [image for stem in CAPTIONS for image in images_of(stem)]
    return write_run(tmp_path_factory.mktemp("audited") / "run", rows, [reproduced("a cat", images[0], 0.9)], images)


@pytest.fixture(scope="module")
def exclusions(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of the run by the default policy, elsewhere than those that a test writes into the run."""
    return Path(write_exclusions(run, out=str(tmp_path_factory.mktemp("listed") / "exclusions.parquet")).path)


@pytest.fixture
def dropping(exclusions: Path, tmp_path: Path) -> str:
    """A copy of the exclusions that a test may change."""
    return str(shutil.copy(exclusions, tmp_path))


def test_a_folder_of_captions_and_tars_is_copied_without_what_is_dropped(
    data: Path, dropping: str, tmp_path: Path
) -> None:
    counts, said = cleaned(dropping, data, tmp_path / "clean")
    assert counts == Counts(20, 6, 14, 6)
    assert sorted(path.name for path in (tmp_path / "clean").iterdir()) == [
        "00000.parquet",
        "00000.tar",
        "00001.parquet",
        "00001.tar",
    ]
    assert captions_of(tmp_path / "clean/00000.parquet") == ["a dog", "a fox", "a cow"]
    assert captions_of(tmp_path / "clean/00001.parquet") == ["a bee", "an ant", "a wasp", "an owl"]
    ends = ("json", "png", "txt")
    assert members_of(tmp_path / "clean/00000.tar") == [f"00000{n}.{end}" for n in (1, 2, 4) for end in ends]
    assert said == [
        "00000.parquet: 5 rows in, 2 dropped, 3 out",
        "00000.tar: 5 samples in, 2 dropped, 3 out",
        "00001.parquet: 5 rows in, 1 dropped, 4 out",
        "00001.tar: 5 samples in, 1 dropped, 4 out",
        "4 files: 20 rows and samples in, 6 dropped, 14 out; every exclusion for these files was applied once",
        f"2 files were not part of the audit and are not copied, such as {data}/00000_stats.json",
    ]


def test_dedup_leaves_the_first_row_and_its_sample(data: Path, run: Path, tmp_path: Path) -> None:
    counts, _ = cleaned(write_exclusions(run, "dedup").path, data, tmp_path / "clean")
    assert counts == Counts(20, 4, 16, 6)
    assert captions_of(tmp_path / "clean/00000.parquet") == ["a cat", "a dog", "a fox", "a cow"]
    assert "000000.png" in members_of(tmp_path / "clean/00000.tar")
    assert "a cat" not in captions_of(tmp_path / "clean/00001.parquet")


def test_a_parquet_copy_keeps_schema_metadata_row_groups_and_compression(
    data: Path, dropping: str, tmp_path: Path
) -> None:
    cleaned(dropping, data, tmp_path / "clean")
    before, after = (pq.ParquetFile(folder / "00000.parquet") for folder in (data, tmp_path / "clean"))
    assert after.schema_arrow.equals(before.schema_arrow, check_metadata=True)
    assert [after.metadata.row_group(n).num_rows for n in range(after.num_row_groups)] == [1, 1, 1]
    group = after.metadata.row_group(0)
    assert {group.column(n).compression for n in range(group.num_columns)} == {"GZIP"}


def test_a_tar_copy_keeps_every_other_byte(data: Path, dropping: str, tmp_path: Path) -> None:
    """Long names too, which take a header of their own: what stays is not written anew."""
    keys = [image["key"] for image in images_of("00000")]
    members = [(f"{key}.{'x' * 150 if n in (2, 3) else 'small'}.png", png(n)) for n, key in enumerate(keys)]
    write_tar(data / "00000.tar", members)
    cleaned(dropping, data, tmp_path / "clean")
    write_tar(tmp_path / "wanted.tar", [members[n] for n in (1, 2, 4)])
    copied, wanted = (
        path.read_bytes().rstrip(b"\0") for path in (tmp_path / "clean/00000.tar", tmp_path / "wanted.tar")
    )
    assert copied == wanted


def test_a_file_without_exclusions_is_copied_whole_and_the_others_may_be_left_out(
    data: Path, run: Path, tmp_path: Path
) -> None:
    path = write_exclusions(run).path
    table = pq.read_table(path)
    pq.write_table(table.filter(pa.array([name == "00000.parquet" for name in table["file"].to_pylist()])), path)
    counts, said = cleaned(path, [str(data / "00001.parquet")], tmp_path / "clean")
    assert counts == Counts(5, 0, 5, 0)
    assert pq.read_table(tmp_path / "clean/00001.parquet").equals(pq.read_table(data / "00001.parquet"))
    assert said[-1] == "2 exclusions refer to rows in 1 caption files that were not given"


def test_a_binary_or_dictionary_column_of_captions_is_compared_too(data: Path, dropping: str, tmp_path: Path) -> None:
    for stem, kind in (("00000", pa.binary()), ("00001", pa.dictionary(pa.int8(), pa.string()))):
        pq.write_table(pa.table({"caption": pa.array(CAPTIONS[stem]).cast(kind)}), data / f"{stem}.parquet")
    cleaned(dropping, [f"{data}/*.parquet"], tmp_path / "clean")
    assert pq.read_schema(tmp_path / "clean/00001.parquet").field("caption").type.value_type == pa.string()
    assert captions_of(tmp_path / "clean/00000.parquet") == [b"a dog", b"a fox", b"a cow"]


def test_a_caption_is_looked_for_among_those_of_its_row(data: Path, dropping: str, tmp_path: Path) -> None:
    listed = [["another", caption] for caption in CAPTIONS["00000"]]
    pq.write_table(pa.table({"caption": pa.array(listed, pa.list_(pa.string()))}), data / "00000.parquet")
    cleaned(dropping, [f"{data}/00000.parquet"], tmp_path / "clean")
    assert captions_of(tmp_path / "clean/00000.parquet") == [listed[row] for row in (1, 2, 4)]


def test_files_in_folders_are_known_by_the_end_of_their_path(tmp_path: Path) -> None:
    texts = {"0.parquet": "a cow", "x/0.parquet": "a cat", "y/0.parquet": "a dog"}
    for name, caption in texts.items():
        write_parquet(tmp_path / "data" / name, {"caption": [caption]})
    rows = [row(name, 0, caption) for name, caption in texts.items()]
    path = write_exclusions(write_run(tmp_path / "run", rows, [reproduced("a cat", place("0.tar", 0, "k"), 0.9)])).path
    cleaned(path, [f"{tmp_path}/data/**/*.parquet"], tmp_path / "all")
    assert {name: captions_of(tmp_path / "all" / name) for name in texts} == {
        "0.parquet": ["a cow"],
        "x/0.parquet": [],
        "y/0.parquet": ["a dog"],
    }
    cleaned(path, [f"{tmp_path}/data/x/0.parquet"], tmp_path / "one")
    assert captions_of(tmp_path / "one/x/0.parquet") == []


def shorter(data: Path) -> None:
    pq.write_table(pq.read_table(data / "00000.parquet")[:4], data / "00000.parquet")


def reordered(data: Path) -> None:
    pq.write_table(pq.read_table(data / "00000.parquet").take([1, 0, 2, 3, 4]), data / "00000.parquet")


def renamed(data: Path) -> None:
    pq.write_table(
        pq.read_table(data / "00000.parquet").rename_columns(["text", "key", "tags"]), data / "00000.parquet"
    )


def torn(data: Path) -> None:
    (data / "00000.parquet").write_bytes((data / "00000.parquet").read_bytes()[:-9])


def without_first_sample(data: Path) -> None:
    write_tar(data / "00000.tar", [(f"{image['key']}.png", b"x") for image in images_of("00000")[1:]])


def without_last_sample(data: Path) -> None:
    write_tar(data / "00000.tar", [(f"{image['key']}.png", b"x") for image in images_of("00000")[:4]])


def torn_tar(data: Path) -> None:
    (data / "00000.tar").write_bytes((data / "00000.tar").read_bytes()[:9000])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shorter, r"00000.parquet: has 4 rows, but had 5 when audited"),
        (reordered, r"00000.parquet: row 0: its caption is not the one that was audited"),
        (renamed, r"00000.parquet: no column 'caption'"),
        (torn, r"00000.parquet: cannot be copied"),
        (without_first_sample, r"00000.tar: sample 0: its key is 000001, not 000000"),
        (without_last_sample, r"00000.tar: has 4 images, but the audited file had 5"),
        (torn_tar, r"00000.tar: cannot be copied"),
    ],
)
def test_another_file_than_the_one_audited_is_an_error_and_leaves_no_copy(
    data: Path, dropping: str, tmp_path: Path, change: Any, message: str
) -> None:
    change(data)
    with pytest.raises(AuditError, match=message):
        cleaned(dropping, data, tmp_path / "clean")
    left = {path.name for path in tmp_path.glob("clean/*")} | {path.name for path in tmp_path.glob("clean/.*")}
    assert left <= {"00000.parquet"}
    assert "tar" in message or not left


def test_an_exclusion_that_no_row_meets_is_an_error(data: Path, dropping: str, tmp_path: Path) -> None:
    table = pq.read_table(dropping)
    pq.write_table(table.set_column(1, "row", pa.array([0, 99, 1])), dropping)
    with pytest.raises(AuditError, match=r"00000.parquet: only 1 of 2 exclusions were found"):
        cleaned(dropping, data, tmp_path / "clean")


def test_a_copy_whose_samples_do_not_add_up_is_not_kept(tmp_path: Path) -> None:
    """Without the sample between them, two samples of one key become one."""
    write_tar(tmp_path / "0.tar", [("a.png", b"1"), ("b.png", b"2"), ("a.png", b"3")])
    images = [place("0.tar", n, key) for n, key in enumerate("aba")]
    run = write_run(
        tmp_path / "run", [row("0.parquet", 0, "a cat", images[1])], [reproduced("a cat", images[1], 0.9)], images
    )
    with pytest.raises(AuditError, match=r"0.tar: the counts do not add up: 3 samples in, 1 dropped, 1 out"):
        cleaned(write_exclusions(run).path, tmp_path / "0.tar", tmp_path / "clean")
    assert list((tmp_path / "clean").iterdir()) == []


def test_nothing_is_overwritten(data: Path, dropping: str, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in data.iterdir()}
    with pytest.raises(UsageError, match=r"data/00000.parquet: already exists"):
        cleaned(dropping, data, data)
    (tmp_path / "clean").mkdir()
    (tmp_path / "clean/00001.tar").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"clean/00001.tar: already exists"):
        cleaned(dropping, data, tmp_path / "clean")
    assert {path: path.read_bytes() for path in data.iterdir()} == before
    assert [path.name for path in (tmp_path / "clean").iterdir()] == ["00001.tar"]


def test_a_data_set_that_was_not_audited_is_wrong_usage(data: Path, dropping: str, tmp_path: Path) -> None:
    (data / "00000.parquet").rename(data / "other.parquet")
    with pytest.raises(UsageError, match=r"other.parquet: was not part of the audit"):
        cleaned(dropping, data, tmp_path / "clean")
    with pytest.raises(UsageError, match=r"missing.parquet: no such file"):
        cleaned(dropping, data / "missing.parquet", tmp_path / "clean")
    with pytest.raises(UsageError, match=r"stats.json: was not part of the audit"):
        cleaned(dropping, data / "00000_stats.json", tmp_path / "clean")
    write_parquet(tmp_path / "again/00001.parquet", {"caption": CAPTIONS["00001"]})
    with pytest.raises(UsageError, match=r"is 00001.parquet of the audit, and so is"):
        cleaned(dropping, [str(data / "00001.parquet"), str(tmp_path / "again")], tmp_path / "clean")


def test_a_file_that_is_no_exclusions_file_is_wrong_usage(data: Path, dropping: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not an exclusions file"):
        cleaned(str(data / "00000.parquet"), data, tmp_path / "clean")
    table = pq.read_table(dropping)
    for changed, message in (
        (pa.concat_tables([table, table[:1]]), "names a row of 00000.parquet twice"),
        (table.set_column(6, "action", pa.array(["burn"] * len(table))), "action is drop or keep, not burn"),
    ):
        pq.write_table(changed, dropping)
        with pytest.raises(UsageError, match=message):
            cleaned(dropping, data, tmp_path / "clean")


def test_a_tar_of_unpaired_captions_is_refused_and_not_copied_whole(data: Path, tmp_path: Path) -> None:
    rows = [row("00000.parquet", n, caption) for n, caption in enumerate(CAPTIONS["00000"])]
    images = images_of("00000")
    run = write_run(tmp_path / "run", rows, [reproduced("a cat", images[0], 0.9)], images)
    with pytest.raises(UsageError, match=r"00000.tar: no exclusion names a tar sample"):
        cleaned(write_exclusions(run).path, data / "00000.tar", tmp_path / "clean")


@settings(max_examples=40, deadline=None)
@given(
    captions=st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=30),
    group=st.integers(1, 7),
    data=st.data(),
)
def test_whatever_is_excluded_the_copies_hold_the_rest_in_order(captions: list[str], group: int, data: Any) -> None:
    chosen = data.draw(st.dictionaries(st.integers(0, len(captions) - 1), st.sampled_from(["drop", "keep"])))
    rest = [n for n in range(len(captions)) if chosen.get(n) != "drop"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pq.write_table(
            pa.table({"caption": captions, "n": range(len(captions))}), folder / "0.parquet", row_group_size=group
        )
        write_tar(folder / "0.tar", [(f"{n}.{end}", b"x" * n) for n in range(len(captions)) for end in ("png", "txt")])
        where = {"file": "0.parquet", "image_file": "0.tar"}
        listed = [
            where | {"row": n, "key": str(n), "caption_id": caption_id(captions[n]), "action": action, "image_row": n}
            for n, action in chosen.items()
        ]
        sizes = {"files": {"0.parquet": len(captions)}, "images": {"0.tar": len(captions)}}
        more = {"caption": "caption", "delimiter": None, "folders": {}, "shared": []}
        notes = {b"crossaudit": json.dumps(sizes | more).encode()}
        pq.write_table(pa.Table.from_pylist(listed, EXCLUSIONS.with_metadata(notes)), folder / "exclusions.parquet")
        files = [str(folder / "0.parquet"), str(folder / "0.tar")]
        counts, _ = cleaned(str(folder / "exclusions.parquet"), files, folder / "clean")
        dropped = len(captions) - len(rest)
        assert counts == Counts(2 * len(captions), 2 * dropped, 2 * len(rest), 2 * len(chosen))
        assert pq.read_table(folder / "clean/0.parquet")["n"].to_pylist() == rest
        assert members_of(folder / "clean/0.tar") == [f"{n}.{end}" for n in rest for end in ("png", "txt")]


def test_from_a_run_to_a_clean_data_set_on_the_command_line(data: Path, run: Path, tmp_path: Path) -> None:
    shown = crossaudit("exclusions", str(run), "--policy", "dedup", "--out", "ex.parquet", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "2 rows to drop, 1 to keep once; confirmed captions: 1, groups of rows: 1" in shown.stdout
    shown = crossaudit("clean", "ex.parquet", "data/*.parquet", "data/*.tar", "--out", "clean", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "4 files: 20 rows and samples in, 4 dropped, 16 out" in shown.stdout
    again = crossaudit("clean", "ex.parquet", "data", "--out", "clean", cwd=tmp_path)
    assert again.returncode == 2
    assert "already exists" in again.stderr
    assert "Traceback" not in again.stderr
    assert crossaudit("exclusions", str(run), "--policy", "forget").returncode == 2
