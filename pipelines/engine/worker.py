"""What runs in a worker process: the model and the embedders, loaded once, and the work of every stage."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from audit.errors import UsageError
from audit.record.ledger import Ledger, Shard, Tables
from pipelines.configuration.config import Config, ModelFiles
from pipelines.reading.local_copies import fetched

if TYPE_CHECKING:
    from audit.embedding.embedder import Embedder
    from audit.models.model import Model


Result = TypeVar("Result")


class Work(Protocol):
    """What a worker does with a shard; `pipelines.engine.step.Step` is one."""

    @property
    def work(self) -> Callable[[Worker, Shard], Tables]: ...

    def commit(self, shard: Shard, pieces: list[Tables]) -> dict[str, int]: ...


class Worker:
    """One Ray actor of the pool serves all stages: what it has loaded stays loaded."""

    def __init__(self, config: Config) -> None:
        threads = config.engine.cpus_per_worker
        # Read by OpenMP and BLAS when torch and faiss are imported, which is later.
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(threads)
        self.config, self.ledger = config, Ledger(config.out)
        self.device = "cuda" if config.engine.gpus_per_worker else "cpu"
        self._embedders: dict[str, Embedder] = {}
        self.cache: dict[Any, Any] = {}
        self._sees_run = False

    def prepare(self, *needs: str) -> dict[str, dict[str, str]]:
        """Loads "model", "reference_model" or embedders by name; returns the sha256 of their files and of their
        weights as loaded, by name (and the resolution of a model, and how an embedder prepares its images)."""
        return {name: dict(self._loaded(name)) for name in needs}

    def _loaded(self, name: str) -> Mapping[str, str]:
        if name == "reference_model":
            assert self.reference is not None
            return self.reference.fingerprint
        return self.model.fingerprint if name == "model" else self.embedder(name).fingerprint

    def about(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """For the manifest: how models are sampled, and which files of their folders are not read, by name."""
        models = {name: self.reference if name == "reference_model" else self.model for name in names}
        return {
            name: {"sampling": dict(model.scheduler_config), **model.about}
            for name, model in models.items()
            if model is not None
        }

    def context(self) -> bytes:
        """What the columns of `screen` depend on, as the metadata of its schema."""
        import audit

        screen = self.config.screen
        table = audit.screen(self.model, [], screen.seeds, screen.detectors, reference=self.reference)
        return table.schema.serialize().to_pybytes()

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Return what a function makes of this worker and the arguments."""
        return function(self, *arguments)

    def run(self, step: Work, shard: Shard) -> dict[str, int]:
        """Writes a shard. Raises UsageError on a machine that does not see the run."""
        self._sees_run = self._sees_run or self.ledger.holds_anything()
        if not self._sees_run:
            what = f"the machine {socket.gethostname()} sees nothing there, where the run has begun"
            hint = "`out` has to be a URI, or a folder that all machines share."
            raise UsageError(what, where=self.config.out, hint=hint)
        return step.commit(shard, [self.compute(step, shard)])

    def compute(self, step: Work, shard: Shard) -> Tables:
        try:
            return step.work(self, shard)
        except Exception as error:
            if "CUDA error" in str(error):
                # Nothing works in this process any more; the pool sees a dead worker and makes a new one.
                os._exit(1)
            raise

    @cached_property
    def model(self) -> Model:
        return self._load(self.config.model, self.config.lora)

    @cached_property
    def reference(self) -> Model | None:
        """The model whose scores are taken off, if there is one."""
        files = self.config.reference_model
        return None if files is None else self._load(files)

    def _load(self, files: ModelFiles, lora: str | None = None) -> Model:
        self._one_torch()
        from audit.models.precision import resolve_dtype
        from pipelines.engine.models import load

        return load(files, lora, self.device, resolve_dtype(self.config.engine.dtype, self.device))

    def embedder(self, name: str) -> Embedder:
        if name not in self._embedders:
            self._one_torch()
            from audit.embedding.loading import load_embedder

            network = self.config.embedder(name).network()
            network["weights"] = fetched(network["weights"])
            self._embedders[name] = load_embedder(name, device=self.device, **network)
        return self._embedders[name]

    def _one_torch(self) -> None:
        import torch

        from audit.models.precision import use_exact_float32

        torch.set_num_threads(self.config.engine.cpus_per_worker)
        use_exact_float32()
