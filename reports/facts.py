"""Read what the report shows from the views and the manifest of a run."""

from __future__ import annotations

from typing import Any

import duckdb
import numpy as np

from audit.record.manifest import RunManifest
from reports import figures

MAX_CASES, PER_FAMILY, MAX_NEAR = 100, 3, 20
COPY_BINS = ("1", "2-3", "4-9", "10-29", "30 up")
BINS = 60

# `deciding` is the similarity that reached its threshold: of the whole image if `whole`, else of a region.
CASES = """
with confirmed as (
    select v.*, c.seed, c.pixel_agreement, c.region, list_position(['high', 'medium', 'low'], risk) as rank,
           coalesce(family, caption_id) as kin,
           coalesce(v.verdict = 'verbatim' or c.similarity >= $limit, false) as whole,
           case when whole then coalesce(c.similarity, v.similarity)
                else coalesce(c.region_similarity, v.region_similarity) end as deciding
    from verdicts v left join copied_images c using (caption_id, image_id)
    where verdict in ('verbatim', 'partial')),
placed as (
    select *, row_number() over (partition by kin order by rank, deciding desc, caption_id) as place,
           count(*) over kindred as family_size, min(rank) over kindred as family_rank,
           max(deciding) over kindred as family_best
    from confirmed window kindred as (partition by kin)),
shown as (
    select * from placed where place <= $per_family
    order by family_rank, family_size > 1 desc, family_best desc, kin, place limit $most),
pictures as (
    select g.caption_id, g.seed, any_value(g.image) as image
    from generations g join shown using (caption_id, seed) where g.purpose = 'discover' group by all),
others as (
    select s.caption_id, list({embedder: m.embedder, similarity: m.similarity} order by m.embedder) as others
    from shown s join matches m using (caption_id, image_id, seed)
    where m.purpose = 'discover' and m.embedder <> $embedder group by all)
select shown.*, pictures.image as generation, e.image as training, e.file, e.row, e.key, others.others
from shown left join pictures using (caption_id) left join others using (caption_id)
left join (select image_id, any_value(image) as image, any_value(file) as file, any_value("row") as row,
                  any_value(key) as key from evidence group by all) e on e.image_id = shown.image_id
order by family_rank, family_size > 1 desc, family_best desc, kin, place
"""


class Facts:
    """Read the figures, counts and cases of one run."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, manifest: RunManifest) -> None:
        self.connection, self.manifest = connection, manifest
        self.settings, self.embedder = manifest.resolved, manifest.embedders[0]
        self.thresholds = manifest.deciding_thresholds

    def rows(self, sql: str, **values: Any) -> list[dict[str, Any]]:
        """Return the result of a query as one dict per row."""
        cursor = self.connection.execute(sql, values)
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def column(self, sql: str, **values: Any) -> np.ndarray:
        """Return the result of a query with one numeric column as an array."""
        return np.array([value for (value,) in self.connection.execute(sql, values).fetchall()], dtype=float)

    def verdicts(self) -> dict[str, dict[str, int]]:
        """Return the number of captions and dataset rows for each verdict that occurs."""
        sql = "select verdict, count(*) as captions, sum(row_count)::bigint as rows from verdicts group by all"
        return {row["verdict"]: row for row in self.rows(sql)}

    def confirmed(self) -> dict[str, int]:
        """Count the confirmed captions, their families and images, and the captions without support."""
        [row] = self.rows(
            """select count(*) as captions, count(distinct family) as families, count(distinct image_id) as images,
                      count(*) filter (support = 'not reproduced') as unsupported,
                      count(*) filter (support = 'untested') as untested
               from verdicts where verdict in ('verbatim', 'partial')"""
        )
        return row

    def near_misses(self) -> dict[str, Any]:
        """Return the number of near misses, and those with the highest similarity."""
        [row] = self.rows("select count(*) as captions from verdicts where near_miss")
        shown = self.rows(
            """select caption, row_count, image_id, similarity, region_similarity from verdicts where near_miss
               order by greatest(similarity, region_similarity) desc, caption_id limit $most""",
            most=MAX_NEAR,
        )
        return row | {"shown": shown}

    def failures(self) -> list[dict[str, Any]]:
        """Return what was not audited: errors by stage and kind, with one example each."""
        return self.rows(
            """select stage, kind, count(*) as errors, sum(rows)::bigint as rows,
                      count(*) filter (rows is null) as unknown, any_value(message) as example
               from errors group by stage, kind order by errors desc, stage, kind"""
        )

    def cases(self) -> list[dict[str, Any]]:
        """Return the confirmed captions to show, the most serious families first, with the bytes of both images."""
        limit = self.thresholds["verbatim"].value if self.thresholds else None
        return self.rows(CASES, embedder=self.embedder, limit=limit, per_family=PER_FAMILY, most=MAX_CASES)

    def figures(self) -> list[dict[str, str]]:
        """Return the figures that the run has data for, each with its title, image and caption."""
        drawn = [self._scores(), self._similarities(), self._copies()]
        return [figure for figure in drawn if figure]

    def _scores(self) -> dict[str, str] | None:
        both = "(select score from scores union all select score from control_scores)"
        [[low, high]] = self.connection.execute(f"select min(score), max(score) from {both}").fetchall()
        if low is None:
            return None
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
        counts, controls = (self._histogram(table, edges) for table in ("scores", "control_scores"))
        [[selected_from]] = self.connection.execute(
            "select min(score) from scores where selected_by = 'budget'"
        ).fetchall()
        return {
            "title": "Screening scores",
            "uri": figures.data_uri(figures.scores(edges, counts, controls, selected_from)),
            "text": "Scores of all captions, measured on pure noise before any image is generated. Captions are "
            "suspicious if they score higher than control captions, which the model never saw: without any "
            "memorization, both would look alike. We generate images for the highest-scoring captions.",
        }

    def _histogram(self, table: str, edges: np.ndarray) -> np.ndarray:
        """Count the scores of a table in each bin, [bins]."""
        counts = np.zeros(BINS)
        sql = f"""select least(floor((score - $low) / $width), $last)::int as bin, count(*) as n from {table}
                  where score is not null group by all"""
        for row in self.rows(sql, low=edges[0], width=edges[1] - edges[0], last=BINS - 1):
            counts[max(row["bin"], 0)] += row["n"]
        return counts

    def _similarities(self) -> dict[str, str] | None:
        sql = """select max(similarity) from matches
                 where embedder = $embedder and purpose = $purpose group by caption_id"""
        found, null = (self.column(sql, embedder=self.embedder, purpose=p) for p in ("discover", "control"))
        if not len(found):
            return None
        svg = figures.similarities(found, null, self.thresholds["verbatim"].value)
        return {
            "title": "Similarity to training images",
            "uri": figures.data_uri(svg),
            "text": "Similarity of each generated caption to its nearest training image. Captions that the model was "
            "never trained on are shown below the axis. From the threshold on, an image counts as a copy.",
        }

    def _copies(self) -> dict[str, str] | None:
        counts = {word: [0] * len(COPY_BINS) for word in ("verbatim", "partial", "unconfirmed")}
        sql = """select verdict, case when row_count < 2 then 0 when row_count < 4 then 1 when row_count < 10 then 2
                                      when row_count < 30 then 3 else 4 end as bin, count(*) as n
                 from verdicts where verdict in ('verbatim', 'partial', 'unconfirmed') group by all"""
        rows = self.rows(sql)
        if not rows:
            return None
        for row in rows:
            counts[row["verdict"]][row["bin"]] = row["n"]
        return {
            "title": "Verdicts by repetition of the caption",
            "uri": figures.data_uri(figures.copies(COPY_BINS, counts)),
            "text": "Verdicts of the generated captions, by the number of dataset rows that have the caption.",
        }
