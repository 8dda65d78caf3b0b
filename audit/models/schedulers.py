"""Translate a checkpoint's scheduler file to DDIM sampling: every parameter becomes explicit, or an error is raised.

A scheduler file mixes two things: the noise schedule that the model was trained with, and the settings of one solver.
DDIM needs the former and has its own version of the latter. A parameter missing from the file takes the value that
diffusers would use for the class named in the file. The defaults of `DDIMScheduler`, which suit pixel models, are
never used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from audit.errors import AuditError, first_line

# StableDiffusionPipeline (diffusers 0.42) sets these two in its constructor, whatever the file says.
STABLE_DIFFUSION = {"clip_sample": False, "steps_offset": 1}

_COMMON = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    # Solvers that end at sigma 0 lack this parameter. SD's own schedulers, DDIM and PNDM, end at the first alpha.
    "set_alpha_to_one": False,
    # Many solvers default to "linspace", but that is how the solver places its steps; SD's DDIM steps are "leading".
    "timestep_spacing": "leading",
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "clip_sample_range": 1.0,
} | STABLE_DIFFUSION
_DDIM = {"set_alpha_to_one": True}
_NARROW = {"beta_start": 0.00085, "beta_end": 0.012}

# Classes whose models DDIM can sample, each with its defaults that differ from the common ones.
CLASSES: dict[str, dict[str, Any]] = {
    "DDIMScheduler": _DDIM,
    "DDIMParallelScheduler": _DDIM,
    "DDPMScheduler": {},
    "DDPMParallelScheduler": {},
    "PNDMScheduler": {},
    "LMSDiscreteScheduler": {},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "HeunDiscreteScheduler": _NARROW,
    "KDPM2DiscreteScheduler": _NARROW,
    "KDPM2AncestralDiscreteScheduler": _NARROW,
    "DPMSolverMultistepScheduler": {},
    "DPMSolverSinglestepScheduler": {},
    "DPMSolverSDEScheduler": _NARROW,
    "DEISMultistepScheduler": {},
    "UniPCMultistepScheduler": {},
    "SASolverScheduler": {},
}

# Settings of a solver: where and how it steps along the schedule. They say nothing about the model, so Karras,
# exponential, beta and log-SNR spacings of sigmas do not change what DDIM does.
SOLVER_KEYS = frozenset(
    {
        "algorithm_type",
        "corrector_order",
        "denoise_final",
        "disable_corrector",
        "euler_at_final",
        "final_sigmas_type",
        "flow_shift",
        "interpolation_type",
        "lambda_min_clipped",
        "lower_order_final",
        "noise_sampler_seed",
        "original_inference_steps",
        "predict_epsilon",
        "predict_x0",
        "predictor_order",
        "shift_terminal",
        "sigma_max",
        "sigma_min",
        "skip_prk_steps",
        "solver_order",
        "solver_p",
        "solver_type",
        "tau_func",
        "tensor_format",
        "time_shift_type",
        "timestep_scaling",
        "timestep_type",
        "timestep_values",
        "use_beta_sigmas",
        "use_dynamic_shifting",
        "use_exponential_sigmas",
        "use_flow_sigmas",
        "use_karras_sigmas",
        "use_lu_lambdas",
        "variance_type",
    }
)

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
SPACINGS = ("leading", "trailing", "linspace")
PREDICTIONS = ("epsilon", "v_prediction")

# Values of solver keys that reveal a different kind of model.
_OTHER_KIND: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("use_flow_sigmas", (True,), "the model is a flow-matching model"),
    ("timestep_type", ("continuous",), "the model takes continuous times"),
    ("variance_type", ("learned", "learned_range"), "the model predicts its variance too"),
    ("predict_epsilon", (False,), "the model predicts the image itself"),
)
_DISTILLED = (
    "Audit the model that it was distilled from; if these weights are not distilled, put its scheduler file here."
)
_BASE = "Audit a Stable Diffusion 1.x or 2.x model; if this is one, put the scheduler file of its base model here."
_REFUSED = (
    ("LCM", "it samples a consistency-distilled model, which DDIM does not", _DISTILLED),
    ("TCD", "it samples a consistency-distilled model, which DDIM does not", _DISTILLED),
    ("CMStochasticIterative", "it samples a consistency model, which DDIM does not", _DISTILLED),
    ("FlowM", "it samples a flow-matching model, which has no betas", _BASE),
    ("EDM", "its noise levels are EDM's sigmas, not betas", _BASE),
)


def read_scheduler(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read and resolve the scheduler file of a diffusers folder.

    Args:
        folder: A diffusers folder with `scheduler/scheduler_config.json`.

    Returns:
        The resolved parameters (see `resolve`), and the record for the manifest: `class`, the scheduler class of the
        file, and `without_effect`, the keys of the file that do not change DDIM sampling.

    Raises:
        AuditError: The file cannot be read, or DDIM cannot sample what it describes.
    """
    file = folder / "scheduler" / "scheduler_config.json"
    config = _read(file)
    index = folder / "model_index.json"
    listed = _read(index).get("scheduler") if index.is_file() else None
    in_index = listed[1] if isinstance(listed, list) and len(listed) == 2 else None
    names = [str(name) for name in (config.get("_class_name"), in_index) if name]
    for name in names:
        _check_class(name, str(file))
    if not names:
        hint = 'Add "_class_name", such as "DDIMScheduler", the class whose defaults apply to the missing keys.'
        raise AuditError("the file does not name its scheduler class", where=str(file), hint=hint)
    return resolve(config, names[0], str(file)), record(config, names[0])


def record(config: Mapping[str, Any], class_name: str) -> dict[str, Any]:
    """Describe a scheduler file for the manifest: its class, and the keys that do not change DDIM sampling."""
    return {"class": class_name, "without_effect": sorted(key for key in _written(config) if key in SOLVER_KEYS)}


def resolve(config: Mapping[str, Any], class_name: str, where: str | None = None) -> dict[str, Any]:
    """Resolve every parameter of DDIM sampling from a scheduler's configuration.

    Args:
        config: The configuration as written to disk, or that of a scheduler object (its defaults are ignored).
        class_name: Scheduler class of the configuration.
        where: The file, for errors.

    Returns:
        A value for each parameter of `DDIMScheduler`.

    Raises:
        AuditError: DDIM cannot sample with the class, a key or a value.
    """
    _check_class(class_name, where)
    written = _written(config)
    for key, values, what in _OTHER_KIND:
        if written.get(key) in values:
            raise _unsupported(f"{key} is {written[key]!r}: {what}", where, _BASE)
    unknown = sorted(written.keys() - _COMMON.keys() - SOLVER_KEYS)
    if unknown:
        what = f"unknown key {', '.join(unknown)}: it may change the noise schedule"
        raise _unsupported(what, where, "Remove the key if the model was trained without it; diffusers ignores it.")
    resolved = _COMMON | CLASSES[class_name] | {key: written[key] for key in written.keys() & _COMMON.keys()}
    resolved |= STABLE_DIFFUSION
    _check_values(resolved, where)
    return resolved


def _written(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that were written, without those that a class filled in with its own defaults."""
    filled = set(config.get("_use_default_values", ()))
    ignored = filled | {"auto_map", "quantization_config"}
    return {key: value for key, value in config.items() if key not in ignored and not key.startswith("_")}


def _check_class(name: str, where: str | None) -> None:
    if name in CLASSES:
        return
    for prefix, what, hint in _REFUSED:
        if name.startswith(prefix):
            raise _unsupported(f"the scheduler is {name}: {what}", where, hint)
    raise _unsupported(f"the scheduler is {name}, which is unknown here", where, f"Known: {', '.join(CLASSES)}.")


def _check_values(resolved: Mapping[str, Any], where: str | None) -> None:
    for key, offered in (
        ("beta_schedule", BETA_SCHEDULES),
        ("timestep_spacing", SPACINGS),
        ("prediction_type", PREDICTIONS),
    ):
        if resolved[key] not in offered:
            what = f"the scheduler's {key} is {resolved[key]!r}"
            raise _unsupported(what, where, f"Supported: {', '.join(offered)}.")
    for key in ("rescale_betas_zero_snr", "set_alpha_to_one", "thresholding"):
        if not isinstance(resolved[key], bool):
            raise _unsupported(f"the scheduler's {key} is {resolved[key]!r}", where, "Give true or false.")
    betas, longest = resolved["trained_betas"], resolved["num_train_timesteps"]
    if betas is not None and (not isinstance(betas, list) or len(betas) != longest):
        count = len(betas) if isinstance(betas, list) else "not a list of"
        what = f"trained_betas has {count} values, num_train_timesteps is {longest}"
        raise _unsupported(what, where, "Give one beta for each training timestep.")
    try:
        betas_T = DDIMScheduler(**resolved).betas
        sound = bool(((betas_T >= 0) & (betas_T <= 1)).all())
    except Exception as error:  # torch and numpy name neither the key nor the file
        what = f"no noise schedule can be computed from its values: {first_line(error)}"
        raise _unsupported(
            what, where, "Compare betas and num_train_timesteps with those of the base model."
        ) from error
    if not sound:
        what = "its betas are not all between 0 and 1"
        raise _unsupported(what, where, "Compare them with those of the base model.")


def _unsupported(what: str, where: str | None, hint: str) -> AuditError:
    return AuditError(what, where=where, hint=hint, kind="unsupported_model")


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        return content
    except (OSError, ValueError) as error:
        what = f"not readable as a JSON object: {first_line(error)}"
        raise AuditError(what, where=str(file), hint="Give the file as diffusers writes it.") from error
