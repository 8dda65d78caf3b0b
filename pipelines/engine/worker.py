"""The worker process: it loads the model and the embedders once and does the work of all stages."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from audit.errors import UsageError, first_line
from audit.record.ledger import Ledger, Shard, Tables
from pipelines.configuration.config import Config
from pipelines.configuration.inputs import ModelFiles
from pipelines.console import logs
from pipelines.engine.imports import no_collector
from pipelines.reading.local_copies import fetched

if TYPE_CHECKING:
    from audit.embedding.embedder import Embedder
    from audit.models.model import Model
    from audit.scoring.screening import Unconditional


Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class Work(Protocol):
    """The work that a worker does on a shard. `pipelines.engine.step.Step` implements it."""

    @property
    def work(self) -> Callable[[Worker, Shard], Tables]:
        """Called with a worker and a shard; returns the tables of the shard."""
        ...

    def commit(self, shard: Shard, pieces: list[Tables]) -> dict[str, int]:
        """Write the tables of a shard and return their row counts by table."""
        ...


class Worker:
    """Does the work of all stages, and keeps what it has loaded. The pool runs it in a `RemoteWorker`.

    Args:
        config: The configuration of the run.
        own_process: Whether the worker has a process of its own, which it may end.
    """

    def __init__(self, config: Config, own_process: bool = True) -> None:
        threads = config.engine.cpus_per_worker
        # OpenMP and BLAS read these variables when torch and faiss are imported later.
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(threads)
        self.config, self.ledger, self._own_process = config, Ledger(config.out), own_process
        self.device = "cuda" if config.engine.gpus_per_worker else "cpu"
        self._embedders: dict[str, Embedder] = {}
        self.cache: dict[Any, Any] = {}
        self._sees_run = False

    def prepare(self, *needs: str) -> dict[str, dict[str, str]]:
        """Load "model", "reference_model" or embedders by name.

        Returns:
            For each name, the sha256 of the files and of the loaded weights. Models also have their resolution, and
            embedders how they prepare images.
        """
        return {name: dict(self._loaded(name)) for name in needs}

    def _loaded(self, name: str) -> Mapping[str, str]:
        if name == "reference_model":
            assert self.reference is not None
            return self.reference.fingerprint
        return self.model.fingerprint if name == "model" else self.embedder(name).fingerprint

    def about(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return what the manifest records about models, by name (`audit.record.manifest_entries.Checkpoint`)."""
        from audit.detectors import uncalibrated
        from audit.models.precision import numerics

        detectors = [*self.config.screen.detectors, *self.config.generate.detectors]
        models = {name: self.reference if name == "reference_model" else self.model for name in names}
        return {
            name: {
                "sampling": dict(model.scheduler_config),
                "numerics": numerics(),
                "batch_sizes": model.batch_sizes,
                "uncalibrated": uncalibrated(detectors, type(model)),
                **model.about,
            }
            for name, model in models.items()
            if model is not None
        }

    def context(self) -> bytes:
        """Return the serialized schema of `screen`. Its metadata holds everything that the columns depend on."""
        import audit

        screen = self.config.screen
        table = audit.screen(
            self.model, [], screen.seeds, screen.detectors, reference=self.reference, resolution=screen.pixels()
        )
        return table.schema.serialize().to_pybytes()

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function with this worker and the arguments, and return its result."""
        return function(self, *arguments)

    def run(self, step: Work, shard: Shard) -> dict[str, int]:
        """Process a shard and write its tables. Raises UsageError if this machine cannot see the run."""
        self._sees_run = self._sees_run or self.ledger.holds_anything()
        if not self._sees_run:
            what = f"the run has begun, but the machine {socket.gethostname()} sees an empty folder here"
            hint = "`out` must be a URI, or a folder that all machines share."
            raise UsageError(what, where=self.config.out, hint=hint)
        return step.commit(shard, [self.compute(step, shard)])

    def compute(self, step: Work, shard: Shard) -> Tables:
        """Process a shard and return its tables."""
        try:
            return step.work(self, shard)
        except Exception as error:
            if "CUDA error" not in str(error):
                raise
            from audit.scoring.memory import out_of_memory

            if out_of_memory(error):
                raise
            # After other CUDA errors, nothing works in this process. The pool sees a dead worker and starts a new one.
            if self._own_process:
                logger.exception("this worker ends because of a CUDA error")
                logs.write()
                os._exit(1)
            what = f"the GPU cannot be used any more: {first_line(error)}"
            raise UsageError(what, hint="Rerun the command to resume, with `engine.workers` of at least 1.") from error

    @cached_property
    def model(self) -> Model:
        """The model under audit."""
        return self._load(self.config.model, self.config.lora)

    @cached_property
    def reference(self) -> Model | None:
        """The reference model, whose scores are subtracted, or None."""
        files = self.config.reference_model
        return None if files is None else self._load(files)

    @cached_property
    def unconditional(self) -> Unconditional:
        """What the screen predicts without a caption, which all shards share."""
        return {}

    def _load(self, files: ModelFiles, lora: str | None = None) -> Model:
        self._one_torch()
        from audit.models.precision import resolve_dtype
        from pipelines.engine.models import load

        logs.capture_libraries()
        engine = self.config.engine
        return load(files, lora, self.device, resolve_dtype(engine.dtype, self.device), engine.compile)

    def embedder(self, name: str) -> Embedder:
        """Return an embedder by name. Loads it on the first call."""
        if name not in self._embedders:
            self._one_torch()
            with no_collector():
                from audit.embedding.loading import load_embedder

            network = self.config.embedder(name).network()
            network["weights"] = fetched(network["weights"])
            self._embedders[name] = load_embedder(name, device=self.device, **network)
        return self._embedders[name]

    def _one_torch(self) -> None:
        with no_collector():
            import torch

            from audit.models.precision import use_exact_float32

        torch.set_num_threads(self.config.engine.cpus_per_worker)
        use_exact_float32()
