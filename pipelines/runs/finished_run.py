"""Open a finished run, to read it or to add to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from pydantic import ValidationError

from audit.errors import AuditError
from audit.record.ledger import Ledger
from pipelines.configuration.config import Config
from pipelines.configuration.settings import absolute
from pipelines.engine.manifest import NAME, Manifest, read


def recomputed(lost: Sequence[str]) -> str:
    """Say what a rerun of a finished run recomputes, given the files that it has lost."""
    if not lost:
        return "nothing is recomputed"
    files = "1 file is" if len(lost) == 1 else f"{len(lost):,} files are"
    return f"{files} missing and will be made again, such as {lost[0]}"


def whole_table(ledger: Ledger, name: str, columns: list[str] | None = None) -> pa.Table:
    """Read a table of a finished run. Raises AuditError if a part of it is damaged."""
    ledger.check(name)
    return pa.concat_tables([part for _, part in ledger.each(name, columns)])


def on_this_machine(config: Config) -> Config:
    """Return the configuration of a run for one worker here: on the CPU if the run used GPUs and there is none."""
    import torch

    if not config.engine.gpus_per_worker or torch.cuda.is_available():
        return config
    return config.model_copy(update={"engine": config.engine.model_copy(update={"gpus_per_worker": 0})})


def finished(uri: str) -> tuple[Ledger, Manifest, Config]:
    """Open the finished run at a path or URI.

    Returns:
        The run's tables, its manifest, and its configuration with the dtype that the run used.

    Raises:
        AuditError: There is no run, it is not finished, or it was made by an incompatible version.
    """
    ledger, data = Ledger(absolute(uri, Path.cwd())), read(uri)
    if data.kind == "index":
        raise AuditError("this is an index, not a run", where=ledger.uri, hint="Pass the folder of a run: its `out`.")
    if data.finished is None:
        raise AuditError("the run is not finished", where=ledger.uri, hint="Use `crossaudit run` to resume it.")
    try:
        config = Config.model_validate(data.resolved).model_copy(update={"out": ledger.uri})
    except ValidationError as error:
        what = f"its configuration does not fit this version of crossaudit: {error.errors()[0]['msg']}"
        hint = "Use the version that the manifest names, or audit again with another --out."
        raise AuditError(what, where=f"{ledger.uri}/{NAME}", hint=hint) from error
    manifest = Manifest.open(ledger, config, data.config)
    engine = config.engine.model_copy(update={"dtype": data.dtype or config.engine.dtype})
    return ledger, manifest, config.model_copy(update={"engine": engine})
