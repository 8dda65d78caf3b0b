"""Define RUN/manifest.json as a model, and read it. The file may be damaged or come from another program.

Fields with a default are absent from the file until they are known. docs/reference/manifest.md explains all of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import ValidationError, field_validator

from audit.errors import AuditError
from audit.record.manifest_entries import (
    Accounting,
    CalibrationEntry,
    Checkpoint,
    ClaimsEntry,
    ClustersEntry,
    ConfirmErrorEntry,
    FailureEntry,
    InputFile,
    InvertedFileEntry,
    JobEntry,
    ManifestEntry,
    MitigationBasis,
    PictureFile,
    ProgressEntry,
    PurgeEntry,
    RunSeeds,
    SelectionEntry,
    StageEntry,
    ThresholdEntry,
)

NAME = "manifest.json"
_RUN = "Give the folder of a run: its `out`."


class RunManifest(ManifestEntry):
    """The content of manifest.json: what was audited, with what, and what came out.

    `models` maps models to parts to sha256; `parts` maps tables to files to rows; `thresholds` maps embedders to kinds.
    """

    kind: Literal["audit", "index"]
    version: str | None
    config: dict[str, Any]
    resolved: dict[str, Any]
    inputs: list[InputFile]
    models: dict[str, dict[str, str]]
    checkpoints: dict[str, Checkpoint]
    packages: dict[str, str | None]
    seeds: RunSeeds
    dtype: str | None
    device: str
    threads: int
    calibration: CalibrationEntry
    thresholds: dict[str, dict[str, ThresholdEntry]]
    confirm_error: ConfirmErrorEntry | None = None
    claims: ClaimsEntry
    selection: SelectionEntry | None = None
    clusters: ClustersEntry | None = None
    index: dict[str, InvertedFileEntry] = {}
    mitigation: MitigationBasis | None = None
    stages: dict[str, StageEntry]
    accounting: Accounting
    parts: dict[str, dict[str, int]]
    jobs: list[JobEntry]
    progress: ProgressEntry | None
    failed: FailureEntry | None
    started: str
    finished: str | None
    purged: list[PurgeEntry] = []
    pictures: list[PictureFile] = []

    @field_validator("resolved")
    @classmethod
    def _names_embedders(cls, resolved: dict[str, Any]) -> dict[str, Any]:
        confirm = resolved.get("confirm")
        if not isinstance(confirm, dict) or not confirm.get("embedders"):
            raise ValueError("it has no confirm.embedders")
        return resolved

    def to_json(self) -> bytes:
        """Return the content of the file. Fields that were never set are left out."""
        content = self.model_dump(exclude_unset=True)
        return json.dumps(content, indent=1, default=str, allow_nan=False).encode()

    @property
    def seed_of_inputs(self) -> int:
        """The seed of the audit sample that derives from the contents of the inputs, whatever their names and order."""
        digests = sorted(f"{item.kind} {item.sha256}" for item in self.inputs)
        return int.from_bytes(hashlib.sha256("\n".join(digests).encode()).digest()[:4], "big")

    @property
    def embedders(self) -> list[str]:
        """The configured embedders; the first one decides."""
        return list(self.resolved["confirm"]["embedders"])

    @property
    def shows_training_images(self) -> bool:
        """Whether pages may show training images without blurring them (`report.show_training_images`)."""
        return bool((self.resolved.get("report") or {}).get("show_training_images"))

    @property
    def deciding_thresholds(self) -> dict[str, ThresholdEntry]:
        """The thresholds of the deciding embedder by kind; empty if there were no images to compare with."""
        return self.thresholds.get(self.embedders[0], {})


def denoiser_sha256(hashes: Mapping[str, str]) -> str:
    """Return the hash of the network that a model samples, from the hashes of all its parts; "unknown" if it has none.

    Args:
        hashes: An entry of `models` in the manifest.
    """
    return hashes.get("unet") or hashes.get("transformer") or "unknown"


def missing(where: str) -> AuditError:
    """Return the error for a folder without a manifest."""
    return AuditError(f"no {NAME}: this is not a run", where=where, hint=_RUN)


def parse(content: bytes, where: str) -> RunManifest:
    """Parse a manifest.

    Args:
        content: Bytes of the file.
        where: The file, for errors.

    Raises:
        AuditError: The manifest is damaged, or a key is missing, unknown or has a wrong value.
    """
    try:
        json.loads(content)
    except ValueError as error:
        hint = f"Is this the manifest of a run? {_RUN} If it is damaged, restore it or audit with another --out."
        raise AuditError(f"not JSON, or damaged: {error}", where=where, hint=hint) from error
    try:
        return RunManifest.model_validate_json(content, strict=True)
    except ValidationError as error:
        what = f"this is not the manifest of a run of this version: {_explain(error.errors())}"
        raise AuditError(what, where=where, hint=_RUN) from error


def _explain(problems: Sequence[Mapping[str, Any]]) -> str:
    """Describe the problems that pydantic found: missing keys together, else the first one."""
    absent = [_key(problem) for problem in problems if problem["type"] == "missing"]
    if absent:
        return f"it has no {', '.join(absent)}"
    first = problems[0]
    if first["type"] == "extra_forbidden":
        return f"unknown key {_key(first)}"
    return f"{_key(first) or 'its content'}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _key(problem: Mapping[str, Any]) -> str:
    return ".".join(str(name) for name in problem["loc"])
