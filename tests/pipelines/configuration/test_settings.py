"""audit.yaml: what it accepts, and how it says what it does not."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from audit.errors import UsageError
from pipelines.commands.init import init
from pipelines.configuration.config import Config
from pipelines.configuration.select import Budget
from pipelines.configuration.settings import check_detectors, load_config
from tests.support.toy import settings_of, write_config


def message(folder: Path, *overrides: str, **changes: Any) -> str:
    with pytest.raises(UsageError) as caught:
        load_config(write_config(folder, **changes), overrides)
    return str(caught.value)


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config, _ = load_config(write_config(tmp_path, captions=["a.parquet", "s3://bucket/b.parquet", "/c.parquet"]))
    assert config.captions.path == [f"{tmp_path}/a.parquet", "s3://bucket/b.parquet", "/c.parquet"]
    assert config.embedder("sscd").weights == f"{tmp_path}/sscd.safetensors"
    assert config.out == f"{tmp_path}/run"


def test_a_model_that_is_no_folder_may_be_one_of_the_hub(tmp_path: Path) -> None:
    path = write_config(tmp_path, model="organisation/model-v1.5")
    assert load_config(path)[0].model.path == "organisation/model-v1.5"
    (tmp_path / "organisation/model-v1.5").mkdir(parents=True)
    assert load_config(path)[0].model.path == f"{tmp_path}/organisation/model-v1.5"


def test_a_model_is_a_path_or_a_section_and_its_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    inversions = ["a.safetensors", {"path": "b.safetensors", "token": "<b>"}]
    section = {"path": "one.safetensors", "config": "folder", "resolution": [512, 768], "textual_inversion": inversions}
    model = load_config(write_config(tmp_path, model=section))[0].model
    assert (model.path, model.config) == (f"{tmp_path}/one.safetensors", f"{tmp_path}/folder")
    assert model.resolution == [512, 768]
    assert [(each.path, each.token) for each in model.textual_inversion] == [
        (f"{tmp_path}/a.safetensors", None),
        (f"{tmp_path}/b.safetensors", "<b>"),
    ]
    one = load_config(write_config(tmp_path, model={"path": "m", "textual_inversion": "c.pt"}))[0].model
    assert [each.path for each in one.textual_inversion] == [f"{tmp_path}/c.pt"]
    short = load_config(write_config(tmp_path, model="m"), ["model.resolution=256"])[0].model
    assert (short.path, short.resolution) == (f"{tmp_path}/m", 256)


def test_a_resolution_is_positive_and_a_prediction_type_known(tmp_path: Path) -> None:
    assert "model.resolution" in message(tmp_path, model={"path": "m", "resolution": 0})
    assert "model.prediction_type" in message(tmp_path, model={"path": "m", "prediction_type": "sample"})


def test_out_of_the_command_line_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(tmp_path)
    monkeypatch.chdir("/")
    assert load_config(path, out="here")[0].out == "/here"
    assert load_config(path, ["out=there"])[0].out == "/there"


def test_overrides_are_yaml_and_reach_into_sections(tmp_path: Path) -> None:
    overrides = ["generate.seeds=[7, 8]", "select.budget=null", "engine.workers=1", "engine.address=auto"]
    overrides += ["images.join_on=key"]
    config, _ = load_config(write_config(tmp_path), overrides)
    assert config.generate.seeds == [7, 8]
    assert config.select.budget == Budget()
    assert config.engine.address == "auto"
    assert config.images is not None
    assert config.images.join_on == "key"


def test_an_override_without_a_value_is_explained(tmp_path: Path) -> None:
    assert "--set select.budget: expected key=value" in message(tmp_path, "select.budget")


def test_an_unknown_key_names_the_file_and_the_nearest_key(tmp_path: Path) -> None:
    found = message(tmp_path, select={"bugdet": 3})
    assert found == f"{tmp_path}/audit.yaml: unknown key select.bugdet; did you mean select.budget? (line 24)"
    assert "did you mean screen?" in message(tmp_path, scren={})
    assert "known here: workers, cpus_per_worker" in message(tmp_path, engine={"zzz": 1})


def test_every_mistake_has_a_line_of_its_own(tmp_path: Path) -> None:
    lines = message(tmp_path, generate={"steps": "many"}, engine={"workers": -1}).splitlines()
    assert len(lines) == 2
    assert "generate.steps should be a valid integer" in lines[0]
    assert "'many'" in lines[0]
    assert "engine.workers: -1 is neither a number of workers nor {min, max}" in lines[1]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    settings = settings_of()
    del settings["model"]
    (tmp_path / "audit.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(UsageError, match="audit.yaml: model is missing"):
        load_config(tmp_path / "audit.yaml")
    with pytest.raises(UsageError, match="no such file"):
        load_config(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("text", ["", "- a list", "a: [", "\t"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "audit.yaml").write_text(text)
    with pytest.raises(UsageError, match="is not"):
        load_config(tmp_path / "audit.yaml")


def test_an_embedder_without_weights_is_refused_unless_there_are_no_images(tmp_path: Path) -> None:
    assert "confirm.embedders names clip" in message(tmp_path, confirm={"embedders": ["clip"]})
    config, _ = load_config(write_config(tmp_path, images=None, confirm={}))
    assert config.images is None


def test_too_few_control_captions_for_the_rate_are_refused(tmp_path: Path) -> None:
    assert "needs at least 1998" in message(tmp_path, confirm={"control_rate": 0.001})


def test_workers_are_a_number_or_a_least_and_a_most(tmp_path: Path) -> None:
    def workers(value: Any) -> tuple[int, int]:
        found = load_config(write_config(tmp_path, engine={"workers": value}))[0].engine.workers
        return found.min, found.max

    assert (workers(3), workers({"max": 8}), workers({"min": 2, "max": 8})) == ((3, 3), (1, 8), (2, 8))
    assert "engine.workers: min (5) is greater than max (4)" in message(
        tmp_path, engine={"workers": {"min": 5, "max": 4}}
    )


def test_without_workers_the_work_is_done_in_this_process(tmp_path: Path) -> None:
    workers = load_config(write_config(tmp_path, engine={"workers": 0}))[0].engine.workers
    assert (workers.min, workers.max) == (0, 0)
    assert "min is 0; give at least 1" in message(tmp_path, engine={"workers": {"min": 0, "max": 4}})
    for name, value in (("address", "auto"), ("shard_timeout_s", 60)):
        found = message(tmp_path, engine={"workers": 0, name: value})
        assert f"`{name}` needs at least one worker, and `workers` is 0" in found


def test_a_worker_uses_one_gpu_at_most(tmp_path: Path) -> None:
    assert load_config(write_config(tmp_path, engine={"gpus_per_worker": 0.25}))[0].engine.gpus_per_worker == 0.25
    assert "2 GPUs, but a worker uses one; to use more, set engine.workers" in message(
        tmp_path, engine={"gpus_per_worker": 2}
    )


def test_seeds_are_distinct(tmp_path: Path) -> None:
    assert "generate.seeds" in message(tmp_path, generate={"seeds": [1, 1]})


def test_an_unknown_detector_is_named(tmp_path: Path) -> None:
    config, _ = load_config(write_config(tmp_path, screen={"detectors": ["profil"]}))
    with pytest.raises(UsageError, match="screen.detectors: unknown detector 'profil'"):
        check_detectors(config)


@pytest.mark.parametrize(
    ("section", "text", "expected"),
    [
        ("generate", "guidance_scale: .inf", "generate.guidance_scale should be a finite number, not inf (line 2)"),
        ("generate", "guidance_scale: .nan", "generate.guidance_scale should be a finite number, not nan (line 2)"),
        ("generate", "steps: true", "generate.steps should be a valid integer, not True (line 2)"),
        ("engine", "workers: true", "engine.workers: True is neither a number of workers nor {min, max} (line 2)"),
        ("select", "budget: 1e26", "select.budget.captions should be a valid integer, not 1e+26 (line 2)"),
        ("select", f"budget: {10**26}", "select.budget.captions should be less than or equal to 1000000000000000"),
        ("confirm", "fresh_seeds: 1000000000", "confirm.fresh_seeds should be less than or equal to 10000"),
        ("select", "budget: {captions: 5, fdr: 0.1}", "select.budget: give captions or fdr, not both (line 2)"),
        ("select", "until: soon", "select.until: should be a rate such as `5000 per million` (line 2)"),
        ("select", "until: 0 per million", "select.until.per_million should be greater than 0, not 0.0 (line 2)"),
        ("select", "budget: {fdr: 1.5}", "select.budget.fdr should be less than 1, not 1.5 (line 2)"),
        ("select", "budget: 5\n  seed: 1\n  budget: 6", "select.budget is given twice, in line 2 and in line 4"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_with_its_key_and_line(
    tmp_path: Path, section: str, text: str, expected: str
) -> None:
    rest = yaml.safe_dump({key: value for key, value in settings_of().items() if key != section})
    (tmp_path / "audit.yaml").write_text(f"{section}:\n  {text}\n{rest}")
    with pytest.raises(UsageError) as caught:
        load_config(tmp_path / "audit.yaml")
    assert expected in str(caught.value)


@pytest.mark.parametrize("override", ["generate.guidance_scale=.inf", "engine.workers=true", "select.budget=1e26"])
def test_an_override_is_held_to_the_same(tmp_path: Path, override: str) -> None:
    found = message(tmp_path, override)
    assert override.partition("=")[0] in found
    assert "(line" not in found


@pytest.mark.parametrize("key", ["out", "model", "captions", "images"])
@pytest.mark.parametrize("value", ["", "  ", "a\0b"])
def test_an_empty_path_is_refused(tmp_path: Path, key: str, value: str) -> None:
    assert f"{key} should be a path or a URI" in message(tmp_path, **{key: value})
    assert "out should be a path" in message(tmp_path, "out=''")
    with pytest.raises(UsageError, match="out should be a path"):
        load_config(write_config(tmp_path), out="")


def test_numbers_with_an_exponent_are_numbers(tmp_path: Path) -> None:
    config, _ = load_config(write_config(tmp_path), ["confirm.max_unreadable_fraction=1e-3"])
    assert config.confirm.max_unreadable_fraction == 0.001


def bomb(levels: int) -> str:
    lines = ["a0: &a0 {x: 1, y: 2}"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} {{" + ", ".join(f"k{n}: *a{level - 1}" for n in range(9)) + "}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        bomb(40),
        bomb(9).replace("{x: 1, y: 2}", "[x, y]"),
        "a: &a [*a]",
        "[" * 5000,
        "a0: &a0 {x: 1}\n" + "\n".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12)),
    ],
    ids=["mappings", "lists", "itself", "deep", "merges"],
)
def test_aliases_cannot_take_the_memory(tmp_path: Path, text: str) -> None:
    tracemalloc.start()
    (tmp_path / "audit.yaml").write_text(text)
    with pytest.raises(UsageError, match="expand it to more than|contains it|maximum nesting depth"):
        load_config(tmp_path / "audit.yaml")
    with pytest.raises(UsageError, match="expand it to more than|contains it|not YAML"):
        load_config(write_config(tmp_path), [f"select={{{text}}}" if "\n" not in text else f"select={text}"])
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_aliases_in_reason_are_welcome(tmp_path: Path) -> None:
    text = yaml.safe_dump(settings_of(select={})).replace("select: {}", "select: &s {budget: 7}")
    (tmp_path / "audit.yaml").write_text(text)
    assert load_config(tmp_path / "audit.yaml")[0].select.budget == Budget(captions=7)


def test_the_file_that_init_writes_loads_with_all_defaults_and_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "audit.yaml"
    init(path)
    config, given = load_config(path)
    assert config.screen == Config.model_fields["screen"].default
    assert set(given) <= set(Config.model_fields)
    with pytest.raises(UsageError, match="audit.yaml already exists"):
        init(path)


def test_every_key_of_the_written_file_that_is_commented_out_shows_its_default(tmp_path: Path) -> None:
    path = tmp_path / "audit.yaml"
    init(path)
    before, _ = load_config(path)
    lines = [line.replace("# ", "", 1) if line.startswith("  # ") else line for line in path.read_text().splitlines()]
    # What stands for "no default" in the file: a value of its own, or one that needs files.
    kept = [line for line in lines if not line.strip().startswith(("clip:", "key:", "url:"))]
    path.write_text("\n".join(kept))
    after, _ = load_config(path)
    assert after == before


def test_the_json_schema_accepts_what_loads(tmp_path: Path) -> None:
    schema = Config.model_json_schema()
    settings = settings_of(captions=["a.parquet", "b.parquet"])
    jsonschema.validate(settings, schema)
    jsonschema.validate(settings | {"captions": {"path": "a.parquet"}, "images": None}, schema)
    for inversion in ("a.pt", {"path": "a.pt"}, ["a.pt", {"path": "b.pt", "token": "<b>"}]):
        jsonschema.validate(settings | {"model": {"path": "m", "textual_inversion": inversion}}, schema)
    for workers in (0, 3, {"max": 8}, {"min": 2, "max": 8}):
        jsonschema.validate(settings | {"engine": {"workers": workers}}, schema)
    for wrong in ({"scren": {}}, {"engine": {"workers": -1}}, {"engine": {"workers": {"min": 2}}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(settings | wrong, schema)
