from __future__ import annotations

import json
from typing import Any

from reports.exports.croissant import to_croissant
from reports.record.model import Record

# The names of the Croissant RAI vocabulary 1.0 that a fragment may use.
VOCABULARY = {"rai:dataLimitations", "rai:dataBiases", "rai:personalSensitiveInformation"}


def fragment(record: Record) -> dict[str, Any]:
    return dict(json.loads(to_croissant(record)))


def test_a_fragment_has_properties_of_the_vocabulary_with_texts(record: Record) -> None:
    found = fragment(record)
    assert {name for name in found if name.startswith("rai:")} == VOCABULARY
    assert all(isinstance(text, str) and text for name in VOCABULARY for text in found[name])
    assert found["dct:conformsTo"] == "http://mlcommons.org/croissant/RAI/1.0"


def test_the_findings_are_those_of_the_record(record: Record) -> None:
    found = fragment(record)
    assert record.answer.sentence in found["rai:dataLimitations"][0]
    assert {claim.sentence for claim in record.claims.claims} <= set(found["rai:dataLimitations"])
    [repetition] = found["rai:dataBiases"]
    assert "16 captions" in repetition
    assert "349 of the 953 dataset rows" in repetition


def test_mlcroissant_reads_a_dataset_with_the_fragment_merged_into_it(record: Record) -> None:
    import mlcroissant

    found = fragment(record)
    own = mlcroissant.Metadata(name="toy", url="https://example.org/toy", license="CC0-1.0").to_json()
    merged = own | found | {"@context": own["@context"] | found["@context"]}
    read = mlcroissant.Dataset(json.loads(json.dumps(merged)))
    assert not read.metadata.ctx.issues.errors
    assert read.metadata.data_limitations == found["rai:dataLimitations"]
    assert read.metadata.data_biases == found["rai:dataBiases"]
    assert read.metadata.personal_sensitive_information == found["rai:personalSensitiveInformation"]
