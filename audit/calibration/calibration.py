"""Calibrate scores against captions that the model was not trained on (docs/explanation/method.md)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from audit.calibration.distance import Agreement, Distance, Survival, distance_of_json, fit_distance
from audit.defaults import DEFAULT_DETECTOR
from audit.detectors import COMBINED, RUN, SCORES, columns_of, distance_kind, features, measured_by
from audit.duplicates.captions import caption_groups
from audit.errors import AuditError, UsageError, first_line
from audit.record.filesystem import write_local
from audit.schema import METADATA_KEY, REFERENCE
from audit.statistics.intervals import conformal_p

# Shapes: N captions, F features.

Floats = npt.NDArray[np.float64]
FORMAT = 2
SAME = 1e-6  # a feature whose range is below this fraction of its magnitude varies only by rounding
MIN_HALF = 30  # fewest captions per half; a calibration should have 1,000 or more captions


@dataclass(frozen=True, eq=False)
class Part:
    """One calibrated detector: a distance fitted on half of the control captions, survival fitted on the other half."""

    detector: str
    distance: Distance | Agreement
    survival: Survival


@dataclass(frozen=True, eq=False)
class Calibration:
    """The distribution of scores of control captions, and the context in which it is valid.

    `withheld` is the reason why p-values are null, or None if they are given.
    """

    detector: str
    context: dict[str, Any]
    parts: tuple[Part, ...]
    withheld: str | None = None

    def score(self, table: pa.Table) -> pa.Table:
        """Score each caption of a screen or generation.

        Features are averaged over seeds first. Rows in which a column of the detector is null are left out.

        Args:
            table: Rows with the detector's columns, from `audit.screen` or `audit.generate`.

        Returns:
            One row per caption: `caption` or `caption_id` (whichever the table has), `score` and `p_unseen`.
            `score` is the -log survival of the control captions at the caption's distance, for the part in which it is
            largest. A larger score means less like the control captions; beyond them, scores do not tie.
            `p_unseen` is the smallest conformal p-value of the parts, times the number of parts; null if p-values are
            withheld.

        Raises:
            AuditError: The table was made in another context; the message names the item that differs.
        """
        key, names_N, distances = self._distances(table)
        score_N, p_N = np.zeros(len(names_N)), np.ones(len(names_N))
        for part, distance_N in zip(self.parts, distances, strict=True):
            score_N = np.maximum(score_N, part.survival.minus_log(distance_N))
            p_N = np.minimum(p_N, conformal_p(part.survival.distances, distance_N))
        p_N = np.minimum(1.0, len(self.parts) * p_N)
        p_unseen = pa.array(p_N) if self.withheld is None else pa.nulls(len(names_N), pa.float64())
        return pa.table({key: pa.array(names_N, pa.string()), "score": score_N, "p_unseen": p_unseen})

    def distances(self, table: pa.Table) -> tuple[list[str], list[Floats]]:
        """Measure the distance of each caption of a screen or generation: (captions [N], [N] for each part).

        `score` compares these with the distances of the control captions.
        """
        _, names_N, distances = self._distances(table)
        return names_N, distances

    def _distances(self, table: pa.Table) -> tuple[str, list[str], list[Floats]]:
        key, names_N, columns = _captions_of(table, self.detector)
        _check_same(self.context, _context(table, self.detector))
        if not names_N:
            return key, names_N, [np.zeros(0) for _ in self.parts]
        return key, names_N, [part.distance(_features(part.detector, columns)) for part in self.parts]

    def save(self, path: str | Path) -> None:
        """Write the calibration as JSON; `load_calibration` restores it exactly."""
        content = {"format": FORMAT, **asdict(self)}
        write_local(path, json.dumps(content, sort_keys=True, default=np.ndarray.tolist).encode())


def calibrate(control_table: pa.Table, detector: str = DEFAULT_DETECTOR) -> Calibration:
    """Fit a calibration on a screen (or generation) of control captions.

    Captions are split by a hash of their `caption_group` (the column, or computed from `caption`). One half fits the
    distance (Ledoit-Wolf covariance after median/MAD scaling), the other half gives the p-values and the tail.

    Args:
        control_table: Rows of control captions, from `audit.screen` or `audit.generate`.
        detector: The detector to calibrate, by default `caption_response`.

    Raises:
        UsageError: The detector gives no score.
        AuditError: One of the halves is too small, the table lacks the detector's columns, or all captions have the
            same features. Such a score would be useless: every p-value would be 1.
    """
    if detector not in SCORES:
        raise UsageError(f"no detector {detector!r} gives a score", hint=f"Those that do: {', '.join(SCORES)}.")
    context = _context(control_table, detector)
    if distance_kind(COMBINED.get(detector, (detector,))[0]) == "agreement" and len(context["seeds"]) < 2:
        raise AuditError(
            f"{detector} compares seeds, but there is only one", hint="Screen with at least two seeds, preferably four."
        )
    key, names_N, columns = _captions_of(control_table, detector)
    fits_N = np.array([in_fitting_half(group) for group in _groups(control_table, key, names_N)], dtype=bool)
    smaller = min(int(fits_N.sum()), int((~fits_N).sum()))
    if smaller < MIN_HALF:
        raise AuditError(
            f"{len(names_N)} control captions with a score are too few: "
            f"{fits_N.sum()} fit the distance and {(~fits_N).sum()} give p-values, but each half needs {MIN_HALF}",
            hint=f"Give at least {3 * MIN_HALF} control captions of different groups, preferably 1,000 or more.",
        )
    parts = []
    for name in COMBINED.get(detector, (detector,)):
        features_NF = _features(name, columns)
        distance = fit_distance(distance_kind(name), features_NF[fits_N])
        _check_varies(name, features_NF, distance)
        parts.append(Part(name, distance, Survival.fit(distance(features_NF[~fits_N]))))
    return Calibration(detector, context, tuple(parts))


def load_calibration(path: str | Path) -> Calibration:
    """Read a calibration that `Calibration.save` wrote.

    Raises:
        AuditError: The file cannot be read or is not a calibration.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, this version reads {FORMAT}")
        parts = tuple(
            Part(part["detector"], distance_of_json(part["distance"]), Survival.of_json(part["survival"]))
            for part in content["parts"]
        )
        return Calibration(content["detector"], content["context"], parts, content["withheld"])
    except OSError as error:
        what = f"cannot be read: {(error.strerror or first_line(error)).lower()}"
        raise AuditError(what, where=str(path), hint="Give the calibration.json of a run.") from error
    except KeyError as error:
        what = f"not a calibration: it has no key {error}"
        raise AuditError(what, where=str(path), hint="Calibrate again and save the result.") from error
    except (ValueError, TypeError) as error:
        raise AuditError(
            f"not a calibration: {first_line(error)}", where=str(path), hint="Calibrate again and save the result."
        ) from error


def _features(detector: str, columns: dict[str, Floats]) -> Floats:
    """Return the detector's features [N, F]; subtract those of the reference model if there is one."""
    own = features(detector, columns)
    theirs = {name: columns.get(REFERENCE + name) for name in columns_of(detector)}
    found = {name: values for name, values in theirs.items() if values is not None}
    return own - features(detector, found) if found else own


def _check_varies(detector: str, features_NF: Floats, distance: Distance | Agreement) -> None:
    """Raise AuditError if features [N, F] differ between captions by no more than float32 rounding."""
    spread_F, size_F = np.ptp(features_NF, axis=0), np.abs(features_NF).max(axis=0)
    if (spread_F > SAME * size_F).any() and np.ptp(distance(features_NF)) > 0:
        return
    raise AuditError(
        f"{detector} gives all {len(features_NF)} control captions the same score",
        hint="The score says nothing about this model: use another detector, or check that the captions differ.",
    )


def _captions_of(table: pa.Table, detector: str) -> tuple[str, list[str], dict[str, Floats]]:
    """Return the key column's name, the captions in order of appearance, and their columns averaged over seeds."""
    key = "caption" if "caption" in table.column_names else "caption_id"
    wanted = [name for part in COMBINED.get(detector, (detector,)) for name in columns_of(part)]
    missing = [name for name in (key, "status", *wanted) if name not in table.column_names]
    if missing:
        raise AuditError(
            f"the table has no column {', '.join(missing)}",
            hint=f"Screen or generate with the detector {detector!r}; the table has: {', '.join(table.column_names)}.",
        )
    sound = pc.is_valid(table[key])
    for name in wanted:  # not the row's status, which may be that of another detector
        sound = pc.and_(sound, pc.is_valid(table[name]))
    good = table.filter(sound)
    encoded = good[key].combine_chunks().dictionary_encode()
    names, of_R = encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False)
    rows_N = np.bincount(of_R, minlength=len(names))
    wanted += [REFERENCE + name for name in wanted if REFERENCE + name in table.column_names]
    columns = {}
    for name in wanted:
        values_R = _matrix(good[name].combine_chunks())
        sum_N = np.zeros((len(names), *values_R.shape[1:]))
        np.add.at(sum_N, of_R, values_R)
        columns[name] = sum_N / rows_N.reshape(-1, *[1] * (values_R.ndim - 1))
    return key, names, columns


def _matrix(column: pa.Array) -> Floats:
    if not pa.types.is_list(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)
    width = len(column[0]) if len(column) else 0
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False), dtype=np.float64).reshape(len(column), width)


def _groups(table: pa.Table, key: str, names_N: Sequence[str]) -> list[str]:
    if "caption_group" in table.column_names:
        group_of = dict(zip(table[key].to_pylist(), table["caption_group"].to_pylist(), strict=True))
        return [group_of[name] for name in names_N]
    if key != "caption":
        raise AuditError(
            "the table has neither caption_group nor caption", hint="Give control captions with their text."
        )
    return caption_groups(names_N)


def halves_of(groups: Sequence[str]) -> tuple[int, int]:
    """Count the captions that fit the distance and those that give p-values; each half needs at least MIN_HALF.

    Args:
        groups: The caption group of each caption.
    """
    fit = sum(map(in_fitting_half, groups))
    return fit, len(groups) - fit


def in_fitting_half(group: str) -> bool:
    """Tell whether the control captions of a group fit the distance; the others give p-values."""
    return bool(blake2b(group.encode(), digest_size=1, person=b"crossaudit split").digest()[0] & 1)


def _context(table: pa.Table, detector: str) -> dict[str, Any]:
    """Return what this detector's numbers in a table depend on, as a flat dictionary.

    Raises:
        AuditError: The table does not record it.
    """
    metadata = (table.schema.metadata or {}).get(METADATA_KEY)
    if metadata is None:
        raise AuditError(
            "the table does not say what it depends on (no schema metadata 'crossaudit')",
            hint="Use a table from audit.screen or audit.generate, and keep its schema's metadata.",
        )
    found = json.loads(metadata)
    items = {f"weights of {name}": sha256 for name, sha256 in found["weights"].items() if name != "vae"}
    items |= {f"scheduler {name}": value for name, value in found["scheduler"].items()}
    for name, sha256 in found.get("reference", {}).get("weights", {}).items():
        items[f"reference model's weights of {name}"] = sha256
    items |= {"dtype": found["dtype"], "seeds": found["seeds"], "latent shape": found["latent_shape"]}
    items |= {"TF32": True} if found.get("tf32") else {}
    for part in COMBINED.get(detector, (detector,)):
        name = measured_by(part)
        items[f"version of {name}"] = found["detectors"].get(name)
        if part in RUN:
            items |= {name: found.get(name) for name in ("steps", "guidance_scale")}
    return items


# What to do about an item in which a table differs from a calibration.
_REMEDIES = {
    "TF32": "Use exact float32 in both: torch.backends.cudnn.allow_tf32 = False, and for cuda.matmul.",
    "latent shape": "Screen at the calibration's resolution (screen.resolution, resolution=), or calibrate again.",
}


def _check_same(calibrated: dict[str, Any], found: dict[str, Any]) -> None:
    for item in sorted(calibrated.keys() | found.keys()):
        if calibrated.get(item) != found.get(item):
            raise AuditError(
                f"the calibration was made in another context: {item} is {found.get(item)!r} in the table, "
                f"{calibrated.get(item)!r} in the calibration",
                hint=_REMEDIES.get(
                    item, "Calibrate again in the table's context, or screen again in the calibration's."
                ),
            )
