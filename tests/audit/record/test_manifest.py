"""manifest.json is a model: what it refuses, and that reading and writing keep its content."""

from __future__ import annotations

import json
from typing import Any

import pytest

from audit.errors import AuditError
from audit.record.manifest import denoiser_sha256, parse
from audit.record.manifest_entries import ClustersEntry, StageEntry
from tests.support.manifests import manifest


def refusal(**changes: Any) -> str:
    """Return the message with which a manifest is refused."""
    with pytest.raises(AuditError) as caught:
        parse(json.dumps(manifest(**changes)).encode(), "run/manifest.json")
    assert caught.value.where == "run/manifest.json"
    assert caught.value.hint
    return caught.value.what


def test_a_manifest_is_read_and_written_as_it_is() -> None:
    full = manifest(
        stages={"screen": {"rows_in": 5, "rows_out": 5, "errors": 0, "seconds": 1.5}},
        clusters={"threshold": 0.9, "source": "configured", "images_with_duplicates": 2},
        progress={"stage": "screen", "at": "2026-01-02T03:04:05+00:00"},
        accounting={"input_rows": 5, "sampled_out": 0, "pairs": {"rows": 5, "paired": 5, "applies": True}},
        finished=None,
    )
    for content in (manifest(), full):
        assert json.loads(parse(json.dumps(content).encode(), "manifest.json").to_json()) == content


def test_a_key_that_is_set_later_is_written() -> None:
    data = parse(json.dumps(manifest()).encode(), "manifest.json")
    data.clusters = ClustersEntry(threshold=0.9, source="configured", images_with_duplicates=2)
    data.calibration.removed = 3
    data.stages["embed"] = StageEntry(rows_in=1, rows_out=1, errors=0, seconds=0.0)
    written = json.loads(data.to_json())
    assert written["clusters"] == {"threshold": 0.9, "source": "configured", "images_with_duplicates": 2}
    assert written["calibration"] == {"removed": 3}
    assert written["stages"]["embed"]["rows_in"] == 1
    assert "selection" not in written


def test_what_does_not_fit_is_refused_with_its_key() -> None:
    stage = {"rows_in": "many", "rows_out": 5, "errors": 0, "seconds": 1.5}
    assert "stages.screen.rows_in: input should be a valid integer" in refusal(stages={"screen": stage})
    assert "unknown key stages.screen.rows" in refusal(stages={"screen": {"rows": 5}})
    assert "unknown key verdicts" in refusal(verdicts={})
    assert "kind: input should be 'audit' or 'index'" in refusal(kind="plan")
    assert "resolved: value error, it has no confirm.embedders" in refusal(resolved={"old": 1})


def test_all_missing_keys_are_named() -> None:
    content = manifest()
    del content["stages"], content["parts"]
    with pytest.raises(AuditError, match="not the manifest of a run of this version: it has no stages, parts"):
        parse(json.dumps(content).encode(), "manifest.json")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_what_is_no_json_is_damaged(content: bytes) -> None:
    with pytest.raises(AuditError, match="not JSON, or damaged"):
        parse(content, "manifest.json")


def test_the_network_that_is_sampled_is_the_unet_or_the_transformer() -> None:
    assert denoiser_sha256({"unet": "a", "vae": "b", "text_encoder": "c"}) == "a"
    assert denoiser_sha256({"text_encoder": "c", "transformer": "d"}) == "d"
    assert denoiser_sha256({}) == "unknown"
