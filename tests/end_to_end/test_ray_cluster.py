"""The clusters that ship are ones that Ray accepts, and the job for Kubernetes holds a configuration that we do."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.local.config import prepare_local
from ray.autoscaler._private.util import prepare_config, validate_config

from pipelines.configuration.settings import load_config
from tests.support.paths import ROOT

LOCAL, AWS, KUBERNETES = ROOT / "ray_cluster.yaml", ROOT / "docs/cluster/aws.yaml", ROOT / "docs/cluster/rayjob.yaml"


def validate(cluster: dict) -> None:
    schema = json.loads((Path(ray.autoscaler.__path__[0]) / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)


@pytest.mark.parametrize("path", [LOCAL, AWS], ids=lambda path: path.name)
def test_it_fits_the_schema_of_ray(path: Path) -> None:
    validate(yaml.safe_load(path.read_text()))


def test_every_machine_of_aws_gets_the_wheel_with_all_that_a_run_needs() -> None:
    [install] = yaml.safe_load(AWS.read_text())["setup_commands"]
    assert install.startswith('pip install "crossaudit[run] @ https://')
    assert "crossaudit-0.1.0-py3-none-any" in install


def test_the_clusters_with_containers_use_one_image() -> None:
    job, _ = yaml.safe_load_all(KUBERNETES.read_text())
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {container["image"] for group in groups for container in group["template"]["spec"]["containers"]}
    assert images == {yaml.safe_load(LOCAL.read_text())["docker"]["image"]}


@pytest.mark.parametrize("path", [LOCAL, AWS], ids=lambda path: path.name)
def test_every_machine_asks_for_a_token_that_only_its_owner_reads(path: Path) -> None:
    cluster = yaml.safe_load(path.read_text())
    assert "~/.ray/auth_token" in cluster["file_mounts"]
    starts = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    for start in [command for command in starts if "ray start" in command]:
        assert "RAY_AUTH_MODE=token ray start" in start
        assert "chmod 600 ~/.ray/auth_token" in start


def test_the_job_for_kubernetes_asks_for_a_token() -> None:
    job, _ = yaml.safe_load_all(KUBERNETES.read_text())
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_the_schema_refuses_an_unknown_key() -> None:
    with pytest.raises(jsonschema.ValidationError):
        validate(yaml.safe_load(LOCAL.read_text()) | {"min_wokers": 2})


def test_ray_starts_every_machine_of_the_local_one() -> None:
    prepared, _ = prepare_local(yaml.safe_load(LOCAL.read_text()))
    [node_type] = prepared["available_node_types"].values()
    assert node_type["min_workers"] == len(prepared["provider"]["worker_ips"]) == prepared["max_workers"]


def test_on_aws_the_head_works_no_shard_and_gpus_come_with_the_work() -> None:
    prepared = prepare_config(yaml.safe_load(AWS.read_text()))
    validate_config(prepared)
    head, gpu = (prepared["available_node_types"][name] for name in ("head", "gpu"))
    assert prepared["head_node_type"] == "head"
    assert head["resources"] == {"CPU": 0}
    assert (gpu["min_workers"], gpu["max_workers"]) == (0, prepared["max_workers"])


def test_the_job_for_kubernetes_runs_the_configuration_that_it_mounts(tmp_path: Path) -> None:
    job, mounted = yaml.safe_load_all(KUBERNETES.read_text())
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    [mount], [volume] = head["containers"][0]["volumeMounts"], head["volumes"]
    *command, path, set_, address = shlex.split(job["spec"]["entrypoint"])
    assert command == ["python", "-m", "pipelines.cli", "run"]
    assert [set_, address] == ["--set", "engine.address=auto"]
    assert mount["name"] == volume["name"]
    assert volume["configMap"]["name"] == mounted["metadata"]["name"]
    assert Path(path).parent == Path(mount["mountPath"])
    assert Path(path).name in mounted["data"]

    (tmp_path / "audit.yaml").write_text(mounted["data"][Path(path).name])
    config, _ = load_config(tmp_path / "audit.yaml", [address])
    [workers] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert config.engine.workers.max == workers["maxReplicas"]
    assert (config.engine.cpus_per_worker, config.engine.gpus_per_worker) == (int(limits["cpu"]), 1)
    assert config.out.startswith("s3://")
