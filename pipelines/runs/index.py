"""Build an index of the training images that many audits can share."""

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
    """Build an index, or resume building it.

    An index is a run that ends after the stage embed. With `index.type: ivf` it also has inverted files.

    Args:
        config: The resolved configuration.
        given: The configuration as the user gave it, for the manifest.
        out: Where to write the index (default: `index.path`).
        progress: Where to show progress (default: standard error).

    Returns:
        The path or URI of the index.

    Raises:
        UsageError: There is no output path, or the configuration has no images.
    """
    from pipelines.reading import input_files
    from pipelines.runs.preflight import check_out
    from pipelines.stages import embed, search
    from pipelines.steps import image_list

    path = out or config.index.path
    if path is None:
        raise UsageError("no output path: pass --out or set `index.path`")
    if config.images is None:
        raise UsageError("there are no images to index", hint="Set `images` in the configuration.")
    config = config.model_copy(update={"out": path, "index": Index(type=config.index.type)})
    check_out(path)
    files = input_files.find_images(config)
    ledger = Ledger(path)
    manifest = Manifest.open(ledger, config, given, kind="index")
    run = Run(config, ledger, manifest, progress or Reporter())
    if manifest.finished:
        run.progress.say(f"{path} already holds this index, finished; only what is missing is computed")
    with run:
        if not manifest.finished:
            run.workers(tuple(config.confirm.embedders))
        manifest.inputs(input_files.prints("images", files))
        image_list.list_images(run, files)
        embed.run(run)
        search.run(run)
        manifest.finish()
    return path
