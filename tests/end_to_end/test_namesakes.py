"""Which image files a file of captions is paired with."""

from __future__ import annotations

from pipelines.reading.files import File
from pipelines.steps.input_rows import _namesakes


def file(uri: str, name: str) -> File:
    return File(uri, name, 1)


def test_two_data_sets_with_the_same_shard_names_pair_within_their_folders() -> None:
    captions = [file(f"/d/{s}/00000.parquet", f"{s}/00000.parquet") for s in ("alpha", "beta")]
    images = [file(f"/d/{s}/00000.tar", f"{s}/00000.tar") for s in ("alpha", "beta")]
    assert _namesakes(captions, images) == {one: [other] for one, other in zip(captions, images, strict=True)}


def test_a_stem_alone_pairs_only_where_it_is_unique() -> None:
    one, two = (file(f"/c/{s}/0.parquet", f"{s}/0.parquet") for s in ("a", "b"))
    image = file("/i/0.tar", "0.tar")
    assert _namesakes([one], [image]) == {one: [image]}
    assert _namesakes([one, two], [image]) == {one: [], two: []}
