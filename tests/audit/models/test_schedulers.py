"""Every parameter of DDIM sampling is resolved from the scheduler file, or the file is refused."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
from diffusers import DDIMScheduler, StableDiffusionPipeline

import audit
from audit.errors import AuditError, UsageError
from audit.models.sampler import DdimSchedule, ddim
from audit.models.schedulers import CLASSES, SOLVER_KEYS, read_scheduler, resolve
from tests.support.schedulers import SD, TABLE

OLD = TABLE[2]["config"]


def resolved(config: dict[str, Any]) -> dict[str, Any]:
    return resolve(config, config["_class_name"], "scheduler_config.json")


@pytest.fixture
def folder(data: Path, tmp_path: Path) -> Path:
    """The folder of tiny-sd1, with nothing in its index of components but the scheduler's class."""
    shutil.copytree(data / "tiny-sd1", tmp_path / "model")
    return tmp_path / "model"


def put(folder: Path, config: Any) -> Path:
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry["name"])
def test_a_published_file_is_resolved_as_intended(entry: dict[str, Any]) -> None:
    assert resolved(entry["config"]) == SD | entry["intended"]


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry["name"])
def test_that_is_what_diffusers_pipeline_ends_with(entry: dict[str, Any], exact: StableDiffusionPipeline) -> None:
    """But for keys that neither the file nor the pipeline has a value for: there DDIM's default is for pixel models."""
    parts = {**exact.components, "scheduler": DDIMScheduler.from_config(entry["config"])}
    theirs = StableDiffusionPipeline(**parts, requires_safety_checker=False).scheduler.config
    noise_schedule = {"beta_start", "beta_end", "beta_schedule", "set_alpha_to_one"} - entry["config"].keys()
    ours = resolved(entry["config"])
    assert {key: theirs[key] for key in SD.keys() - noise_schedule} == {
        key: ours[key] for key in SD.keys() - noise_schedule
    }


@pytest.mark.parametrize("name", sorted(CLASSES.keys() - {"DPMSolverSDEScheduler"}))  # a stub without torchsde
def test_the_defaults_of_a_noise_schedule_are_those_of_its_class(name: str) -> None:
    known = inspect.signature(getattr(diffusers, name).__init__).parameters
    noise = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
    ours = resolve({}, name)
    assert {key: ours[key] for key in noise} == {key: known[key].default for key in noise}
    assert known.keys() - {"self", "kwargs"} <= SD.keys() | SOLVER_KEYS


def test_defaults_that_a_scheduler_object_filled_in_do_not_count_as_written() -> None:
    config = dict(diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear").config)
    assert config["timestep_spacing"] == "linspace"
    assert resolve(config, "EulerDiscreteScheduler")["timestep_spacing"] == "leading"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler: .*flow-matching"),
        ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, "FlowMatchHeunDiscreteScheduler"),
        ({"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler: .*EDM"),
        ({"_class_name": "EDMDPMSolverMultistepScheduler"}, "EDMDPMSolverMultistepScheduler"),
        ({"_class_name": "CMStochasticIterativeScheduler"}, "CMStochasticIterativeScheduler: .*consistency"),
        ({"_class_name": "LCMScheduler"}, "LCMScheduler: .*distilled"),
        ({"_class_name": "TCDScheduler"}, "TCDScheduler: .*distilled"),
        ({"_class_name": "MyScheduler"}, "MyScheduler, which is unknown"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas is True"),
        ({"timestep_type": "continuous"}, "timestep_type is 'continuous'"),
        ({"variance_type": "learned_range"}, "variance_type is 'learned_range'"),
        ({"predict_epsilon": False}, "predict_epsilon is False"),
        ({"prediction_type": "flow_prediction"}, "prediction_type is 'flow_prediction'"),
        ({"prediction_type": "sample"}, "prediction_type is 'sample'"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid'"),
        ({"timestep_spacing": "log"}, "timestep_spacing is 'log'"),
        ({"snr_shift_scale": 3.0}, "unknown key snr_shift_scale"),
        ({"shift": 3.0}, "unknown key shift"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas has 2 values, num_train_timesteps is 1000"),
        ({"beta_end": 1.5}, "betas are not all between 0 and 1"),
        ({"beta_start": None}, "no noise schedule"),
        ({"set_alpha_to_one": "no"}, "set_alpha_to_one is 'no'"),
    ],
)
def test_what_ddim_cannot_sample_is_refused_by_name(folder: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(AuditError, match=message) as caught:
        audit.load_model(put(folder, OLD | change))
    assert caught.value.hint
    assert "scheduler_config.json" in str(caught.value.where)


def test_a_file_without_a_class_is_of_the_class_in_the_index(folder: Path) -> None:
    config = {key: value for key, value in OLD.items() if key not in ("_class_name", "set_alpha_to_one")}
    assert read_scheduler(put(folder, config))[0]["set_alpha_to_one"] is True  # DDIM's, which the index names
    (folder / "model_index.json").write_text("{}")
    with pytest.raises(AuditError, match="does not name its scheduler class"):
        read_scheduler(folder)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_file_that_is_no_json_object_is_named(folder: Path, text: str) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text(text)
    with pytest.raises(AuditError, match="scheduler_config.json: not readable"):
        read_scheduler(folder)


def test_a_model_its_pipeline_and_its_calibration_have_the_resolved_values(folder: Path) -> None:
    model = audit.load_model(put(folder, OLD | {"use_karras_sigmas": True}))
    assert dict(model.scheduler_config) == SD
    assert {key: model.pipeline().scheduler.config[key] for key in SD} == SD
    context = json.loads(audit.screen(model, []).schema.metadata[b"crossaudit"])
    assert context["scheduler"] == SD
    assert model.about["scheduler"] == {
        "class": "PNDMScheduler",
        "without_effect": ["skip_prk_steps", "use_karras_sigmas"],
    }


def test_epsilon_prediction_from_all_noise_is_refused() -> None:
    zero = SD | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(AuditError, match="zero terminal SNR and the model predicts epsilon"):
        ddim(zero)
    assert DdimSchedule(zero | {"prediction_type": "v_prediction"}).first_informative == 1
    assert DdimSchedule(zero | {"timestep_spacing": "leading"}).first_informative == 0


def test_steps_that_start_beyond_the_training_timesteps_are_an_error() -> None:
    with pytest.raises(UsageError, match="starts at timestep 1000 of 1000"):
        ddim(SD, 1000)
