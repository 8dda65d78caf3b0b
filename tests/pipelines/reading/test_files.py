"""Files are found by path, glob and brace range; a changed one is known again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from audit.errors import AuditError, UsageError
from pipelines.reading.files import expand, find, fingerprint, neighbours


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{008..011}.tar", ["008.tar", "009.tar", "010.tar", "011.tar"]),
        ("{9..11}.tar", ["9.tar", "10.tar", "11.tar"]),
        ("{2..1}", ["2", "1"]),
        ("s3://b/{a,b}/{0..1}.csv", ["s3://b/a/0.csv", "s3://b/a/1.csv", "s3://b/b/0.csv", "s3://b/b/1.csv"]),
        ("{x,{1..2}}", ["x", "1", "2"]),
        ("{0..20..10}.csv", ["0.csv", "10.csv", "20.csv"]),
        ("{name}.csv", ["{name}.csv"]),
        ("{open.csv", ["{open.csv"]),
        (r"a\b.csv", [r"a\b.csv"]),
        ("plain.csv", ["plain.csv"]),
    ],
)
def test_braces_stand_for_choices_as_in_a_shell(pattern: str, expected: list[str]) -> None:
    assert expand(pattern) == expected


def test_a_range_of_absurd_length_is_wrong_usage() -> None:
    for pattern in ("{0..99999999999}", "{-99999999999..0}", "{x,{0..99999999999..2}}"):
        with pytest.raises(UsageError, match="more than 10,000,000 files"):
            expand(pattern)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.csv", ["a.csv"]),
        ("**/*.csv", ["a.csv", "x/b.csv", "x/y/c.csv"]),
        ("x/**", ["x/b.csv", "x/y/c.csv"]),
        ("*/[a-c].csv", ["x/b.csv"]),
        ("x/**/[!b].csv", ["x/y/c.csv"]),
    ],
)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_wildcard_stays_in_its_folder_and_two_stars_enter_all(
    tmp_path: Path, scheme: str, pattern: str, expected: list[str]
) -> None:
    for name in ("a.csv", "x/b.csv", "x/y/c.csv", "x/.hidden.csv", ".hidden/d.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find(f"{scheme}{tmp_path}/{pattern}", "captions")
    assert [file.uri for file in found] == [f"{scheme}{tmp_path}/{name}" for name in expected]


def test_two_stars_within_a_name_are_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="alone between slashes"):
        find(f"{tmp_path}/a**.csv", "captions")


def test_a_brace_range_finds_its_files_and_names_the_one_that_is_missing(tmp_path: Path) -> None:
    for name in ("00", "01", "02"):
        (tmp_path / f"{name}.csv").write_text("x")
    assert [file.name for file in find(f"{tmp_path}/{{00..02}}.csv", "captions")] == ["00.csv", "01.csv", "02.csv"]
    with pytest.raises(AuditError, match="03.csv: no such file"):
        find(f"{tmp_path}/{{00..03}}.csv", "captions")


def test_neighbours_are_the_files_of_the_same_folders(tmp_path: Path) -> None:
    for name in ("x/a.txt", "x/a.png", "x/below/b.png", "y/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    for root in (str(tmp_path), f"file://{tmp_path}"):
        files = [file for file in find(root, "captions") if file.name.startswith("x/a.")]
        assert neighbours(files[1:]) == files


def test_an_unknown_filesystem_is_named() -> None:
    with pytest.raises(AuditError, match="nowhere://x/0.csv: cannot be opened"):
        find("nowhere://x/0.csv", "captions")


def test_a_fingerprint_sees_both_ends_of_a_large_file(tmp_path: Path) -> None:
    path, content = tmp_path / "large", bytearray(3 << 20)
    path.write_bytes(content)
    before = fingerprint(str(path))
    for at in (0, len(content) - 1):
        content[at] = 1
        path.write_bytes(content)
        assert fingerprint(str(path)) != before
        content[at] = 0
    path.write_bytes(content + b"\0")
    assert fingerprint(str(path)) != before


def test_a_file_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "good.txt").touch()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xffd.txt")).touch()
    with pytest.raises(AuditError, match=r"not UTF-8: b'.*b\\xffd.txt'"):
        find(str(tmp_path / "*.txt"), "captions")
