"""A screen table of the control captions that was computed before: of `audit.screen`, or of an earlier run."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit.duplicates.captions import caption_id
from audit.errors import AuditError
from audit.schema import METADATA_KEY
from pipelines.reading import precomputed

CAPTIONS = ["a lamp", "a river", "a coat"]


def table(*, by: str = "caption", seeds: str = "[0]") -> pa.Table:
    """Two captions, the first one twice, as in `audit.screen` (caption), control_screen (both) and screen of a run."""
    texts = ["a river", "a lamp", "a river"]
    columns = {"seed": [0, 0, 0], "noise_magnitude": [1.0, 2.0, 1.0], "status": ["ok"] * 3}
    if by in ("caption", "both"):
        columns = {"caption": texts} | columns
    if by in ("caption_id", "both"):
        columns = {"caption_id": [caption_id(text) for text in texts], "caption_group": texts} | columns
    return pa.table(columns).replace_schema_metadata({METADATA_KEY: f'{{"seeds": {seeds}}}'})


@pytest.mark.parametrize("by", ["caption", "both", "caption_id"])
@pytest.mark.parametrize("folder", [False, True])
def test_it_is_read_whatever_knows_its_captions(tmp_path: Path, by: str, folder: bool) -> None:
    path = tmp_path / "control_screen" / "00000.parquet"
    path.parent.mkdir()
    pq.write_table(table(by=by), path)
    given = str(path.parent if folder else path)
    precomputed.check(given, "noise_magnitude", [0])
    found = precomputed.read(given, CAPTIONS)
    assert found.select(["caption", "noise_magnitude"]).to_pylist() == [
        {"caption": "a lamp", "noise_magnitude": 2.0},
        {"caption": "a river", "noise_magnitude": 1.0},
    ]
    assert METADATA_KEY in found.schema.metadata
    assert not {"caption_id", "caption_group"} & set(found.column_names)


def test_what_is_missing_is_named_from_the_schema_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "screen.parquet")
    pq.write_table(table().drop_columns(["caption", "noise_magnitude"]), path)
    with pytest.raises(AuditError, match=r"no column caption \(or caption_id\), noise_magnitude; there is: seed"):
        precomputed.check(path, "noise_magnitude", [0])
    pq.write_table(table().replace_schema_metadata(None), path)
    with pytest.raises(AuditError, match="does not say what it depends on"):
        precomputed.check(path, "noise_magnitude", [0])
    pq.write_table(table(seeds="[7]"), path)
    with pytest.raises(AuditError, match=r"has the seeds \[7\], screen.seeds are \[0\]"):
        precomputed.check(path, "noise_magnitude", [0])
