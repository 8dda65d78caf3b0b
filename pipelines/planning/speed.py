"""How fast one worker is at each kind of work, in FLOP/s: measured by a probe, or assumed."""

from __future__ import annotations

from dataclasses import dataclass

from audit.costs.flops import GenerationCost, ScreenCost, embedding_cost, generation_cost, screen_cost
from audit.costs.meta_networks import outline_embedder
from audit.duplicates import cells
from pipelines.configuration.config import Config
from pipelines.engine.models import outline
from pipelines.planning.probing import BLOCK, FEW, MORE, QUERIES, SpeedProbe
from pipelines.reading.local_copies import fetched

# Pictures of 512 x 512 that a core decodes from JPEG and makes inputs of SSCD in a second (docs/design.md, section 8),
# and FLOP/s of a core in the search, with the reading of vectors, and in the clusters (docs/evidence.md, "Search").
DECODED, SEARCHED, CLUSTERED = 200, 4.1e10, 1.3e11
# Beside a whole picture its region is compared, and those of its neighbours.
REGIONS = 6


@dataclass(frozen=True)
class Costs:
    """FLOPs of the configured models, without their weights: `screen` by the model and by its reference; `embed`, and
    the `widths` of vectors, by embedder, the one that decides first."""

    screen: tuple[ScreenCost, ...]
    generation: GenerationCost
    embed: tuple[int, ...]
    widths: tuple[int, ...]

    def screened(self, captions: int, seeds: int, calls: int) -> int:
        """Of so many captions, in so many calls of `audit.screen`."""
        return sum(
            captions * (cost.text + seeds * cost.row) + (calls * (cost.text + seeds * cost.null) if cost.null else 0)
            for cost in self.screen
        )

    def generated(self, captions: int, seeds: int, steps: int) -> int:
        return captions * (self.generation.text + seeds * self.generation.of(steps))

    def matched(self, generations: int) -> int:
        """Of generations that are compared with their neighbours, regions too; without the search."""
        return generations * (sum(self.embed) + REGIONS * self.embed[0]) if self.embed else 0

    def searched(self, generations: int, images: int) -> int:
        """Of an exact search of all images for each generation."""
        return sum(2 * width * generations * images for width in self.widths)

    def clustered(self, images: int, index: str) -> int:
        """Of the comparison of each image with all before it, or (ivf) with those that share a list with it."""
        products = images * images // 2 if index == "exact" else cells.products(images)
        return 2 * self.widths[0] * products if self.widths else 0


def costs_of(config: Config) -> Costs:
    """Raises AuditError where a model is missing or not supported."""
    model, *others = (outline(files) for files in (config.model, config.reference_model) if files)
    named = config.confirm.embedders if config.images else []
    networks = [config.embedder(name).network() for name in named]
    embedders = [outline_embedder(**network | {"weights": fetched(network["weights"])}) for network in networks]
    return Costs(
        tuple(screen_cost(each, config.screen.detectors) for each in (model, *others)),
        generation_cost(model, config.generate.guidance_scale, config.generate.detectors),
        tuple(map(embedding_cost, embedders)),
        tuple(embedder.width for embedder in embedders),
    )


@dataclass(frozen=True)
class Speed:
    """FLOP/s of one worker: screening, a step of a generation, the rest of it (text, picture, PNG), embedding (with the
    reading and decoding of pictures), searching and clustering vectors (on its cores)."""

    screen: float
    step: float
    rest: float
    embed: float
    search: float
    cluster: float

    def generating(self, costs: Costs, captions: int, seeds: int, steps: int) -> float:
        """Seconds of a worker."""
        cost = costs.generation
        rest = captions * (cost.text + seeds * cost.decode)
        return captions * seeds * steps * cost.step / self.step + rest / self.rest


def measured(probe: SpeedProbe, costs: Costs, config: Config) -> Speed:
    few, more = (part.seconds / part.units for part in (probe.few, probe.more))
    # Of two measurements of a small model the longer one may be the shorter.
    step = max((more - few) / (MORE - FEW), 0.01 * few)
    rest = max(few - FEW * step, 0.01 * few)
    cost = costs.generation
    search = cluster = embed = 1.0
    if probe.embed and probe.search and probe.cluster:
        embed = probe.embed.units * sum(costs.embed) / probe.embed.seconds
        search = 2 * costs.widths[0] * QUERIES * BLOCK * probe.search.units / probe.search.seconds
        cluster = 2 * costs.widths[0] * BLOCK * BLOCK * probe.cluster.units / probe.cluster.seconds
    screened = costs.screened(probe.screen.units, len(config.screen.seeds), 1)
    return Speed(
        screened / probe.screen.seconds, cost.step / step, (cost.text + cost.decode) / rest, embed, search, cluster
    )


def assumed(tflops: float, costs: Costs, config: Config) -> Speed:
    """Where one GPU (or worker without one) sustains so many TFLOP/s; what is done on its cores is that of ours."""
    cores, speed = config.engine.cpus_per_worker, 1e12 * tflops * (config.engine.gpus_per_worker or 1)
    embed = sum(costs.embed) / max(sum(costs.embed) / speed, 1 / (DECODED * cores))
    return Speed(speed, speed, speed, embed, SEARCHED * cores, CLUSTERED * cores)
