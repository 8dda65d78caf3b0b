"""Find the clusters of the images of each caption's rows with a join that runs out of core."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from audit import schema
from audit.errors import AuditError, first_line
from audit.record.ledger import Ledger

# `cluster` is the cluster of the caption's images that occurs in the most dataset rows, and `rows` is their number: an
# image that many rows share is stored once, and a caption may have only one row. `cluster_size` is the number of images
# in the largest cluster of the caption's images.
CAPTION_CLUSTERS = pa.schema(
    [("caption_id", pa.string()), ("cluster", pa.string()), ("rows", pa.int64()), ("cluster_size", pa.int64())]
)
_SQL = """
with clustered as (select caption_id, cluster, cluster_size from rows join image_clusters using (image_id)),
     counted as (select cluster, count(*) as rows from clustered group by cluster)
select caption_id, first(cluster order by rows desc, cluster) as cluster, max(rows) as rows,
       max(cluster_size) as cluster_size
from clustered join counted using (cluster) group by caption_id order by caption_id
"""
# Share of the machine's memory that the join may use before it spills to disk.
MEMORY = "25%"


def each(ledger: Ledger, parts: Sequence[str]) -> Iterator[pa.Table]:
    """Yield a table (schema CAPTION_CLUSTERS) for each part of `captions`, in order.

    Captions without an image have nulls.

    Parts and their captions are sorted by id, so one pass over the join serves all parts.
    """
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as connection:
        try:
            for setting, value in {"memory_limit": MEMORY, "temp_directory": folder}.items():
                connection.execute(f"set {setting} = '{value}'")
            connection.register("rows", ledger.dataset("rows", schema.ROWS))
            connection.register("image_clusters", ledger.dataset("image_clusters", schema.IMAGE_CLUSTERS))
            batches = iter(connection.sql(_SQL).to_arrow_reader())
            known = CAPTION_CLUSTERS.empty_table()
            for part in parts:
                ids = ledger.read("captions", part, ["caption_id"])["caption_id"].combine_chunks()
                while len(ids) and (not len(known) or known["caption_id"][-1].as_py() < ids[-1].as_py()):
                    batch = next(batches, None)
                    if batch is None:
                        break
                    known = pa.concat_tables([known, pa.table(batch).cast(CAPTION_CLUSTERS)])
                clusters = known.take(pc.index_in(ids, value_set=known["caption_id"].combine_chunks()))
                yield clusters.set_column(0, "caption_id", ids)
                known = known.slice(len(clusters) - clusters["cluster"].null_count)
        except duckdb.Error as error:
            hint = (
                f"The join uses {MEMORY} of the memory and then the disk of {folder}. Set TMPDIR to use another disk."
            )
            what = f"rows and image_clusters cannot be joined: {first_line(error)}"
            raise AuditError(what, where=ledger.uri, hint=hint) from error
