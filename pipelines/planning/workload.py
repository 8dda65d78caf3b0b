"""Estimate the work of each stage of an audit, its time on one worker and its disk space. These are upper bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from audit.duplicates import cells
from audit.schema import DETECTOR_COLUMNS
from pipelines.configuration.config import Config
from pipelines.planning.speed import Costs, Speed
from pipelines.reading.counting import Count
from pipelines.reading.slices import SLICE_ROWS
from pipelines.steps import generation, near_duplicates
from pipelines.steps.image_search import NEIGHBOURS
from pipelines.steps.input_rows import BUCKET_ROWS
from pipelines.tables import selection
from pipelines.tables.blocks import BLOCK

# Rows per second that a worker ingests: docs/evidence.md, "Ingest".
TAKEN_IN = 32_000
# Screens per caption for the perturbation margin: eight variants, and the caption itself.
PERTURBED = 9
# Bytes on disk, after zstd: per id, per letter of a caption, per pixel of a PNG, per value of a vector;
ID, LETTER, PIXEL, VALUE = 18, 0.58, 1.6, 1.72
# per hash of an image file, with a key and a number;
HASHED = 48
# and for everything else per input row, caption, verdict, image, generation and match.
ROW, CAPTION, VERDICT, IMAGE, GENERATION, MATCH = 40, 200, 130, 105, 400, 30


@dataclass(frozen=True)
class Line:
    """The work of one stage.

    Attributes:
        stage: The name of the stage.
        units: Number of units.
        unit: The plural noun for the units.
        shards: Number of shards.
        flops: FLOPs per unit; None if the stage runs no network.
        seconds: Seconds on one worker.
        disk: Bytes on disk.
    """

    stage: str
    units: int
    unit: str
    shards: int
    flops: float | None
    seconds: float
    disk: float


@dataclass(frozen=True)
class Workload:
    """The work of an audit, computed from its inputs, its costs and the speed of a worker.

    Attributes:
        config: The resolved configuration.
        rows: Input rows.
        images: Training images, if there are any.
        captions: Maximum number of distinct captions.
        control_captions: Number of control captions.
        costs: FLOPs of the models.
        speed: Speed of one worker.
    """

    config: Config
    rows: Count
    images: Count | None
    captions: int
    control_captions: int
    costs: Costs
    speed: Speed

    def lines(self) -> list[Line]:
        """Return the stages that take time, in order."""
        made = self.config.generate.seeds
        purposes = [self.selected]
        if self.images is not None:
            purposes.append(min(self.control_captions, self.config.confirm.control_captions))
            if self.config.calibration.pairs is not None:
                purposes.append(self.config.confirm.control_captions // 2)
        found = [self._ingest()]
        if self.images is not None:
            found += [self._embed(self.images), self._cluster(self.images)]
        found += self._screens()
        found.append(self._generate("generate", purposes, len(made)))
        if self.images is not None:
            found.append(self._confirm(self.images, purposes, len(made)))
        return found

    def fresh(self, confirmed: int) -> Line | None:
        """Return the work for the fresh seeds of `confirmed` captions, or None if there are no fresh seeds."""
        seeds = self.config.confirm.fresh_seeds
        if self.images is None or not seeds:
            return None
        made, found = self._generate("fresh", [confirmed], seeds), self._confirm(self.images, [confirmed], seeds)
        flops = (made.flops or 0) + (found.flops or 0)
        seconds, disk = made.seconds + found.seconds, made.disk + found.disk
        return Line("fresh seeds", made.units, made.unit, made.shards + found.shards, flops, seconds, disk)

    @property
    def selected(self) -> int:
        """Number of captions to generate: the budget, and the audit sample of the others."""
        chosen = self.config.select
        return min(self.captions, selection.allowed(chosen.budget, self.captions) + chosen.audit_sample)

    def _ingest(self) -> Line:
        disk = self.rows.rows * ROW + self.captions * (CAPTION + 2 * LETTER * self.rows.length)
        shards, seconds = _parts(self.captions, SLICE_ROWS), self.rows.rows / TAKEN_IN
        return Line("ingest", self.rows.rows, "rows", shards, None, seconds, disk)

    def _embed(self, images: Count) -> Line:
        """Return the work of the stage embed. It takes no time if the vectors come from an index."""
        count, flops = images.rows, sum(self.costs.embed)
        shards = images.files * _parts(_parts(count, images.files), self.config.engine.shard_rows)
        seconds = 0.0 if self.config.index.path else count * flops / self.speed.embed
        disk = count * sum(VALUE * width + IMAGE for width in self.costs.widths)
        return Line("embed", count, "images", shards, flops, seconds, disk)

    def _cluster(self, images: Count) -> Line:
        """Return the work of the stage cluster. With ivf, every cell holds copies of its vectors until it is done."""
        count, index = images.rows, self.config.index.type
        flops, copied, shards = self.costs.clustered(count, index), 0.0, _parts(count, BLOCK)
        if index == "ivf":
            shards = _parts(count, near_duplicates.BLOCK) + len(near_duplicates.ranges_of(count))
            copied = min(cells.EACH, cells.cells_for(count)) * VALUE * self.costs.widths[0]
        disk = count * (2 * ID + 8 + HASHED + copied)
        return Line("cluster", count, "images", shards, flops / max(1, count), flops / self.speed.cluster, disk)

    def _screens(self) -> list[Line]:
        size, seeds = self.config.engine.shard_rows, len(self.config.screen.seeds)
        followed = 0 if self.config.calibration.screen else self.control_captions
        buckets = _parts(self.captions, BUCKET_ROWS)
        shards = buckets * _parts(_parts(self.captions, buckets), size)
        row, verdict = seeds * self._row_bytes(), VERDICT + LETTER * self.rows.length
        planned = [
            ("calibrate", followed, _parts(followed, size), self.control_captions * row),
            ("screen", self.captions, shards, self.captions * (row + verdict)),
        ]
        if self.config.select.perturbation_margin:
            planned.append(("perturb", PERTURBED * self.selected, _parts(self.selected, size), self.selected * ID))
        found = []
        for stage, count, calls, disk in planned:
            flops = self.costs.screened(count, seeds, calls)
            seconds = flops / self.speed.screen
            found.append(Line(stage, count, "captions", calls, flops / max(1, count), seconds, disk))
        return found

    def _generate(self, stage: str, purposes: Sequence[int], seeds: int) -> Line:
        captions, steps, size = sum(purposes), self.config.generate.steps, self._generated_together()
        height, width = self.costs.generation.size
        count, flops = captions * seeds, self.costs.generated(captions, seeds, steps)
        shards = sum(_parts(each, size) for each in purposes)
        seconds = self.speed.generating(self.costs, captions, seeds, steps)
        disk = count * (PIXEL * height * width + GENERATION)
        return Line(stage, count, "generations", shards, flops / max(1, count), seconds, disk)

    def _confirm(self, images: Count, purposes: Sequence[int], seeds: int) -> Line:
        """Return the work to embed generations, search and compare. The search of an inverted file is not counted."""
        count, part = seeds * sum(purposes), seeds * self._generated_together()
        together = part * max(1, self.config.engine.shard_rows // part)
        matched = self.costs.matched(count)
        searched = self.costs.searched(count, images.rows) if self.config.index.type == "exact" else 0
        shards = sum(_parts(seeds * each, together) for each in purposes)
        seconds = matched / self.speed.embed + searched / self.speed.search
        disk = count * len(self.costs.embed) * NEIGHBOURS * MATCH
        return Line("confirm", count, "generations", shards, (matched + searched) / max(1, count), seconds, disk)

    def _generated_together(self) -> int:
        return max(1, self.config.engine.shard_rows // generation.SMALLER)

    def _row_bytes(self) -> float:
        """Return the bytes per caption and seed in the table `screen`. Floating-point numbers hardly compress."""
        kinds = {name: DETECTOR_COLUMNS[name] for name in self.costs.screen[0].values}
        single = {name: kind.value_type if pa.types.is_list(kind) else kind for name, kind in kinds.items()}
        values = sum(count * single[name].bit_width / 8 for name, count in self.costs.screen[0].values.items())
        return ID + 4 + len(self.costs.screen) * values


def _parts(count: int, size: int) -> int:
    return -(-count // max(1, size))
