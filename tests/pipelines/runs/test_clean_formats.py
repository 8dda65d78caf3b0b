"""Clean copies of every format that captions and images come in: the rest keeps its bytes, and pairs stay together."""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit.errors import AuditError, UsageError
from pipelines.runs.clean import write_clean_copies
from pipelines.writing.counts import Counts
from reports.exclusions import write_exclusions
from tests.support.cleaned import captions_of, cleaned, members_of
from tests.support.minimal import place, reproduced, row, write_run
from tests.support.toy import png, write_parquet, write_tar

TEXTS = ["a cat", "a dog", "a fox", "a cat", "a cow"]


def listed(tmp_path: Path, *names: str) -> str:
    """The exclusions of a run that read files of the same captions, of which `a cat` is to go."""
    rows = [row(name, number, text) for name in names for number, text in enumerate(TEXTS)]
    return write_exclusions(write_run(tmp_path / "run", rows, [reproduced("a cat", place("0.tar", 0, "k"), 0.9)])).path


def packed(name: str, content: bytes) -> bytes:
    if name.endswith(".zst"):
        return bytes(pa.compress(content, "zstd", asbytes=True))
    return {".gz": gzip.compress, ".bz2": bz2.compress}.get(Path(name).suffix, bytes)(content)


def unpacked(path: Path) -> bytes:
    with pa.input_stream(str(path), compression="zstd" if path.suffix == ".zst" else "detect") as stream:
        return stream.read()


MARK = b"\xef\xbb\xbf"
# (name, header, the bytes of each row)
LINES: list[tuple[str, bytes, list[bytes]]] = [
    ("0.txt", b"", [b"a cat\n", b"a dog\r\n", b"a fox\n", b"a cat\n", b"a cow"]),
    ("0.txt.gz", MARK, [b"a cat\n", b"a dog\n", b"a fox\n", b"a cat\n", b"a cow\n"]),
    ("0.jsonl", b"", [b'{"caption":  "%s", "n": [1,2]}\n' % text.encode() for text in TEXTS]),
    ("0.jsonl.zst", b"", [b'{"n": 1.50, "caption": "%s"}\n' % text.encode() for text in TEXTS]),
    ("0.ndjson.bz2", b"", [b'{"caption": "%s"}\n' % text.encode() for text in TEXTS]),
    (
        "0.csv",
        MARK + b"caption;url\r\n",
        [b'"a cat";x\r\n', b'a dog;"two\r\nlines; ""quoted"""\r\n', b"a fox;\r\n", b"a cat;y\r\n", b"a cow;z"],
    ),
    ("0.csv.gz", b"url,caption\n", [b'"u,v",a cat\n', b'"1",a dog\n', b"2,a fox\n", b"3,a cat\n", b"4,a cow\n"]),
    ("0.tsv", b"caption\turl\n", [b"a cat\tx,1\n", b"a dog\t2\n", b"a fox\t3\n", b"a cat\t4\n", b"a cow\t5\n"]),
]


@pytest.fixture(scope="module")
def exclusions(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The exclusions of a run that read all these files."""
    return listed(tmp_path_factory.mktemp("texts"), *(name for name, _, _ in LINES))


@pytest.mark.parametrize(("name", "header", "lines"), LINES, ids=[line[0] for line in LINES])
def test_text_keeps_every_byte_of_what_stays(
    exclusions: str, name: str, header: bytes, lines: list[bytes], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_bytes(packed(name, header + b"".join(lines)))
    counts, said = cleaned(exclusions, tmp_path / "data", tmp_path / "clean")
    assert counts == Counts(5, 2, 3, 2)
    assert unpacked(tmp_path / "clean" / name) == header + b"".join(lines[n] for n in (1, 2, 4))
    assert said[0] == f"{name}: 5 rows in, 2 dropped, 3 out"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a dog", "a cat", "a fox", "a cat", "a cow"], "row 0: its caption is not the one that was audited"),
        (["a cat", "a dog", "a fox", "a cat"], "has 4 rows, but had 5 when audited"),
    ],
)
def test_text_other_than_the_one_audited_is_an_error_and_leaves_no_copy(
    exclusions: str, lines: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/0.txt").write_text("\n".join(lines))
    with pytest.raises(AuditError, match=message):
        cleaned(exclusions, tmp_path / "data", tmp_path / "clean")
    assert not list(tmp_path.glob("clean/*")) + list(tmp_path.glob("clean/.*"))


def images_in(folder: Path, count: int = 5) -> list[dict[str, Any]]:
    """Image files `0.png` and so on, as the audit lists them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(png(number))
    return [place(f"{number}.png", 0, str(number)) for number in range(count)]


def run_of(tmp_path: Path, rows: list[dict[str, Any]], images: list[dict[str, Any]], **more: Any) -> str:
    run = write_run(tmp_path / "run", rows, [reproduced("a cat", images[0], 0.9)], images, **more)
    return write_exclusions(run).path


def test_of_a_kohya_folder_image_and_text_both_go_or_stay(tmp_path: Path) -> None:
    images = images_in(tmp_path / "data")
    for number, text in enumerate(TEXTS):
        (tmp_path / f"data/{number}.txt").write_text(f"{text}\n")
    (tmp_path / "data/notes.md").write_text("mine")
    rows = [row(f"{number}.txt", 0, text, images[number]) for number, text in enumerate(TEXTS)]
    counts, said = cleaned(run_of(tmp_path, rows, images), tmp_path / "data", tmp_path / "clean")
    assert counts == Counts(10, 4, 6, 4)
    kept = sorted(f"{number}.{end}" for number in (1, 2, 4) for end in ("png", "txt"))
    assert sorted(path.name for path in (tmp_path / "clean").iterdir()) == kept
    assert all((tmp_path / "clean" / name).read_bytes() == (tmp_path / "data" / name).read_bytes() for name in kept)
    assert said[0] == ".: 10 files in, 4 dropped, 6 out"
    assert "1 files were not part of the audit and are not copied, such as" in said[-1]


@pytest.mark.parametrize(("suffix", "order"), [(".txt", 1), (".caption", -1)], ids=["texts first", "images first"])
def test_the_texts_of_a_kohya_folder_may_be_given_apart_from_its_images(
    suffix: str, order: int, tmp_path: Path
) -> None:
    """A text has more lines than the one that was audited, and the images that it belongs to are in another pattern."""
    images = images_in(tmp_path / "data")
    for number, text in enumerate(TEXTS):
        (tmp_path / f"data/{number}{suffix}").write_text(f"{text}\nanother line\n")
    rows = [row(f"{number}{suffix}", 0, text, images[number]) for number, text in enumerate(TEXTS)]
    patterns = [str(tmp_path / f"data/*{suffix}"), str(tmp_path / "data/*.png")][::order]
    counts = write_clean_copies(run_of(tmp_path, rows, images), patterns, str(tmp_path / "clean"), lambda line: None)
    assert counts == Counts(10, 4, 6, 4)
    kept = sorted(f"{number}{end}" for number in (1, 2, 4) for end in (".png", suffix))
    assert sorted(path.name for path in (tmp_path / "clean").iterdir()) == kept
    assert all((tmp_path / "clean" / name).read_bytes() == (tmp_path / "data" / name).read_bytes() for name in kept)


def test_a_text_of_a_kohya_folder_that_has_changed_is_an_error(tmp_path: Path) -> None:
    images = images_in(tmp_path / "data", 1)
    (tmp_path / "data/0.txt").write_text("another")
    path = run_of(tmp_path, [row("0.txt", 0, "a cat", images[0])], images)
    with pytest.raises(AuditError, match="0.txt: its caption is not the one that was audited"):
        cleaned(path, tmp_path / "data", tmp_path / "clean")


def as_jsonl(path: Path) -> None:
    lines = [f'{{"file_name": "images/{n}.png", "caption": "{text}"}}\n' for n, text in enumerate(TEXTS)]
    path.write_text("".join(lines))


def as_csv(path: Path) -> None:
    path.write_text("file_name,caption\n" + "".join(f"images/{n}.png,{text}\n" for n, text in enumerate(TEXTS)))


def as_parquet(path: Path) -> None:
    write_parquet(path, {"file_name": [f"images/{n}.png" for n in range(5)], "caption": TEXTS})


@pytest.mark.parametrize(
    ("name", "write"),
    [("metadata.jsonl", as_jsonl), ("metadata.csv", as_csv), ("metadata.parquet", as_parquet)],
)
def test_an_imagefolder_keeps_its_layout_whatever_the_roots_of_captions_and_images(
    name: str, write: Callable[[Path], None], tmp_path: Path
) -> None:
    """The images were configured as `data/images`: the audit calls them by their base names."""
    images = images_in(tmp_path / "data/images")
    write(tmp_path / "data" / name)
    rows = [row(name, n, text, images[n], key=f"images/{n}.png") for n, text in enumerate(TEXTS)]
    path = run_of(tmp_path, rows, images)
    counts, _ = cleaned(path, [f"{tmp_path}/data", f"{tmp_path}/data/images"], tmp_path / "clean")
    assert counts == Counts(10, 4, 6, 4)
    assert sorted(path.name for path in (tmp_path / "clean/images").iterdir()) == ["1.png", "2.png", "4.png"]
    copy = tmp_path / "clean" / name
    text = str(pq.read_table(copy).to_pylist()) if copy.suffix == ".parquet" else copy.read_text()
    assert [number for number in range(5) if f"images/{number}.png" in text] == [1, 2, 4]


def test_images_of_the_same_name_in_several_folders_are_told_apart(tmp_path: Path) -> None:
    for folder in (".", "x"):
        images_in(tmp_path / "data" / folder, 2)
    images = [place(name, 0, Path(name).stem) for name in ("0.png", "1.png", "x/0.png", "x/1.png")]
    rows = [row("0.parquet", n, text, images[n]) for n, text in enumerate(["a cat", "a dog", "a fox", "a cow"])]
    path = run_of(tmp_path, rows, images)
    cleaned(path, [f"{tmp_path}/data/**/*.png"], tmp_path / "clean")
    found = sorted(str(path.relative_to(tmp_path / "clean")) for path in (tmp_path / "clean").rglob("*.png"))
    assert found == ["1.png", "x/0.png", "x/1.png"]


def test_a_folder_that_has_lost_an_image_is_an_error(tmp_path: Path) -> None:
    images = images_in(tmp_path / "data")
    path = run_of(tmp_path, [row("0.parquet", 0, "a cat", images[0])], images)
    (tmp_path / "data/3.png").unlink()
    with pytest.raises(AuditError, match="has 4 images, but had 5 when audited"):
        cleaned(path, tmp_path / "data", tmp_path / "clean")
    assert not (tmp_path / "clean").exists()


def test_a_parquet_file_with_captions_and_images_loses_each_row_once(tmp_path: Path) -> None:
    images = [place("0.parquet", number, str(number)) for number in range(5)]
    column = [{"bytes": png(number), "path": None} for number in range(5)]
    write_parquet(tmp_path / "data/0.parquet", {"image": column, "caption": TEXTS})
    rows = [row("0.parquet", n, text, images[n]) for n, text in enumerate(TEXTS)]
    read = {"file": "/x/0.parquet", "name": "0.parquet", "rows": 5, "sha256": "ab"}
    both = [read | {"kind": kind} for kind in ("captions", "images")]
    counts, said = cleaned(run_of(tmp_path, rows, images, inputs=both), tmp_path / "data", tmp_path / "clean")
    assert counts == Counts(5, 2, 3, 2)
    assert captions_of(tmp_path / "clean/0.parquet") == ["a dog", "a fox", "a cow"]
    assert len(said) == 2


def test_captions_and_images_in_files_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    """The images are in another order than the captions."""
    images = [place("0.parquet", number, str(number)) for number in range(5)]
    write_parquet(tmp_path / "captions/0.parquet", {"caption": TEXTS, "key": [str(4 - n) for n in range(5)]})
    write_parquet(tmp_path / "images/0.parquet", {"image": [png(n) for n in range(5)], "n": range(5)})
    rows = [row("0.parquet", n, text, images[4 - n]) for n, text in enumerate(TEXTS)]
    path = run_of(tmp_path, rows, [images[4], *images[:4]])
    both = [str(tmp_path / name) for name in ("captions", "images")]
    counts, _ = cleaned(path, both, tmp_path / "clean")
    assert counts == Counts(10, 4, 6, 4)
    assert captions_of(tmp_path / "clean/captions/0.parquet") == ["a dog", "a fox", "a cow"]
    assert pq.read_table(tmp_path / "clean/images/0.parquet")["n"].to_pylist() == [0, 2, 3]


def test_captions_and_images_in_one_tar_give_no_alarm(tmp_path: Path) -> None:
    images = [place("0.tar", number, str(number)) for number in range(5)]
    members = [
        (f"{n}.{end}", png(n) if end == "png" else TEXTS[n].encode()) for n in range(5) for end in ("png", "txt")
    ]
    write_tar(tmp_path / "data/0.tar", members)
    rows = [row("0.tar", n, text, images[n]) for n, text in enumerate(TEXTS)]
    read = {"file": "/x/0.tar", "name": "0.tar", "rows": 5, "sha256": "ab"}
    both = [read | {"kind": kind} for kind in ("captions", "images")]
    counts, said = cleaned(run_of(tmp_path, rows, images, inputs=both), tmp_path / "data", tmp_path / "clean")
    assert counts == Counts(5, 2, 3, 2)
    assert members_of(tmp_path / "clean/0.tar") == [f"{n}.{end}" for n in (1, 2, 4) for end in ("png", "txt")]
    assert said == [
        "0.tar: 5 samples in, 2 dropped, 3 out",
        "1 files: 5 rows and samples in, 2 dropped, 3 out; every exclusion for these files was applied once",
    ]


def test_a_tar_of_captions_alone_is_copied_too(tmp_path: Path) -> None:
    write_tar(tmp_path / "data/0.tar", [(f"{n}.txt", text.encode()) for n, text in enumerate(TEXTS)])
    rows = [row("0.tar", n, text, key=str(n)) for n, text in enumerate(TEXTS)]
    path = run_of(tmp_path, rows, [place("1.tar", 0, "k")])
    assert cleaned(path, tmp_path / "data", tmp_path / "clean")[0] == Counts(5, 2, 3, 2)


def test_images_of_unpaired_captions_are_refused_and_not_copied_whole(tmp_path: Path) -> None:
    images = images_in(tmp_path / "data")
    path = run_of(tmp_path, [row("0.parquet", 0, "a cat")], images)
    with pytest.raises(UsageError, match="no exclusion names a tar sample or an image"):
        cleaned(path, tmp_path / "data", tmp_path / "clean")
