"""Read and write RUN/manifest.json: the inputs, settings and results of a run, kept up to date while it runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from audit.errors import AuditError, first_line
from audit.record.ledger import Ledger
from audit.record.manifest import NAME, RunManifest, missing, parse
from audit.record.manifest_entries import (
    Accounting,
    CalibrationEntry,
    Checkpoint,
    ClaimsEntry,
    FailureEntry,
    InputFile,
    JobEntry,
    ProgressEntry,
    RunSeeds,
    StageEntry,
)
from pipelines.configuration.config import Config
from pipelines.configuration.settings import absolute
from pipelines.console.numbers import Numbers, now
from pipelines.engine.ray_jobs import current_job

PACKAGES = (
    "crossaudit",
    "torch",
    "diffusers",
    "transformers",
    "open_clip_torch",
    "faiss-cpu",
    "pyarrow",
    "ray",
    "numpy",
)
# Keys that may differ when a run is resumed, because they do not change the results.
FREE = (
    "out",
    "report",
    "calibration.accept_unlike",
    *(f"engine.{name}" for name in ("workers", "retries", "shard_timeout_s", "address", "keep_work")),
)
Kind = Literal["audit", "index"]
_WRITE_EVERY = 5.0


class Manifest:
    """The manifest of a run: its content, `data`, and the file that stores it."""

    def __init__(self, ledger: Ledger, data: RunManifest) -> None:
        self._ledger, self.data, self._written, self._pause = ledger, data, 0.0, _WRITE_EVERY

    @classmethod
    def open(cls, ledger: Ledger, config: Config, given: Mapping[str, Any], kind: Kind = "audit") -> Manifest:
        """Open the manifest of the run to resume, or make a new one.

        A run that was refused before its first stage has no results yet, so its configuration may change.

        Args:
            ledger: The run.
            config: The configuration.
            given: The configuration as the user gave it.
            kind: "audit" or "index".

        Raises:
            AuditError: The run has another configuration or another kind, or the folder holds files but no run.
        """
        fresh, data = new(config, given, kind), stored(ledger)
        if data is None:
            if ledger.holds_anything():
                raise AuditError(
                    f"holds files but no {NAME}, so it is not a run", where=ledger.uri, hint="Choose another --out."
                )
            return cls(ledger, fresh)
        if data.kind != kind:
            raise AuditError(f"holds an {data.kind}, not an {kind}", where=ledger.uri, hint="Choose another --out.")
        if not data.stages and _changed(data.resolved, fresh.resolved):
            return cls(ledger, fresh.model_copy(update={"jobs": data.jobs}))
        _refuse_changes(data.resolved, fresh.resolved, ledger.uri)
        return cls(ledger, data.model_copy(update={"config": fresh.config, "resolved": fresh.resolved}))

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        return self.data.finished is not None

    def write(self) -> None:
        """Write the manifest to its file."""
        began = time.monotonic()
        self._ledger.write_bytes(NAME, self.data.to_json())
        self._written = time.monotonic()
        # The file grows with the number of parts, and no worker gets a shard while it is written. Spend at most a
        # thousandth of the time on it.
        self._pause = max(_WRITE_EVERY, 1000 * (self._written - began))

    def reload(self) -> None:
        """Reload the manifest if it was written since `open`. Raises AuditError if its configuration has changed."""
        written = stored(self._ledger)
        if written is None or (not written.stages and _changed(written.resolved, self.data.resolved)):
            return
        _refuse_changes(written.resolved, self.data.resolved, self._ledger.uri)
        self.data = written.model_copy(update={"config": self.data.config, "resolved": self.data.resolved})

    def begin(self) -> None:
        """Record that the run has started or resumed, and its cluster job if it has one."""
        self.data.failed = self.data.progress = None
        if job := current_job():
            self.data.jobs.append(JobEntry(id=job.id, address=job.address, began=now()))
        self.write()

    def progress(self, numbers: Callable[[], Numbers]) -> None:
        """Record the progress of the current step, at most once every few seconds."""
        if time.monotonic() - self._written > self._pause:
            known = self.data.progress.model_dump(exclude_unset=True) if self.data.progress else {}
            self.data.progress = ProgressEntry(**known | asdict(numbers()))
            self.write()

    def end(self, error: BaseException | None) -> None:
        """Record how the run ended. After a failure, the last progress is kept."""
        if error is None:
            self.data.progress = None
        else:
            what = first_line(error) if isinstance(error, Exception) else "interrupted"
            self.data.failed = FailureEntry(at=now(), message=what)
        self.write()

    def inputs(self, files: list[InputFile]) -> None:
        """Record the input files. Raises AuditError if a file has changed, appeared or gone since the run began."""
        before = {item.file: item.sha256 for item in self.data.inputs}
        now = {item.file: item.sha256 for item in files}
        if before:
            for name in sorted(before.keys() | now.keys()):
                if before.get(name) != now.get(name):
                    how = "is new" if name not in before else "is gone" if name not in now else "has changed"
                    raise AuditError(f"{how} since this run began", where=name, hint="Choose another --out.")
        self.data.inputs = files

    def slices(self, planned: Mapping[str, list[list[int]]]) -> None:
        """Record the number of rows and the slices of each caption file.

        A slice is a list of the number of rows, followed by its row groups or by its first and last byte.
        """
        for item in self.data.inputs:
            if item.kind == "captions":
                item.slices = planned[item.file]
                item.rows = sum(rows for rows, *_ in item.slices) if item.slices else None

    def model(self, name: str, sha256: Mapping[str, str]) -> None:
        """Record the weights and the dtype of a model. Raises AuditError if they have changed since the run began."""
        known = self.data.models.setdefault(name, dict(sha256))
        if name == "model":
            self.data.dtype = sha256["dtype"]
        for part, digest in sha256.items():
            if known.get(part) != digest:
                raise AuditError(
                    f"{name}: {part} has changed since this run began",
                    where=self._ledger.uri,
                    hint="Choose another --out.",
                )

    def checkpoint(self, name: str, about: Mapping[str, Any]) -> None:
        """Record the sampling parameters of a model, its batch sizes, and the files of its folder that are not read.

        Raises:
            AuditError: A sampling parameter has changed since the run began.
        """
        given = Checkpoint.model_validate(about)
        known = self.data.checkpoints.setdefault(name, given)
        known.batch_sizes.update(given.batch_sizes)
        for key, value in given.sampling.items():
            if known.sampling.get(key) != value:
                raise AuditError(
                    f"{name}: the sampling parameter {key} has changed since this run began",
                    where=self._ledger.uri,
                    hint="Choose another --out, or restore the scheduler file.",
                )

    def part(self, table: str, name: str, rows: int) -> None:
        """Record a part of a table and its number of rows. Working tables are not recorded."""
        if not table.startswith("_"):
            self.data.parts.setdefault(table, {})[f"{name}.parquet"] = rows

    def refresh(self, table: str) -> int:
        """Update the recorded parts of a table to those that exist, and return its number of rows."""
        known = self.data.parts.get(table, {})
        names = self._ledger.parts(table)
        counts = {f"{name}.parquet": known.get(f"{name}.parquet") or self._ledger.rows(table, name) for name in names}
        if not table.startswith("_"):
            self.data.parts.pop(table, None)
            self.data.parts |= {table: counts} if counts else {}
        return sum(counts.values())

    def lost(self) -> list[str]:
        """List the recorded parts that do not exist any more, as TABLE/PART."""
        return [
            f"{table}/{part}"
            for table, parts in sorted(self.data.parts.items())
            for part in sorted(parts.keys() - {f"{name}.parquet" for name in self._ledger.parts(table)})
        ]

    @contextmanager
    def stage(self, name: str) -> Iterator[StageEntry]:
        """Record one stage. The caller sets rows_in and rows_out; errors and seconds are set here."""
        entry = self.data.stages.setdefault(name, StageEntry(rows_in=0, rows_out=0, errors=0, seconds=0.0))
        began = time.monotonic()
        self.data.progress = ProgressEntry(stage=name, at=now())
        self.write()
        try:
            yield entry
        finally:
            entry.seconds = round(entry.seconds + time.monotonic() - began, 3)
            self.refresh("errors")
            # A stage may write errors of another stage: `confirm` generates the fresh seeds.
            errors = Counter(
                stage for _, part in self._ledger.each("errors", ["stage"]) for stage in part["stage"].to_pylist()
            )
            for stage, known in self.data.stages.items():
                known.errors = errors[stage]
            self.write()

    def reopen(self) -> None:
        """Mark the run as not finished, because it has work to do again."""
        self.data.finished = None

    def finish(self) -> None:
        """Mark the run as finished."""
        self.data.finished = self.data.finished or now()
        self.write()


def stored(ledger: Ledger) -> RunManifest | None:
    """Return the manifest of a ledger, or None. Raises AuditError if it is damaged or not the manifest of a run."""
    content = ledger.read_bytes(NAME)
    return None if content is None else parse(content, f"{ledger.uri}/{NAME}")


def read(uri: str) -> RunManifest:
    """Return the manifest of the run at a path or URI. Raises AuditError if there is none."""
    ledger = Ledger(absolute(uri, Path.cwd()))
    data = stored(ledger)
    if data is None:
        raise missing(ledger.uri)
    return data


def of_index(config: Config) -> dict[str, Any]:
    """Return the part of a configuration that concerns an index: what its vectors depend on, `engine` and `out`."""
    known = config.model_dump(mode="json")
    embedders = {name: config.embedder(name).network() for name in config.confirm.embedders}
    confirm = {"embedders": config.confirm.embedders} | embedders
    return {"images": known["images"], "confirm": confirm, "engine": known["engine"], "out": known["out"]}


def new(config: Config, given: Mapping[str, Any], kind: Kind = "audit") -> RunManifest:
    """Return the manifest of a run that has not begun.

    Args:
        config: The configuration.
        given: The configuration as the user gave it.
        kind: "audit" or "index".
    """
    return RunManifest(
        kind=kind,
        version=_version("crossaudit"),
        config=dict(given),
        resolved=config.model_dump(mode="json") if kind == "audit" else of_index(config),
        inputs=[],
        models={},
        checkpoints={},
        packages={name: _version(name) for name in PACKAGES},
        seeds=RunSeeds(
            screen=config.screen.seeds,
            generate=config.generate.seeds,
            fresh=config.fresh_seeds(),
            sample=config.select.seed,
            captions=config.captions.seed,
        ),
        dtype=None,  # known once a worker has loaded the model
        device="cuda" if config.engine.gpus_per_worker else "cpu",
        threads=config.engine.cpus_per_worker,
        calibration=CalibrationEntry(),
        thresholds={},
        claims=ClaimsEntry(),
        stages={},
        accounting=Accounting(input_rows=0, sampled_out=0),
        parts={},
        jobs=[],
        progress=None,
        failed=None,
        started=now(),
        finished=None,
    )


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the keys of the configuration that differ and that a result may depend on."""
    old, new = _flat(before), _flat(now)
    free = tuple(f"{name}." for name in FREE)
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return [key for key in keys if key not in FREE and not key.startswith(free)]


def _refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any], uri: str) -> None:
    """Raise AuditError that names the first key that has changed."""
    for key in _changed(before, now):
        raise AuditError(
            f"{key} was {_flat(before).get(key)!r} when this run began and is {_flat(now).get(key)!r} now",
            where=uri,
            hint="Choose another --out, or restore the configuration.",
        )


def _flat(node: Any, at: str = "") -> dict[str, Any]:
    if not isinstance(node, Mapping):
        return {at: node}
    return {k: v for key, value in node.items() for k, v in _flat(value, f"{at}.{key}" if at else key).items()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
