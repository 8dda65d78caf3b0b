"""Norms of the runs of control captions, step by step: what `Stabilise` and `only=` compare a run with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from audit.errors import AuditError, UsageError

# Shapes: R runs of control captions, S steps, N images.

Norms = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class RunBands:
    """Norms of the plain runs of control captions, one tuple per run with one number per step.

    Attributes:
        timesteps: The timesteps of the runs.
        guidance_scale: Their guidance scale.
        latent_shape: (C, H, W) of their latents.
        weights_sha256: Hashes of the files of the model.
        guidance: ||eps(c) - eps(null)||.
        clean: Norm of the predicted clean latent, after guidance.
        update: Norm of the change of the latent by the step.
        latent: Norm of the latent after the step.
    """

    timesteps: tuple[float, ...]
    guidance_scale: float
    latent_shape: tuple[int, ...]
    weights_sha256: tuple[tuple[str, str], ...]
    guidance: Norms
    clean: Norms
    update: Norms
    latent: Norms

    def band(self, name: str, tail: float) -> np.ndarray:
        """Return the quantiles `tail`, 0.5 and 1 - `tail` of a norm at each step: [3, S].

        Args:
            name: "guidance", "clean", "update" or "latent".
            tail: The fraction of the control runs below the band, and above it.
        """
        return np.quantile(np.array(getattr(self, name)), [tail, 0.5, 1 - tail], axis=0)

    def check_weights(self, pipeline: Any) -> None:
        """Raise UsageError if the pipeline's weights are unknown or others than those of the runs."""
        model = getattr(pipeline, "audited", None)
        if model is None:
            what = "it cannot be checked that the bands are those of the weights of this pipeline"
            raise UsageError(what, hint="Create the pipeline with audit.load_model(path).pipeline().")
        if dict(model.weights_sha256) != dict(self.weights_sha256):
            raise UsageError("the bands are those of other weights", hint="Fit them again (audit.fit_run_bands).")

    def check_call(self, pipeline: Any, latent_shape: tuple[int, ...]) -> None:
        """Raise UsageError if a call has other steps, another guidance scale or another resolution than the runs."""
        scheduler = pipeline.scheduler
        found = {
            "timesteps": tuple(float(t) for t in scheduler.timesteps[-pipeline.num_timesteps :]),
            "guidance_scale": float(pipeline.guidance_scale),
            "latent_shape": latent_shape,
        }
        for name, value in found.items():
            if value != getattr(self, name):
                what = f"the bands were fitted with {name} {getattr(self, name)}, but this call has {value}"
                raise UsageError(what, hint="Call the pipeline as in the fit, or fit bands for this call.")
        if float(scheduler.init_noise_sigma) != 1:
            what = f"{type(scheduler).__name__} scales the latents, whose norms are then not those of the bands"
            raise AuditError(what, hint="Use DDIM, PNDM or DPM-Solver.", kind="unsupported_model")

    def save(self, path: str | Path) -> None:
        """Write the bands to a JSON file."""
        Path(path).write_text(self._json + "\n", "utf-8")

    @cached_property
    def _json(self) -> str:
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        return hashlib.sha256(self._json.encode()).hexdigest()[:8]


def load_run_bands(path: str | Path) -> RunBands:
    """Read the bands that `RunBands.save` wrote.

    Args:
        path: The JSON file.

    Raises:
        AuditError: The file cannot be read, or does not hold bands.
    """
    again = "Write it with audit.fit_run_bands(...).save(path)."
    try:
        found = json.loads(Path(path).read_text("utf-8"))
        bands = RunBands(**{field.name: _tuples(found[field.name]) for field in fields(RunBands)})
        shapes = {np.array(getattr(bands, name)).shape for name in ("guidance", "clean", "update", "latent")}
    except OSError as error:
        raise AuditError(f"the bands cannot be read: {error.strerror}", where=str(path), hint=again) from error
    except (ValueError, KeyError, TypeError) as error:
        raise AuditError("this file does not hold the bands of runs", where=str(path), hint=again) from error
    if len(shapes) != 1 or shapes.pop()[1:] != (len(bands.timesteps),):
        raise AuditError("the bands do not have one number per run and step", where=str(path), hint=again)
    return bands


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
