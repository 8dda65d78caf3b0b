"""RUN/manifest.json: what was audited, with what, and what came out. Kept true while the run goes on."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from audit.errors import AuditError, first_line
from audit.record.ledger import Ledger
from audit.record.manifest import missing, parse
from pipelines.configuration.config import Config
from pipelines.configuration.settings import absolute
from pipelines.console.progress import Numbers, now
from pipelines.engine.ray_jobs import current_job

NAME = "manifest.json"
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
# What every manifest has from its beginning.
KEYS = ("config", "resolved", "stages", "parts", "jobs", "progress", "failed", "started", "finished")
# What may differ when a run is resumed: it changes no result.
FREE = ("out", "report", "engine.workers", "engine.retries", "engine.shard_timeout_s", "engine.address")
_WRITE_EVERY = 5.0


class Manifest:
    """The manifest as a dict, `data`, and its file."""

    def __init__(self, ledger: Ledger, data: dict[str, Any]) -> None:
        self._ledger, self.data, self._written, self._pause = ledger, data, 0.0, _WRITE_EVERY

    @classmethod
    def open(cls, ledger: Ledger, config: Config, given: Mapping[str, Any], kind: str = "audit") -> Manifest:
        """Open the manifest of the run to resume, or make a new one.

        A run that was refused before its first stage has no result yet, so that its configuration may change.

        Args:
            ledger: The run.
            config: The configuration.
            given: What of the configuration the user wrote.
            kind: "audit" or "index".

        Raises:
            AuditError: The run began with another configuration, or is of another kind.
        """
        resolved = config.model_dump(mode="json") if kind == "audit" else of_index(config)
        data = stored(ledger)
        if data is None:
            if ledger.holds_anything():
                raise AuditError(
                    f"holds files but no {NAME}: it is not a run", where=ledger.uri, hint="Choose another --out."
                )
            return cls(ledger, _new(config, given, resolved) | {"kind": kind})
        if (found := data.get("kind", "audit")) != kind:
            raise AuditError(f"holds an {found}, no {kind}", where=ledger.uri, hint="Choose another --out.")
        if not data["stages"]:
            data = _new(config, given, resolved) | {"kind": kind, "jobs": data["jobs"]}
        _refuse_changes(data["resolved"], resolved, ledger.uri)
        return cls(ledger, data | {"config": dict(given), "resolved": resolved})

    @property
    def finished(self) -> bool:
        return self.data["finished"] is not None

    def write(self) -> None:
        began = time.monotonic()
        text = json.dumps(self.data, indent=1, default=str, allow_nan=False)
        self._ledger.write_bytes(NAME, text.encode())
        self._written = time.monotonic()
        # It grows with the parts, and no worker gets a shard meanwhile: a thousandth of the time may go into it.
        self._pause = max(_WRITE_EVERY, 1000 * (self._written - began))

    def reload(self) -> None:
        """Reload what was written since `open`. Raises AuditError if that has another configuration."""
        written = stored(self._ledger)
        if written is not None and written["stages"]:
            _refuse_changes(written["resolved"], self.data["resolved"], self._ledger.uri)
            self.data = written | {name: self.data[name] for name in ("config", "resolved")}

    def begin(self) -> None:
        """Says that the run goes on, and as which job of a cluster if it is one."""
        self.data |= {"failed": None, "progress": None}
        if job := current_job():
            self.data["jobs"].append(asdict(job) | {"began": now()})
        self.write()

    def progress(self, numbers: Callable[[], Numbers]) -> None:
        """Writes how far the step is that is being worked, but not more often than every few seconds."""
        if time.monotonic() - self._written > self._pause:
            self.data["progress"] = (self.data["progress"] or {}) | asdict(numbers())
            self.write()

    def end(self, error: BaseException | None) -> None:
        """Says how the run ended; where it was when it failed stays."""
        if error is None:
            self.data["progress"] = None
        else:
            what = first_line(error) if isinstance(error, Exception) else "interrupted"
            self.data["failed"] = {"at": now(), "message": what}
        self.write()

    def inputs(self, files: list[dict[str, Any]]) -> None:
        """Records the input files; raises AuditError if one has changed since the run began, or has come or gone."""
        before = {item["file"]: item["sha256"] for item in self.data["inputs"]}
        now = {item["file"]: item["sha256"] for item in files}
        if before:
            for name in sorted(before.keys() | now.keys()):
                if before.get(name) != now.get(name):
                    how = "is new" if name not in before else "is gone" if name not in now else "has changed"
                    raise AuditError(f"{how} since this run began", where=name, hint="Choose another --out.")
        self.data["inputs"] = files

    def slices(self, planned: Mapping[str, list[list[int]]]) -> None:
        """Records of each caption file its slices (rows, then its row groups or first and last byte), and its rows."""
        for item in self.data["inputs"]:
            if item["kind"] == "captions":
                slices = planned[item["file"]]
                item |= {"rows": sum(rows for rows, *_ in slices) if slices else None, "slices": slices}

    def model(self, name: str, sha256: Mapping[str, str]) -> None:
        """Records the weights and the dtype of a model; raises AuditError if they differ from when the run began."""
        known = self.data["models"].setdefault(name, dict(sha256))
        if name == "model":
            self.data["dtype"] = sha256["dtype"]
        for part, digest in sha256.items():
            if known.get(part) != digest:
                raise AuditError(
                    f"{name}: {part} has changed since this run began",
                    where=self._ledger.uri,
                    hint="Choose another --out.",
                )

    def checkpoint(self, name: str, about: Mapping[str, Any]) -> None:
        """Records how a model is sampled and which files of its folder are not read.

        Raises AuditError if a sampling parameter was another one when the run began.
        """
        known = self.data.setdefault("checkpoints", {}).setdefault(name, dict(about))["sampling"]
        for key, value in about["sampling"].items():
            if known.get(key) != value:
                raise AuditError(
                    f"{name}: the sampling parameter {key} has changed since this run began",
                    where=self._ledger.uri,
                    hint="Choose another --out, or put the scheduler file back.",
                )

    def part(self, table: str, name: str, rows: int) -> None:
        if not table.startswith("_"):
            self.data["parts"].setdefault(table, {})[f"{name}.parquet"] = rows

    def refresh(self, table: str) -> int:
        """Makes the parts of a table those that exist, and returns its rows."""
        known = self.data["parts"].get(table, {})
        names = self._ledger.parts(table)
        counts = {f"{name}.parquet": known.get(f"{name}.parquet") or self._ledger.rows(table, name) for name in names}
        if not table.startswith("_"):
            self.data["parts"].pop(table, None)
            self.data["parts"] |= {table: counts} if counts else {}
        return sum(counts.values())

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """One stage: the caller fills rows_in and rows_out; errors and seconds are filled here."""
        entry = self.data["stages"].setdefault(name, {"rows_in": 0, "rows_out": 0, "errors": 0, "seconds": 0.0})
        began = time.monotonic()
        self.data["progress"] = {"stage": name, "at": now()}
        self.write()
        try:
            yield entry
        finally:
            entry["seconds"] = round(entry["seconds"] + time.monotonic() - began, 3)
            self.refresh("errors")
            # A stage may leave errors of another: fresh seeds are generated by `confirm`.
            errors = Counter(
                stage for _, part in self._ledger.each("errors", ["stage"]) for stage in part["stage"].to_pylist()
            )
            for stage, known in self.data["stages"].items():
                known["errors"] = errors[stage]
            self.write()

    def reopen(self) -> None:
        """A finished run that has something to do again is not finished."""
        self.data["finished"] = None

    def finish(self) -> None:
        self.data["finished"] = self.data["finished"] or now()
        self.write()


def stored(ledger: Ledger) -> dict[str, Any] | None:
    """The manifest of a ledger, if it has one. Raises AuditError if it is damaged or of no run."""
    content = ledger.read_bytes(NAME)
    return None if content is None else parse(content, f"{ledger.uri}/{NAME}", KEYS)


def read(uri: str) -> dict[str, Any]:
    """The manifest of the run at a path or URI. Raises AuditError if there is none."""
    ledger = Ledger(absolute(uri, Path.cwd()))
    data = stored(ledger)
    if data is None:
        raise missing(ledger.uri)
    return data


def of_index(config: Config) -> dict[str, Any]:
    """What of a configuration the vectors of images depend on, and where and how they are made."""
    known = config.model_dump(mode="json")
    embedders = {name: config.embedder(name).network() for name in config.confirm.embedders}
    confirm = {"embedders": config.confirm.embedders} | embedders
    return {"images": known["images"], "confirm": confirm, "engine": known["engine"], "out": known["out"]}


def _new(config: Config, given: Mapping[str, Any], resolved: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "version": _version("crossaudit"),
        "config": dict(given),
        "resolved": resolved,
        "inputs": [],
        "models": {},
        "checkpoints": {},
        "packages": {name: _version(name) for name in PACKAGES},
        "seeds": {
            "screen": config.screen.seeds,
            "generate": config.generate.seeds,
            "fresh": config.fresh_seeds(),
            "sample": config.select.seed,
            "captions": config.captions.seed,
        },
        "dtype": None,  # known once a worker has loaded the model
        "device": "cuda" if config.engine.gpus_per_worker else "cpu",
        "threads": config.engine.cpus_per_worker,
        "calibration": {},
        "thresholds": {},
        "claims": {},
        "stages": {},
        "accounting": {"input_rows": 0, "sampled_out": 0},
        "parts": {},
        "jobs": [],
        "progress": None,
        "failed": None,
        "started": now(),
        "finished": None,
    }


def _refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any], uri: str) -> None:
    old, new = _flat(before), _flat(now)
    for key in sorted(old.keys() | new.keys()):
        free = any(key == name or key.startswith(f"{name}.") for name in FREE)
        if not free and old.get(key) != new.get(key):
            raise AuditError(
                f"{key} was {old.get(key)!r} when this run began and is {new.get(key)!r} now",
                where=uri,
                hint="Choose another --out, or put the configuration back.",
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
