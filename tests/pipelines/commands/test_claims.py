"""`crossaudit claims` prints what a run states, with its protocol, and refuses runs that state nothing."""

from __future__ import annotations

import json
from pathlib import Path

from audit.record.manifest import parse
from tests.support.called import crossaudit
from tests.support.manifests import manifest


def test_each_claim_is_printed_with_its_population_its_protocol_and_what_would_change_it(finished: Path) -> None:
    stated = parse((finished / "manifest.json").read_bytes(), "manifest.json").claims
    text = crossaudit("claims", str(finished)).stdout
    assert f"Population: {stated.population}." in text
    assert "Protocol: 1 generation per caption with 2 steps" in text
    for claim in stated.claims:
        assert claim.sentence in text
        assert claim.would_change in text
    assert stated.sentences[-1] in text


def test_the_json_document_has_the_numbers(finished: Path) -> None:
    found = json.loads(crossaudit("claims", str(finished), "--format", "json").stdout)
    stated = parse((finished / "manifest.json").read_bytes(), "manifest.json").claims
    assert found["claims"] == [claim.model_dump() for claim in stated.claims]
    assert found["joint_level"] == stated.joint_level
    assert found["protocol"]["seeds"] == [1]


def test_a_run_without_claims_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(manifest()))
    called = crossaudit("claims", str(tmp_path))
    assert called.returncode == 1
    assert "this run states no claims yet" in called.stderr
