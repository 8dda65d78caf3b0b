"""Process the rows of a screen or a generation (captions x seeds) in batches and collect them in one Arrow table."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from audit import schema
from audit.errors import UsageError
from audit.images.png import map_png
from audit.models.conditioning import Conditioning, Tokens
from audit.models.model import Model
from audit.models.noise import initial_latents
from audit.models.precision import name_of, overflow_hint, uses_tf32
from audit.models.transfers import to_device
from audit.scoring.memory import at_once, in_batches, most_rows, usual_batch, waits_on

T = TypeVar("T")

AHEAD = 256  # captions; what FLUX is given of them fills 1 GiB
_CPU = torch.device("cpu")

# Shapes: B rows of a batch, N captions, S seeds, R = N x S rows, n values of a column.


@dataclass(frozen=True)
class Batch:
    """A slice of the rows, ready for the denoiser.

    Attributes:
        rows: Which rows the batch holds.
        conditioning: What the denoiser is given of the captions.
        prompt_tokens_B: Number of words of each prompt, plus two.
        same_as_empty_B: Whether the denoiser is given the same as without a caption.
        seed_B: Index of each row's seed.
    """

    rows: slice
    conditioning: Conditioning
    prompt_tokens_B: Tensor
    same_as_empty_B: Tensor
    seed_B: Tensor

    def one(self, row: int) -> Batch:
        """Return a batch with only the given row of this one."""
        at = slice(row, row + 1)
        return Batch(
            slice(self.rows.start + row, self.rows.start + row + 1),
            self.conditioning[at],
            self.prompt_tokens_B[at],
            self.same_as_empty_B[at],
            self.seed_B[at],
        )


class Rows:
    """All rows of a screen or a generation: captions x seeds, caption-major.

    Raises:
        UsageError: The captions, the seeds or the batch size are invalid.
    """

    def __init__(self, model: Model, captions: Sequence[str], seeds: Sequence[int], batch_size: int | None) -> None:
        self.model, self.captions, self.seeds = model, _checked_captions(captions), _checked_seeds(seeds)
        self._batch_size = batch_size
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}", hint="Give a positive number, or None for the default.")
        self.prompt_tokens_R = np.zeros(len(self), dtype=np.int64)
        self.broken_at: dict[int, str] = {}  # row -> where its values stopped being finite
        self._ahead: dict[tuple[int, int], Conditioning] = {}  # start and stop of a batch -> its captions

    def __len__(self) -> int:
        return len(self.captions) * len(self.seeds)

    @cached_property
    def noise_SCHW(self) -> Tensor:
        """Draw the initial latents of the seeds: [S, C, H, W], float32, on the model's device."""
        return initial_latents(self.seeds, self.model.latent_shape, self.model.device)

    @cached_property
    def null(self) -> Conditioning:
        """What the denoiser is given without a caption: one row."""
        return self.model.null()

    @cached_property
    def _null_tokens(self) -> Tokens | None:
        return self.model.null_tokens()

    def each(self, task: str, work: Callable[[slice], T], done: Callable[[int], None] | None = None) -> list[T]:
        """Apply `work` to all rows, one batch at a time, and return the results in order.

        If no batch size was given, a larger one is looked for on a GPU, and one that does not fit in memory is halved.
        The model remembers the size for this task.

        Args:
            task: Name under which the model remembers the batch size.
            work: Called with the rows of each batch.
            done: Called after each batch with the number of rows that are done.

        Returns:
            The result of each batch, in order.
        """
        return self.each_ahead(task, at_once(work), done)

    def each_ahead(
        self, task: str, begin: Callable[[slice], Callable[[], T]], done: Callable[[int], None] | None = None
    ) -> list[T]:
        """Process all rows as `each` does, but start each batch before waiting for the result of the previous one.

        While a GPU works on a batch, the next one is tokenized and queued.

        Args:
            task: As for `each`.
            begin: Starts the work on the rows of a batch and returns a function that waits for its result.
            done: As for `each`.

        Returns:
            The result of each batch, in order.
        """
        if done is not None:
            begin = _telling(begin, done)
        if self._batch_size is not None:
            return in_batches(len(self), self._batch_size, begin, lambda found: None, halve=False)
        sizes = self.model.batch_sizes
        _, height, width = self.model.latent_shape
        task = f"{task} at {height} x {width}"  # in latent pixels
        kind = self.model.device.type
        size, most = (sizes[task], None) if task in sizes else (usual_batch(kind), most_rows(kind))
        waits = waits_on(self.model.device)
        return in_batches(len(self), size, begin, lambda found: sizes.update({task: found}), waits, most)

    def batch(self, rows: slice) -> Batch:
        """Encode the given rows; each caption among them is tokenized and encoded once."""
        caption_B, seed_B = np.divmod(np.arange(rows.start, rows.stop), len(self.seeds))
        encoded = self._encoded_ahead(rows) if self.model.takes_turns else self._encode(rows)
        conditioning = encoded[torch.from_numpy(caption_B - caption_B[0])]
        assert conditioning.tokens is not None
        self.prompt_tokens_R[rows] = conditioning.tokens.counts_B.numpy()
        return Batch(
            rows=rows,
            conditioning=conditioning,
            prompt_tokens_B=to_device(conditioning.tokens.counts_B, self.model.device),
            same_as_empty_B=to_device(conditioning.tokens.same_as(self._null_tokens), self.model.device),
            seed_B=to_device(torch.from_numpy(seed_B), self.model.device),
        )

    def _encode(self, rows: slice) -> Conditioning:
        first, last = rows.start // len(self.seeds), (rows.stop - 1) // len(self.seeds)
        return self.model.encode(self.captions[first : last + 1])

    def _encoded_ahead(self, rows: slice) -> Conditioning:
        """Encode the captions of rows, and with them those of the next batches of the same size.

        Each batch is encoded by itself, so its values are the same as without the others.
        """
        if (rows.start, rows.stop) not in self._ahead:
            size, end = rows.stop - rows.start, len(self)
            starts = range(rows.start, min(end, rows.start + max(size, AHEAD * len(self.seeds))), size)
            batches = [slice(start, min(start + size, end)) for start in starts]
            self._ahead = {(each.start, each.stop): self._encode(each).to(_CPU) for each in batches}
        return self._ahead.pop((rows.start, rows.stop)).to(self.model.device)

    def table(
        self,
        together: Sequence[Sequence[str]],
        found: Sequence[dict[str, npt.NDArray[Any]]],
        context: dict[str, Any],
        *,
        output: str | None = None,
        produced: Sequence[dict[str, Any]] = (),
    ) -> pa.Table:
        """Build the table of `schema.scored` from the results of the batches.

        Args:
            together: Columns of each detector. If one of them is not finite in a row, all of them are null in that row.
            found: Per batch, column -> values [B] or [B, n].
            context: What the columns depend on, for the schema's metadata.
            output: Name of the output column, if there is one.
            produced: Per batch, the output of each row and whether it is finite.

        Returns:
            One row per caption and seed. If anything in a row is not finite, its status is "error" and `error` names
            the columns; values that are finite are kept.
        """
        columns = [name for names in together for name in names]
        layout = schema.scored(columns, output=output)
        joined = {name: np.concatenate([part[name] for part in found]) for name in columns if found}
        broken: dict[str, npt.NDArray[np.bool_]] = {}
        for names in together if found else ():
            bad = {name: ~finite_rows(joined[name]) for name in names}
            broken |= {name: np.any(list(bad.values()), axis=0) for name in names}
        if output and produced:
            broken[output] = ~np.concatenate([part["finite"] for part in produced])
        fine = np.ones(len(self), dtype=bool)
        for bad_R in broken.values():
            fine &= ~bad_R
        data: dict[str, pa.Array] = {
            "caption": pa.array(np.repeat(np.array(self.captions, dtype=object), len(self.seeds)), pa.string()),
            "seed": pa.array(np.tile(np.array(self.seeds, dtype=np.int64), len(self.captions))),
            "prompt_tokens": pa.array(self.prompt_tokens_R),
            "status": pa.array(np.where(fine, "ok", "error").tolist(), pa.string()),
            "error": pa.array([None if ok else self._why(broken, row) for row, ok in enumerate(fine)], pa.string()),
        }
        for name in columns:
            data[name] = self._column(joined.get(name), layout.field(name).type, ~broken.get(name, ~fine))
        if output:
            outputs = [value for part in produced for value in part["values"]]
            bad_R = broken.get(output, ~fine)
            kept = [None if bad else value for value, bad in zip(outputs, bad_R, strict=True)]
            data[output] = pa.array(kept, layout.field(output).type)
        metadata = {schema.METADATA_KEY: json.dumps(context, sort_keys=True).encode()}
        return pa.table([data[name] for name in layout.names], schema=layout.with_metadata(metadata))

    def _why(self, broken: dict[str, npt.NDArray[np.bool_]], row: int) -> str:
        names = [name for name, bad_R in broken.items() if bad_R[row]]
        if row not in self.broken_at:
            return f"not finite: {', '.join(names)}{overflow_hint(self.model.dtype)}"
        only = f" ({', '.join(names)} only)" if len(names) < len(broken) else ""
        return f"not finite: {self.broken_at[row]}{only}{overflow_hint(self.model.dtype)}"

    def context(self, detectors: Sequence[Any]) -> dict[str, Any]:
        """Return what the columns of these detectors depend on, in a form that JSON can hold."""
        model = self.model
        found = {
            "weights": {name: sha256 for name, sha256 in model.weights_sha256.items() if name != "vae"},
            "dtype": name_of(model.dtype),
            "seeds": self.seeds,
            "scheduler": dict(model.scheduler_config),
            "latent_shape": list(model.latent_shape),
            "detectors": {detector.name: detector.version for detector in detectors},
        }
        if model.settings:
            found["settings"] = dict(model.settings)
        return found | {"tf32": True} if uses_tf32(model.device, model.dtype) else found

    def _column(self, values_Rn: npt.NDArray[Any] | None, kind: pa.DataType, finite: npt.NDArray[np.bool_]) -> pa.Array:
        if values_Rn is None:
            return pa.array([], kind)
        if pa.types.is_binary(kind):
            _, height, width = self.model.latent_shape
            pictures = zip(values_Rn, finite, strict=True)
            return pa.array([map_png(row, height, width) if ok else None for row, ok in pictures], kind)
        if not pa.types.is_list(kind):
            return pa.array(values_Rn, kind, mask=~finite)
        offsets = pa.array(np.arange(len(values_Rn) + 1, dtype=np.int32) * values_Rn.shape[1])
        flat = pa.array(np.where(finite[:, None], values_Rn, 0.0).ravel(), kind.value_type)
        return pa.ListArray.from_arrays(offsets, flat, type=kind, mask=pa.array(~finite))


def finite_rows(values_Bn: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Tell which rows of values [B] or [B, n] are finite: [B] bool."""
    return np.isfinite(values_Bn.reshape(len(values_Bn), -1)).all(1)


def _telling(
    begin: Callable[[slice], Callable[[], T]], done: Callable[[int], None]
) -> Callable[[slice], Callable[[], T]]:
    def begin_telling(at: slice) -> Callable[[], T]:
        result = begin(at)

        def tell() -> T:
            value = result()
            done(at.stop)
            return value

        return tell

    return begin_telling


def _checked_captions(captions: Sequence[str]) -> list[str]:
    if isinstance(captions, str):
        raise UsageError("captions is one string", hint="Give a list of strings.")
    listed = list(captions)
    for at, caption in enumerate(listed):
        if not isinstance(caption, str):
            raise UsageError(f"caption {at} is {caption!r}, not a string", hint="Leave missing captions out.")
        try:
            caption.encode()
        except UnicodeEncodeError as error:
            what = f"caption {at} is not valid Unicode: {error.reason}"
            raise UsageError(what, hint="Leave it out or fix it.") from None
    return listed


def _checked_seeds(seeds: Sequence[int]) -> list[int]:
    listed = [int(seed) for seed in seeds]
    if not listed or len(set(listed)) < len(listed) or any(not 0 <= seed < 2**63 for seed in listed):
        raise UsageError(f"seeds is {listed}", hint="Give one or more distinct non-negative integers.")
    return listed
