"""Check what can be checked before hours of work start, and report all problems at once.

A check takes the configuration, and raises one AuditError or yields several. To add a check, write a function and add
it to CHECKS. A check should take seconds at most, read no weights but those of a LoRA, and leave no files behind.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import pyarrow.fs as pafs

from audit.errors import AuditError, UsageError, first_line
from audit.models.hub_ids import is_hub_id
from audit.record.filesystem import open_filesystem, write_file
from audit.record.ledger import Ledger
from pipelines.configuration.config import Config
from pipelines.configuration.inputs import ModelFiles
from pipelines.configuration.settings import check_detectors
from pipelines.engine.imports import no_collector
from pipelines.engine.manifest import stored
from pipelines.engine.ray_token import require_token
from pipelines.reading import columns, input_files
from pipelines.reading.control_captions import read_control_captions
from pipelines.reading.local_copies import fetched
from pipelines.steps import calibration_checks, thresholds

if TYPE_CHECKING:
    from audit.models.model import Model

T = TypeVar("T")
# Minimum free disk space, in bytes.
LEAST_ROOM = 64 << 20
# Seconds within which a Ray cluster has to accept a connection.
PATIENCE = 5.0


def check(config: Config) -> input_files.Inputs:
    """Run all checks and return the input files.

    Raises:
        UsageError: Only the configuration is wrong. The message lists every problem.
        AuditError: Something else is wrong too.
    """
    problems, inputs = look(config)
    if len(problems) > 1:
        kind = UsageError if all(isinstance(problem, UsageError) for problem in problems) else AuditError
        raise kind("\n".join([f"{len(problems)} problems:", *(f"- {problem}" for problem in problems)]))
    if problems:
        raise problems[0]
    return inputs


def look(config: Config) -> tuple[list[AuditError], input_files.Inputs]:
    """Return all problems, and the input files that were found."""
    problems: list[AuditError] = []
    config = columns.resolved(config)
    captions = _noted(problems, lambda: input_files.find_captions(config)) or []
    images = _noted(problems, lambda: input_files.find_images(config)) or []
    for each in CHECKS:
        _noted(problems, lambda each=each: problems.extend(each(config) or ()))  # type: ignore[misc]
    return problems, input_files.Inputs(captions, images)


def _noted(problems: list[AuditError], work: Callable[[], T]) -> T | None:
    """Return the result of `work`. If it raises, append the error to `problems` and return None."""
    try:
        return work()
    except AuditError as error:
        problems.append(error)
    except OSError as error:
        problems.append(AuditError(first_line(error), where=error.filename))
    return None


def detectors(config: Config) -> None:
    """Check that all detectors are known."""
    check_detectors(config)


def control_captions(config: Config) -> Iterator[AuditError]:
    """Check that there are enough control captions for calibrate and confirm, if the dataset contains none of them."""
    from audit.calibration.calibration import MIN_HALF, halves_of
    from audit.duplicates.captions import caption_groups

    if found := _raised(lambda: calibration_checks.check(config)):
        yield from found
        return
    where = config.calibration.captions
    fit, held_out = halves_of(caption_groups(read_control_captions(where, config.calibration.column)))
    if min(fit, held_out) < MIN_HALF:
        what = (
            f"{fit + held_out} control captions are too few to calibrate a detector: {fit} would fit the distance and "
        )
        what += f"{held_out} would give p-values, and each half needs at least {MIN_HALF}"
        hint = f"Give at least {3 * MIN_HALF} distinct control captions, preferably 1,000 or more."
        yield AuditError(what, where=where, hint=hint)


def models(config: Config) -> list[AuditError]:
    """Check the files of the models, and that the LoRA weights fit the model."""
    problems: list[AuditError] = []
    model = _noted(problems, lambda: _model(config.model, config))
    if (reference := config.reference_model) is not None:
        _noted(problems, lambda: _model(reference, config))
    if (lora := config.lora) is not None:
        _noted(problems, lambda: _lora(lora, model))
    return problems


def embedders(config: Config) -> Iterator[AuditError]:
    """Check that the weights of the embedders exist."""
    from audit.embedding.published import PUBLISHED, find

    for name in config.confirm.embedders if config.images else ():
        weights = config.embedder(name).weights
        if weights in PUBLISHED:
            yield from _raised(lambda weights=weights: find(weights))  # type: ignore[misc]
        elif not is_hub_id(weights) or os.path.exists(weights):
            yield from _raised(lambda name=name, weights=weights: _there(weights, f"confirm.{name}.weights"))  # type: ignore[misc]


def floors(config: Config) -> None:
    """Check that the deciding embedder has a minimum similarity for copies."""
    thresholds.check(config)


def indexes(config: Config) -> Iterator[AuditError]:
    """Check that the indexes of other runs exist and are finished."""
    named = {"index.path": config.index.path}
    named |= {f"confirm.{name}.background": config.embedder(name).background for name in config.confirm.embedders}
    for key, path in named.items() if config.images else ():
        if path is not None and not ((index := stored(Ledger(path))) and index.finished):
            hint = "Build it with `crossaudit index AUDIT.YAML`."
            yield AuditError(f"{key} is not a finished index", where=path, hint=hint)


def out(config: Config) -> None:
    """Check that `out` is writable, and that workers see it."""
    if urlsplit(config.out).scheme == "memory" and config.engine.workers.max:
        what = "is in the memory of this process, and workers are other processes"
        raise UsageError(what, where=config.out, hint="Set `engine.workers: 0`, or choose another `out`.")
    check_out(config.out)


def check_out(uri: str) -> None:
    """Check that a run can be written to a path or URI.

    Raises:
        AuditError: The path is a file or lies below one, or the disk is read-only or full.
    """
    filesystem, path = open_filesystem(uri)
    hint = "Choose another `out` (--out), or fix this problem."
    if not isinstance(filesystem, pafs.LocalFileSystem):
        _put(filesystem, path, uri)
        return
    place = Path(path)
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        what = "is a file, not a folder" if place == Path(path) else f"lies below {place}, which is not a folder"
        raise UsageError(what, where=uri, hint=hint)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
        room = shutil.disk_usage(place).free
    except OSError as error:
        raise UsageError(f"cannot be written to: {error.strerror}", where=uri, hint=hint) from error
    if room < LEAST_ROOM:
        raise AuditError(f"only {room >> 20} MiB of disk space are free", where=uri, hint=hint)


def cluster(config: Config) -> None:
    """Check that the Ray cluster accepts connections and that there is a token for it."""
    address = config.engine.address
    if address is None:
        return
    require_token(address)
    known = urlsplit(address if "://" in address else f"ray://{address}")
    if known.hostname is None or known.port is None:
        return  # "auto" and the like
    try:
        socket.create_connection((known.hostname, known.port), PATIENCE).close()
    except OSError as error:
        hint = "Is the cluster running? Use the address that `ray start --head` prints, HEAD:6379."
        raise AuditError(f"no answer: {first_line(error)}", where=f"engine.address: {address}", hint=hint) from error


CHECKS: tuple[Callable[[Config], Iterable[AuditError] | None], ...] = (
    detectors,
    control_captions,
    models,
    embedders,
    floors,
    indexes,
    out,
    cluster,
)


def _raised(work: Callable[[], object]) -> list[AuditError]:
    problems: list[AuditError] = []
    _noted(problems, work)
    return problems


def _model(files: ModelFiles, config: Config) -> Model:
    """Check by configurations and headers alone that a model is supported and has weights, and screen.resolution.

    Returns:
        The model, without weights.
    """
    if "://" not in files.path and os.path.isabs(files.path) and not os.path.exists(files.path):
        hint = "Give a diffusers folder, a .safetensors file or a hub id."
        raise AuditError("no such model", where=files.path, hint=hint)
    with no_collector():
        from audit.detectors import run_detectors, screen_detectors
        from audit.models.files import weights_files
        from audit.models.weights import check_header
        from audit.scoring.supported import check_supported
        from pipelines.engine.models import outline
    model = outline(files)
    model.at_resolution(config.screen.pixels())
    check_supported(model, [*screen_detectors(config.screen.detectors), *run_detectors(config.generate.detectors)])
    place = Path(files.path)
    for name, network in model.networks.items() if place.is_dir() else ():
        found = weights_files(place / name, files.variant)
        check_header(network, found, name, str(place / name))
    return model


def _lora(path: str, model: Model | None) -> None:
    """Check that LoRA weights exist and fit the layers of a model without weights, if there is one."""
    from audit.models.loading import check_additions
    from audit.models.lora import add_lora

    _there(path, "lora")
    if model is not None:
        check_additions(type(model), {"lora": path}, path)
        add_lora(fetched(path), {name: part for name, part in model.networks.items() if name != "vae"})


def _there(path: str, key: str) -> None:
    filesystem, root = open_filesystem(path)
    if filesystem.get_file_info(root.rstrip("/")).type == pafs.FileType.NotFound:
        raise AuditError("no such file or folder", where=path, hint=f"Check `{key}` in the configuration.")


def _put(filesystem: pafs.FileSystem, root: str, uri: str) -> None:
    """Check that a folder is writable, by writing a file there and removing it."""
    name = f"{root.rstrip('/')}/.{uuid.uuid4().hex}.tmp"
    try:
        write_file(filesystem, name, b"crossaudit")
        filesystem.delete_file(name)
    except OSError as error:
        hint = "Does the bucket exist, and may you write to it? For s3://, check the AWS_ environment variables."
        raise AuditError(f"cannot be written to: {first_line(error)}", where=uri, hint=hint) from error
