"""`crossaudit index`: the vectors of the training images alone, for many audits to take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from audit.errors import UsageError
from audit.record.ledger import Ledger
from pipelines.configuration.config import Config, Index
from pipelines.console.progress import Reporter
from pipelines.engine.context import Run
from pipelines.engine.manifest import Manifest


def build_index(
    config: Config, given: Mapping[str, Any], out: str | None = None, progress: Reporter | None = None
) -> str:
    """Builds an index, or what is left of it, at `out` or `index.path`; returns where.

    An index is a run that ends with the stage embed and the inverted files that `index.type` may ask for. Raises
    UsageError where there is no place or there are no images.
    """
    from pipelines.reading import input_files
    from pipelines.runs.preflight import check_out
    from pipelines.stages import embed, search
    from pipelines.steps import image_list

    path = out or config.index.path
    if path is None:
        raise UsageError("where to?", hint="Set index.path in the configuration, or give --out.")
    if config.images is None:
        raise UsageError("there are no images to index", hint="Set `images` in the configuration.")
    config = config.model_copy(update={"out": path, "index": Index(type=config.index.type)})
    check_out(path)
    files = input_files.find_images(config)
    ledger = Ledger(path)
    manifest = Manifest.open(ledger, config, given, kind="index")
    run = Run(config, ledger, manifest, progress or Reporter())
    if manifest.finished:
        run.progress.say(f"{path} holds this very index, finished: what is there is not computed again")
    with run:
        if not manifest.finished:
            run.workers(tuple(config.confirm.embedders))
        manifest.inputs(input_files.prints("images", files))
        image_list.list_images(run, files)
        embed.run(run)
        search.run(run)
        manifest.finish()
    return path
