"""ray_cluster.yaml is one that Ray accepts."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.local.config import prepare_local

CLUSTER = Path(__file__).parents[2] / "ray_cluster.yaml"


def validate(cluster: dict) -> None:
    schema = json.loads((Path(ray.autoscaler.__path__[0]) / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)


def test_it_fits_the_schema_of_ray() -> None:
    validate(yaml.safe_load(CLUSTER.read_text()))


def test_the_schema_refuses_an_unknown_key() -> None:
    with pytest.raises(jsonschema.ValidationError):
        validate(yaml.safe_load(CLUSTER.read_text()) | {"min_wokers": 2})


def test_ray_starts_every_machine_in_it() -> None:
    prepared, _ = prepare_local(yaml.safe_load(CLUSTER.read_text()))
    [node_type] = prepared["available_node_types"].values()
    assert node_type["min_workers"] == len(prepared["provider"]["worker_ips"]) == prepared["max_workers"]
