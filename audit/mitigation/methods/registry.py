"""The mitigation methods by name, and how they are written on the command line."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from audit.errors import UsageError
from audit.mitigation.methods.attenuate import Attenuate
from audit.mitigation.methods.bands import load_run_bands
from audit.mitigation.methods.delayed_guidance import DelayedGuidance
from audit.mitigation.methods.dilute import Dilute
from audit.mitigation.methods.method import Method
from audit.mitigation.methods.padding import Padding
from audit.mitigation.methods.rescale import Rescale
from audit.mitigation.methods.stabilise import Stabilise
from audit.mitigation.methods.weak_guidance import WeakGuidance

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (Rescale, Padding, Attenuate, Stabilise, DelayedGuidance, Dilute, WeakGuidance)
}


def parse(text: str) -> Method:
    """Read a method and its settings, such as `rescale`, `rescale:bos_scale=4,keep=words` or `padding:token=none`.

    Args:
        text: The name, and after a colon settings separated by commas.

    Raises:
        UsageError: There is no such method or setting, or a value is invalid.
        AuditError: The file of `bands=FILE` cannot be read.
    """
    name, _, rest = text.partition(":")
    if name not in METHODS:
        raise UsageError(f"there is no method {name!r}", hint=f"Give one of: {', '.join(METHODS)}.")
    known = {field.name for field in fields(METHODS[name])}  # type: ignore[arg-type]
    settings: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or key not in known:
            hint = f"Give {name}:NAME=VALUE with the names {', '.join(sorted(known))}."
            raise UsageError(f"{name} has no setting {part!r}", hint=hint)
        settings[key] = load_run_bands(value) if key == "bands" else _value(value)
    if "bands" in known - settings.keys():
        raise UsageError(f"{name} needs bands", hint=f"Give {name}:bands=FILE; audit.fit_run_bands writes the file.")
    try:
        return METHODS[name](**settings)
    except TypeError as error:
        raise UsageError(f"{text}: {error}", hint="Give numbers where numbers are due.") from error


def _value(text: str) -> Any:
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
