"""Read audit.yaml: apply overrides, resolve paths, and report errors with the closest valid key."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from audit.embedding.published import PUBLISHED
from audit.errors import UsageError, first_line
from audit.models.hub_ids import is_hub_id
from pipelines.configuration.config import Config
from pipelines.configuration.yaml_mapping import Lines, read_yaml


def load_config(path: str | Path, overrides: Sequence[str] = (), out: str | None = None) -> tuple[Config, dict]:
    """Read a configuration file, apply overrides and resolve its paths.

    Args:
        path: The file. Its relative paths are relative to its folder.
        overrides: Strings `a.b=c`, where c is parsed as YAML. Relative paths are relative to the working directory.
        out: Replaces the key `out`. Relative to the working directory.

    Returns:
        The resolved configuration, and the mapping as the user gave it.

    Raises:
        UsageError: The configuration is wrong. The message has one line per mistake.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError("no such file", where=str(path), hint="`crossaudit init` writes a commented template.")
    try:
        given, lines = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot be read: {first_line(error)}", where=str(path)) from error
    if not isinstance(given, dict):
        hint = "`crossaudit init` writes a commented template."
        raise UsageError("is not a mapping of keys to values", where=str(path), hint=hint)
    # YAML reads a section whose keys are all commented out as null.
    given = {key: value for key, value in given.items() if value is not None}
    given = _resolve_paths(given, path.parent.absolute())
    for override in overrides:
        _override(given, override)
    if out is not None:
        given["out"] = absolute(out, Path.cwd()) if out.strip() else out
    replaced = [tuple(override.partition("=")[0].strip().split(".")) for override in overrides]
    replaced += [("out",)] if out is not None else []
    lines = {at: line for at, line in lines.items() if not any(_overlap(at, other) for other in replaced)}
    _refuse_empty_paths(given, str(path), lines)
    try:
        config = Config.model_validate(given)
    except ValidationError as error:
        raise UsageError("\n".join(_explain(item, str(path), lines) for item in error.errors())) from None
    return config.model_copy(update={"out": absolute(config.out, path.parent.absolute())}), given


def absolute(value: str, base: Path) -> str:
    """Return a URI or an absolute path unchanged, and any other path joined to `base`."""
    return value if "://" in value else os.path.normpath(base / Path(value).expanduser())


_SSCD, _CLIP = ("confirm", "sscd", "weights"), ("confirm", "clip", "weights")
# Keys that accept `organisation/name`, which is not a path: a model on the hub, or an open_clip architecture and tag.
_MODELS = (("model",), ("model", "path"), ("reference_model",), ("reference_model", "path"), _CLIP)
_BESIDE_MODELS = (("config",), ("textual_inversion",), ("textual_inversion", "path"))
# Sections that may be given as a bare path.
_SHORT = ("model", "reference_model", "captions", "images")
# Keys of audit.yaml that hold paths. Keys of list items are named as if the list were one item.
_PATHS = (
    *_MODELS,
    *((model, *key) for model in ("model", "reference_model") for key in _BESIDE_MODELS),
    ("lora",),
    ("captions",),
    ("captions", "path"),
    ("images",),
    ("images", "path"),
    ("calibration", "captions"),
    ("calibration", "screen"),
    ("calibration", "pairs"),
    _SSCD,
    ("index", "path"),
    ("confirm", "sscd", "background"),
    ("confirm", "clip", "background"),
    ("out",),
)


def _resolve_paths(given: dict[str, Any], base: Path) -> dict[str, Any]:
    def walk(node: Any, at: tuple[str, ...]) -> Any:
        if isinstance(node, dict):
            return {key: walk(value, (*at, str(key))) for key, value in node.items()}
        if at in _PATHS and isinstance(node, str):
            return _resolved(at, node, base)
        if at in _PATHS and isinstance(node, list):
            return [_resolved(at, item, base) if isinstance(item, str) else walk(item, at) for item in node]
        return node

    return walk(given, ())


def _refuse_empty_paths(given: dict[str, Any], where: str, lines: Lines) -> None:
    """Raise UsageError for an empty path, which would otherwise resolve to the folder it is relative to."""
    for at in _PATHS:
        node: Any = given
        for key in at:
            node = node.get(key) if isinstance(node, dict) else None
        for value in node if isinstance(node, list) else [node]:
            if isinstance(value, str) and (not value.strip() or "\0" in value):
                what = f"{where}: {'.'.join(at)} should be a path or a URI, not {value!r}{_in_line(at, lines)}"
                raise UsageError(what)


def _resolved(at: tuple[str, ...], value: str, base: Path) -> str:
    """Return a path as absolute; return model names and invalid paths unchanged."""
    if not value.strip() or "\0" in value:
        return value
    path = absolute(value, base)
    named = (at in _MODELS and is_hub_id(value)) or (at == _SSCD and value in PUBLISHED)
    return value if named and not os.path.exists(path) else path


def _override(given: dict[str, Any], override: str) -> None:
    """Set the key of an override, such as `select.budget=500`, in the mapping `given`."""
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise UsageError(f"--set {override}: expected key=value", hint="For example --set select.budget=500")
    value, _ = read_yaml(text, f"--set {name}")
    keys = tuple(name.strip().split("."))
    if not all(keys):
        hint = "For example --set select.budget=500"
        raise UsageError(f"--set {override}: {name.strip()} is not a valid key", hint=hint)
    if keys in _PATHS and isinstance(value, str):
        value = _resolved(keys, value, Path.cwd())
    node = given
    for key in keys[:-1]:
        child = node.get(key)
        if not isinstance(child, dict):
            child = {"path": child} if key in _SHORT and child is not None else {}
            node[key] = child
        node = child
    node[keys[-1]] = value


def _overlap(at: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Return whether the keys are equal or one is a section that contains the other."""
    return all(one == two for one, two in zip(at, other, strict=False))


def _in_line(at: Sequence[str], lines: Lines) -> str:
    """Return the line of a key as " (line N)", or "" if the key is not in the file."""
    return f" (line {lines[tuple(at)]})" if tuple(at) in lines else ""


def _explain(item: Any, where: str, lines: Lines) -> str:
    """Return the message for one mistake: the file, the key, what was expected, and the line of the key."""
    at = [str(part) for part in item["loc"]]
    known = next((at[:length] for length in range(len(at), 0, -1) if tuple(at[:length]) in lines), at)
    return f"{_mistake(item, where)}{_in_line(known, lines)}"


def _mistake(item: Any, where: str) -> str:
    at = [str(part) for part in item["loc"]]
    name = ".".join(at)
    if item["type"] == "extra_forbidden":
        known = _keys_at(at[:-1])
        near = difflib.get_close_matches(at[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*at[:-1], near[0]])}?" if near else f"known here: {', '.join(known)}"
        return f"{where}: unknown key {name}; {hint}"
    if item["type"] == "missing":
        return f"{where}: {name} is missing"
    if item["type"] == "value_error":
        return f"{where}: {name + ': ' if name else ''}{item['ctx']['error']}"
    wanted = item["msg"].removeprefix("Input ")
    return f"{where}: {name} {wanted}, not {item['input']!r}"


def _keys_at(at: Sequence[str]) -> list[str]:
    model: type[BaseModel] = Config
    for part in at:
        annotation = model.model_fields[part].annotation
        models = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        model = next(kind for kind in models if issubclass(kind, BaseModel))
    return list(model.model_fields)


def check_detectors(config: Config) -> None:
    """Check that every detector is known and belongs to the section that names it.

    Raises:
        UsageError: A detector is unknown or is in the wrong section.
    """
    from audit.detectors import run_detectors, screen_detectors

    for key, names, check in (
        ("screen.detectors", config.screen.detectors, screen_detectors),
        ("generate.detectors", config.generate.detectors, run_detectors),
    ):
        try:
            check(names)
        except UsageError as error:
            raise UsageError(error.what, where=key, hint=error.hint) from error
