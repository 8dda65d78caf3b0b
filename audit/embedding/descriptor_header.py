"""Read what the header of a copy descriptor's weights says, without torch."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from audit.errors import AuditError


@dataclass(frozen=True)
class DescriptorConfig:
    """Size of a descriptor: image side in pixels, channels of the trunk's four stages, width of the vectors."""

    image_size: int = 64
    channels: tuple[int, ...] = (32, 64, 96, 160)
    width: int = 128
    gem_power: float = 3.0


def read_config(path: Path) -> DescriptorConfig:
    """Read the configuration from the header of a safetensors file; raise AuditError if it has none."""
    return _read_header(path)[0]


def read_floors(path: Path) -> dict[str, float]:
    """Read the floors that `CopyDescriptor.save` wrote, by kind; empty if none were measured for the weights."""
    return _read_header(path)[1]


def _read_header(path: Path) -> tuple[DescriptorConfig, dict[str, float]]:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("not a safetensors file")
            metadata = json.loads(file.read(length))["__metadata__"]
        config = json.loads(metadata["config"])
        floors = {str(kind): float(value) for kind, value in json.loads(metadata.get("floors", "{}")).items()}
        return DescriptorConfig(**{**config, "channels": tuple(config["channels"])}), floors
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise AuditError(
            "not the weights of a copy descriptor: no safetensors header with its configuration",
            where=str(path),
            hint="Give a file written by CopyDescriptor.save, or a folder with an open_clip model.",
        ) from error
