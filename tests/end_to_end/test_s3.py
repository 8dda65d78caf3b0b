"""A whole audit whose data, index and run lie in S3: pyarrow's own client against a real S3 API on this machine."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import yaml
from moto.server import create_backend_app
from werkzeug.serving import make_server

from audit.errors import AuditError
from audit.record.filesystem import open_file, writing
from audit.record.ledger import Ledger
from pipelines.configuration.settings import load_config
from pipelines.console.progress import Reporter
from pipelines.engine.context import Run
from pipelines.engine.manifest import Manifest
from pipelines.planning.plan import make_plan
from pipelines.reading.columns import resolved
from pipelines.reading.files import find
from pipelines.reading.input_files import find_inputs, fingerprints
from pipelines.runs.clean import write_clean_copies
from pipelines.runs.index import build_index
from pipelines.runs.purge import purge
from pipelines.stages import ingest
from reports.exclusions import write_exclusions
from reports.query import query
from tests.support.called import crossaudit
from tests.support.comparison import same_but_for_rounding
from tests.support.toy import FEW_GENERATIONS, MEMORIZED, MODEL, settings_of

pytestmark = pytest.mark.slow

BUCKET = "s3://bucket"
ASKED: list[str] = []  # the method of each request


@pytest.fixture(scope="module", autouse=True)
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pafs.S3FileSystem]:
    """An empty bucket, and an empty cache; workers and child processes inherit how to get there."""
    logging.getLogger("werkzeug").setLevel("ERROR")  # otherwise it prints a line per request
    # Moto's own server looks for the service of each request, which takes longer than most of the answers.
    backend = create_backend_app("s3")

    def answer(environ: dict[str, Any], start: Any) -> Any:
        ASKED.append(environ["REQUEST_METHOD"])
        return backend(environ, start)

    server = make_server("127.0.0.1", 0, answer, threaded=True)
    host, port = server.server_address[:2]
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as thread:
        thread.submit(server.serve_forever)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("CROSSAUDIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name, value in (("ACCESS_KEY_ID", "no"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        filesystem, bucket = pafs.FileSystem.from_uri(f"{BUCKET}?allow_bucket_creation=true")
        filesystem.create_dir(bucket)
        yield filesystem
        server.shutdown()


@pytest.fixture(scope="module")
def uploaded(s3: pafs.S3FileSystem, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset in the bucket, with the model and the weights, and its audit.yaml."""
    pafs.copy_files(str(toy), f"{BUCKET}/data")
    pafs.copy_files(str(MODEL), f"{BUCKET}/model")
    confirm = settings_of()["confirm"] | FEW_GENERATIONS["confirm"]
    there = {
        "model": f"{BUCKET}/model",
        "select": FEW_GENERATIONS["select"],
        "confirm": confirm | {"sscd": confirm["sscd"] | {"weights": f"{BUCKET}/data/sscd.safetensors"}},
        "captions": f"{BUCKET}/data/captions/*.parquet",
        "images": f"{BUCKET}/data/images/*.tar",
        "calibration": {name: f"{BUCKET}/data/{file}" for name, file in settings_of()["calibration"].items()},
        "out": f"{BUCKET}/run",
    }
    path = tmp_path_factory.mktemp("uploaded") / "s3.yaml"
    path.write_text(yaml.safe_dump(settings_of(**there)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def here(few: Path) -> Ledger:
    return Ledger(str(few))


@pytest.fixture(scope="module")
def index(uploaded: Path) -> str:
    """An index in the bucket."""
    config, given = load_config(uploaded, ["index.type=ivf"])
    return build_index(config, given, out=f"{BUCKET}/index")


@pytest.fixture(scope="module")
def run(uploaded: Path, index: str, audited: Callable[..., str]) -> Ledger:
    """An audit that was begun by a Ray worker, stopped, lost a part and was resumed, with the vectors of the index."""
    chosen = ["index.type=ivf", f"index.path={index}"]
    config, given = load_config(uploaded, [*chosen, "engine.workers=1"])
    config, ledger = resolved(config), Ledger(config.out)
    inputs = find_inputs(config)
    with Run(config, ledger, Manifest.open(ledger, config, given), Reporter()) as begun:
        begun.manifest.inputs(fingerprints(config, inputs))
        ingest.run(begun, inputs)
    assert ledger.parts("captions")
    ledger.remove("rows", "00000")
    audited(uploaded, *chosen)
    return ledger


def manifest(run: Ledger) -> dict[str, Any]:
    return json.loads(run.read_bytes("manifest.json") or b"")


def test_a_missing_bucket_is_named_with_what_to_do() -> None:
    for pattern in ("s3://no-such-bucket/captions/*.parquet", "s3://no-such-bucket"):
        with pytest.raises(AuditError) as caught:
            find(pattern, "captions")
        assert caught.value.where == pattern
        assert "there is no bucket 'no-such-bucket'" in str(caught.value)
        assert "Check `captions`" in str(caught.value)


def objects(run: Ledger) -> list[str]:
    return [info.path for info in run.filesystem.get_file_info(pafs.FileSelector(run.root, recursive=True))]


def leftovers(run: Ledger) -> list[str]:
    return [path for path in objects(run) if path.endswith(".tmp")]


def test_the_tables_of_a_stopped_and_resumed_run_are_those_of_an_audit_on_this_machine(
    run: Ledger, here: Ledger
) -> None:
    same_but_for_rounding(here, run)
    assert manifest(run)["index"]["sscd"]["recall_at_1"] == 1.0
    assert {item["file"].partition("data/")[0] for item in manifest(run)["inputs"]} == {f"{BUCKET}/"}
    assert leftovers(run) == []


def test_it_is_asked_and_reported_where_it_is(run: Ledger, here: Ledger) -> None:
    sql = "select caption, verdict from verdicts order by all"
    assert query(run.uri, sql).equals(query(here.uri, sql))
    run.filesystem.delete_file(run.path("report.html"))
    assert crossaudit("report", run.uri).returncode == 0
    assert MEMORIZED.encode() in (run.read_bytes("report.html") or b"")


def test_working_tables_are_removed_from_a_bucket(run: Ledger) -> None:
    assert not [path for path in objects(run) if "/_work" in path]
    ledger = Ledger(f"{BUCKET}/work")
    for number in range(3):
        ledger.write("_keys", f"{number:05d}", run.read("captions"))
    ledger.write("keys", "00000", run.read("captions"))
    ledger.remove_work()
    assert [path for path in objects(ledger) if path.endswith(".parquet")] == ["bucket/work/keys/00000.parquet"]
    ledger.remove_work()


def test_a_clean_copy_of_the_data_set_goes_from_bucket_to_bucket(run: Ledger) -> None:
    done = write_exclusions(run.uri)
    assert done.dropped > 0
    folders = [f"{BUCKET}/data/{name}" for name in ("captions", "images")]
    counts = write_clean_copies(f"{run.uri}/exclusions.parquet", folders, f"{BUCKET}/clean", lambda line: None)
    assert (counts.rows_in, counts.dropped) == (80, 2 * done.dropped)
    with open_file(f"{BUCKET}/clean/captions/00000.parquet") as source:
        assert len(pq.read_table(source)) < 20


def test_pictures_are_purged_and_the_run_is_checked_there(run: Ledger) -> None:
    purge(run.uri, "none")
    assert run.read("generations")["image"].null_count == len(run.read("generations"))
    checked = crossaudit("check", run.uri)
    assert checked.returncode == 0
    assert "WRONG" not in checked.stdout
    assert leftovers(run) == []


def test_a_plan_reads_no_weights_of_the_model(uploaded: Path) -> None:
    work = make_plan(load_config(uploaded)[0], tflops=1.0).work
    assert (work.rows.rows, work.images and work.images.rows) == (40, 40)
    copies = [path for path in Path(os.environ["CROSSAUDIT_CACHE"], "fetched").glob("*/model") if path.is_dir()]
    assert sorted(len(list(copy.rglob("*.safetensors"))) for copy in copies) == [0, 3]


def test_what_is_not_there_is_named(s3: pafs.S3FileSystem) -> None:
    for pattern in (f"{BUCKET}/data/*.csv", f"{BUCKET}/data/no.csv"):
        with pytest.raises(AuditError, match=f"{pattern.replace('*', '.')}: no (file matches|such file)"):
            find(pattern, "captions")
    with pytest.raises(AuditError, match="no such file"):
        open_file(f"{BUCKET}/data/no.csv")


def test_what_cannot_be_reached_is_named_with_what_to_check(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(AuditError, match="(?s)data/a.csv: cannot be listed: .*AWS_ variables"):
            find(f"{BUCKET}/data/a.csv", "captions")


def test_a_part_is_written_by_one_request_and_a_table_read_by_two_per_part_and_one_for_the_list(run: Ledger) -> None:
    ledger, rows = Ledger(f"{BUCKET}/few"), run.read("captions")
    ASKED.clear()
    for name in ("00000", "00001"):
        ledger.write("captions", name, rows)
    assert ASKED == ["PUT"] * 2
    ASKED.clear()
    assert len(ledger.dataset("captions").to_table()) == 2 * len(rows)
    assert ASKED == ["GET"] * 5


def test_a_part_is_not_there_before_it_is_whole() -> None:
    ledger = Ledger(f"{BUCKET}/whole")
    with writing(ledger.filesystem, ledger.path("table", "00000.parquet")) as sink:
        sink.write(bytes(12 << 20))  # more than one part of an upload
        assert ledger.parts("table") == []
    assert ledger.parts("table") == ["00000"]


def test_a_large_file_comes_and_goes_under_its_own_name(tmp_path: Path) -> None:
    content = bytes(range(256)) * (1 << 16)  # more than one part of an upload
    (tmp_path / "large.bin").write_bytes(content)
    ledger = Ledger(f"{BUCKET}/large")
    ledger.put(tmp_path / "large.bin", "_files")
    with ledger.local("_files", "large.bin") as path:
        assert Path(path).read_bytes() == content
    assert not Path(path).exists()
    assert leftovers(ledger) == []
