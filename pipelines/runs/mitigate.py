"""Measure mitigation on the confirmed captions of a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from audit.errors import AuditError, UsageError
from pipelines.configuration.config import ClipOptions, Config
from pipelines.configuration.settings import absolute
from pipelines.console.progress import Reporter
from pipelines.engine.context import Run
from pipelines.runs.finished_run import finished

if TYPE_CHECKING:
    from audit.mitigation.serving import Setting

METHODS = (
    *(f"rescale:bos_scale={scale},keep={keep}" for keep in ("eos", "words", "all") for scale in (1.0, 1.25, 2.0, 4.0)),
    "padding",
    "attenuate",
    "delayed_guidance",
    "dilute",
)


@dataclass(frozen=True)
class Request:
    """The methods and captions to measure.

    Attributes:
        methods: Methods with their settings, as `audit.mitigation.methods.registry.parse` reads them (default: those of
            METHODS that have a meaning for the model).
        confirmed: Maximum number of confirmed captions.
        ordinary: Maximum number of captions that were not selected.
        seeds: Seeds (default: those of the run's `generate`).
        clip: An open_clip folder, for a run that has no CLIP.
        empty_pooled: As for `audit.mitigated`.
    """

    methods: Sequence[str] | None = None
    confirmed: int = 100
    ordinary: int = 50
    seeds: Sequence[int] | None = None
    clip: str | None = None
    empty_pooled: bool = False


def mitigate_run(uri: str, request: Request, progress: Reporter | None = None, log_level: str = "warning") -> pa.Table:
    """Measure mitigation on a finished run and rewrite its report.

    Args:
        uri: The path or URI of the run.
        request: What to measure.
        progress: Where to show progress (default: standard error).
        log_level: The lowest level that is logged to RUN/logs: debug, info, warning or error.

    Returns:
        A table of `schema.MITIGATION_SUMMARY`.

    Raises:
        UsageError: The request is invalid.
        AuditError: The run is not finished, has no confirmed captions, or lacks data that is needed.
    """
    from audit.mitigation.families import supported
    from audit.mitigation.methods.registry import parse
    from audit.mitigation.serving import to_measure
    from pipelines.engine.models import outline
    from pipelines.stages import mitigate, report
    from pipelines.steps.mitigation_captions import MitigationPlan

    settings = to_measure([parse(text) for text in request.methods or METHODS], request.empty_pooled)
    if request.confirmed < 1 or request.ordinary < 0:
        raise UsageError("captions must be at least 1 and ordinary at least 0", hint="Choose other numbers.")
    ledger, manifest, config = finished(uri)
    pipeline = outline(config.model).pipeline()
    family, denoiser = supported(pipeline)
    settings = with_a_meaning(settings, pipeline, chosen=request.methods is not None)
    seeds = _seeds(request.seeds, config.generate.seeds)
    if request.clip is not None:
        config = _with_clip(config, request.clip)
    with Run(config, ledger, manifest, progress or Reporter(), log_level) as run:
        if family.has_pooled(denoiser) and not request.empty_pooled:
            run.progress.say("mitigate: no method changes the pooled vector of a prompt; --empty-pooled replaces it")
        summary = mitigate.run(run, MitigationPlan(settings, request.confirmed, request.ordinary, seeds))
        report.run(run)
        run.finish()
    return summary


def with_a_meaning(settings: Sequence[Setting], pipeline: Any, *, chosen: bool) -> list[Setting]:
    """Leave out the settings that have no meaning for a pipeline.

    Args:
        settings: The settings.
        pipeline: The pipeline; its weights are not needed.
        chosen: Whether the user chose the settings, so that none may be left out.

    Returns:
        Those that have a meaning.

    Raises:
        UsageError: The pipeline has no pooled vector, but the settings replace it.
        AuditError: The pipeline cannot be mitigated, or not by a setting that was chosen.
    """
    from audit.mitigation.inference import check_mitigation

    kept = []
    for setting in settings:
        try:
            if setting.method is not None:
                check_mitigation(pipeline, setting.method, setting.empty_pooled)
            kept.append(setting)
        except AuditError as error:
            if chosen or isinstance(error, UsageError):
                raise
    return kept


def _seeds(given: Sequence[int] | None, default: Sequence[int]) -> list[int]:
    seeds = list(given or default)
    if len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**63 for seed in seeds):
        raise UsageError(f"invalid seeds {seeds}", hint="Pass distinct numbers from 0 to 2^63 - 1.")
    return seeds


def _with_clip(config: Config, clip: str) -> Config:
    if config.confirm.clip is not None:
        raise UsageError("the run has its own CLIP model", where=config.confirm.clip.weights, hint="Omit --clip.")
    if not Path(clip).is_dir():
        raise UsageError("no such folder", where=clip, hint="Pass a folder with an open_clip model.")
    embedder = ClipOptions(weights=absolute(clip, Path.cwd()))
    return config.model_copy(update={"confirm": config.confirm.model_copy(update={"clip": embedder})})
