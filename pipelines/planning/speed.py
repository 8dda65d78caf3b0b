"""Estimate the speed of one worker at each kind of work in FLOP/s, from a measurement or an assumption."""

from __future__ import annotations

from dataclasses import dataclass

from audit.costs.flops import GenerationCost, ScreenCost, embedding_cost, generation_cost, screen_cost
from audit.costs.meta_networks import outline_embedder
from audit.duplicates import cells
from pipelines.configuration.config import Config
from pipelines.engine.models import outline
from pipelines.planning.probing import BLOCK, FEW, MORE, QUERIES, SpeedProbe
from pipelines.reading.local_copies import fetched

# Images of 512 x 512 pixels per second that a core decodes from JPEG and preprocesses for SSCD
# (docs/explanation/planning.md); FLOP/s of a core in the search, including reading vectors, and in clustering
# (docs/evidence.md, "Search").
DECODED, SEARCHED, CLUSTERED = 200, 4.1e10, 1.3e11
# Regions that are compared per picture, in addition to the whole picture: its own region and those of its neighbours.
REGIONS = 6


@dataclass(frozen=True)
class Costs:
    """The FLOPs of the configured models, computed without their weights.

    Attributes:
        screen: Costs of screening with the model and, if there is one, with the reference model.
        generation: Costs of a generation.
        embed: FLOPs per image for each embedder; the deciding embedder comes first.
        widths: Vector widths of the embedders, in the same order.
    """

    screen: tuple[ScreenCost, ...]
    generation: GenerationCost
    embed: tuple[int, ...]
    widths: tuple[int, ...]

    def screened(self, captions: int, seeds: int, calls: int) -> int:
        """Count the FLOPs of screening captions.

        Args:
            captions: Number of captions.
            seeds: Number of seeds per caption.
            calls: Number of calls of `audit.screen`; each runs the unconditional forwards once.

        Returns:
            FLOPs.
        """
        return sum(
            captions * (cost.text + seeds * cost.row)
            + (calls * (cost.text + seeds * cost.unconditional) if cost.unconditional else 0)
            for cost in self.screen
        )

    def generated(self, captions: int, seeds: int, steps: int) -> int:
        """Count the FLOPs of generating images.

        Args:
            captions: Number of captions.
            seeds: Number of images per caption.
            steps: Number of denoising steps per image.

        Returns:
            FLOPs.
        """
        return captions * (self.generation.text + seeds * self.generation.of(steps))

    def matched(self, generations: int) -> int:
        """Return the FLOPs of comparing generations and their regions with their neighbours, without the search."""
        return generations * (sum(self.embed) + REGIONS * self.embed[0]) if self.embed else 0

    def searched(self, generations: int, images: int) -> int:
        """Return the FLOPs of an exact search through all images for each generation."""
        return sum(2 * width * generations * images for width in self.widths)

    def clustered(self, images: int, index: str) -> int:
        """Return the FLOPs of comparing each image with all its predecessors or, for ivf, with those in its cells."""
        products = images * images // 2 if index == "exact" else cells.products(images)
        return 2 * self.widths[0] * products if self.widths else 0


def costs_of(config: Config) -> Costs:
    """Return the costs of a configuration. Raises AuditError if a model is missing or not supported."""
    model, *others = (outline(files) for files in (config.model, config.reference_model) if files)
    pixels = config.screen.pixels()
    named = config.confirm.embedders if config.images else []
    networks = [config.embedder(name).network() for name in named]
    embedders = [outline_embedder(**network | {"weights": fetched(network["weights"])}) for network in networks]
    return Costs(
        tuple(screen_cost(each.at_resolution(pixels), config.screen.detectors) for each in (model, *others)),
        generation_cost(model, config.generate.guidance_scale, config.generate.detectors),
        tuple(map(embedding_cost, embedders)),
        tuple(embedder.width for embedder in embedders),
    )


@dataclass(frozen=True)
class Speed:
    """The speed of one worker in FLOP/s.

    Attributes:
        screen: Screening.
        step: A step of a generation.
        rest: The rest of a generation: text, picture, PNG.
        embed: Embedding, including reading and decoding pictures.
        search: Searching vectors, on the worker's cores.
        cluster: Clustering vectors, on the worker's cores.
    """

    screen: float
    step: float
    rest: float
    embed: float
    search: float
    cluster: float

    def generating(self, costs: Costs, captions: int, seeds: int, steps: int) -> float:
        """Estimate how long a worker takes to generate images.

        Args:
            costs: The costs of the models.
            captions: Number of captions.
            seeds: Number of images per caption.
            steps: Number of denoising steps per image.

        Returns:
            Seconds.
        """
        cost = costs.generation
        rest = captions * (cost.text + seeds * cost.decode)
        return captions * seeds * steps * cost.step / self.step + rest / self.rest


def measured(probe: SpeedProbe, costs: Costs, config: Config) -> Speed:
    """Compute the speed of a worker from a measurement.

    Args:
        probe: The measurement.
        costs: The costs of the measured models.
        config: The resolved configuration.

    Returns:
        The speed in FLOP/s, by kind of work.
    """
    few, more = (part.seconds / part.units for part in (probe.few, probe.more))
    # With a small model, noise can make the longer generation take less time.
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
    """Return the speed of a worker whose GPU sustains `tflops`. Work on CPU cores is assumed to be as fast as on ours.

    Args:
        tflops: TFLOP/s that one GPU (or one worker without a GPU) sustains.
        costs: The costs of the configured models.
        config: The resolved configuration.

    Returns:
        The speed in FLOP/s, by kind of work.
    """
    cores, speed = config.engine.cpus_per_worker, 1e12 * tflops * (config.engine.gpus_per_worker or 1)
    embed = sum(costs.embed) / max(sum(costs.embed) / speed, 1 / (DECODED * cores))
    return Speed(speed, speed, speed, embed, SEARCHED * cores, CLUSTERED * cores)
