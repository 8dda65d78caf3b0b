"""Read the scheduler of a flow-matching model, and compute the noise levels of a run as diffusers does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from audit.errors import AuditError, first_line
from audit.models.files import read_json
from audit.models.flow import LONGEST, FlowSchedule

NAME, MULTISTEP = "FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler"
CLASSES = {NAME: FlowMatchEulerDiscreteScheduler, MULTISTEP: DPMSolverMultistepScheduler}
# Values with which a scheduler solves a flow whose noise levels are shifted.
PLAIN: dict[str, dict[str, Any]] = {
    NAME: {"num_train_timesteps": LONGEST, "invert_sigmas": False, "stochastic_sampling": False},
    MULTISTEP: {
        "num_train_timesteps": LONGEST,
        "prediction_type": "flow_prediction",
        "thresholding": False,
        "use_dynamic_shifting": False,
        "use_flow_sigmas": True,
    },
}


def read_flow_scheduler(folder: Path, *, multistep: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the scheduler file of a diffusers folder.

    Of a `DPMSolverMultistepScheduler` only the shift of the noise levels belongs to the model. Everything else is a
    setting of its solver, in whose place Euler steps are taken.

    Args:
        folder: A diffusers folder with `scheduler/scheduler_config.json`.
        multistep: Whether the pipeline can run with a `DPMSolverMultistepScheduler`.

    Returns:
        A value for each parameter of `FlowMatchEulerDiscreteScheduler`, and the record for the manifest.

    Raises:
        AuditError: The scheduler is another one, or its noise levels are not those of a plain Euler solver.
    """
    file = folder / "scheduler" / "scheduler_config.json"
    written = {key: value for key, value in read_json(file).items() if key != "_diffusers_version"}
    kind = written.pop("_class_name", NAME)
    if kind not in (CLASSES if multistep else (NAME,)):
        raise _unsupported(f"the scheduler is {kind}", file, f"Put the base model's {NAME} here.")
    try:
        config = dict(CLASSES[kind](**written).config)
    except Exception as error:  # a TypeError for unknown keys, a ValueError for values
        hint = "Remove a key that this version of diffusers does not know, if the model was trained without it."
        raise _unsupported(f"its values are not valid: {first_line(error)}", file, hint) from error
    for key, plain in PLAIN[kind].items():
        if config[key] != plain:
            raise _unsupported(f"the scheduler's {key} is {config[key]!r}", file, f"Supported: {plain!r}.")
    without_effect: list[str] = []
    if kind == MULTISTEP:
        without_effect = sorted(written.keys() - {"flow_shift", *PLAIN[kind]})
        config = dict(FlowMatchEulerDiscreteScheduler(shift=config["flow_shift"]).config)
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    return config, {"class": kind, "without_effect": without_effect}


def flow_schedule(config: Mapping[str, Any], steps: int, patches: int, linear: bool) -> FlowSchedule:
    """Return the noise levels of a run.

    Args:
        config: Parameters of the scheduler.
        steps: Number of denoising steps.
        patches: Number of image positions that the network attends to; a dynamic shift grows with it.
        linear: Whether the pipeline gives levels from 1 to 1 / steps, which are then shifted, or none.
    """
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    lengths, shifts = ("base_image_seq_len", "max_image_seq_len"), ("base_shift", "max_shift")
    shift = calculate_shift(patches, *(config[name] for name in (*lengths, *shifts)))
    sigmas = np.linspace(1.0, 1 / steps, steps).tolist() if linear else None
    scheduler.set_timesteps(steps, sigmas=sigmas, mu=shift if config["use_dynamic_shifting"] else None)
    return FlowSchedule(scheduler.sigmas)


def _unsupported(what: str, file: Path, hint: str) -> AuditError:
    return AuditError(what, where=str(file), hint=hint, kind="unsupported_model")
