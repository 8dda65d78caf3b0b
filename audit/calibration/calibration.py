"""Calibration: how unlike captions that the model was never trained on (docs/design.md, section 3)."""

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
from audit.detectors import COMBINED, RUN, SCORES, columns_of, distance_kind, features
from audit.duplicates.captions import caption_groups
from audit.errors import AuditError, UsageError, first_line
from audit.record.filesystem import write_local
from audit.schema import METADATA_KEY, REFERENCE
from audit.statistics.intervals import conformal_p

# Shapes: N captions, F features.

Floats = npt.NDArray[np.float64]
FORMAT = 1
SAME = 1e-6  # features whose range is smaller than that share of their size differ by rounding only
MIN_HALF = 30  # captions in each half; 1,000 and more are what a calibration should have


@dataclass(frozen=True, eq=False)
class Part:
    """One calibrated detector: a distance fitted on half of the control captions, its survival on the other half."""

    detector: str
    distance: Distance | Agreement
    survival: Survival


@dataclass(frozen=True, eq=False)
class Calibration:
    """What control captions score, and what that holds for (`context`)."""

    detector: str
    context: dict[str, Any]
    parts: tuple[Part, ...]

    def score(self, table: pa.Table) -> pa.Table:
        """One row a caption of a screen or generation: `caption` or `caption_id` (as the table), `score`, `p_unseen`.

        `score`: -log survival of the null at the caption's distance, of the part where it is largest; larger is more
        unlike the control captions, and no two ever tie beyond them. `p_unseen`: the smallest conformal p-value of the
        parts times their number. Features are averaged over seeds first; rows in which a column of the detector is null
        are left out.
        Raises AuditError where the table was made under another context (it says which item differs).
        """
        key, names_N, columns = _captions_of(table, self.detector)
        _check_same(self.context, _context(table, self.detector))
        score_N, p_N = np.zeros(len(names_N)), np.ones(len(names_N))
        for part in self.parts if len(names_N) else ():
            distance_N = part.distance(_features(part.detector, columns))
            score_N = np.maximum(score_N, part.survival.minus_log(distance_N))
            p_N = np.minimum(p_N, conformal_p(part.survival.distances, distance_N))
        p_N = np.minimum(1.0, len(self.parts) * p_N)
        return pa.table({key: pa.array(names_N, pa.string()), "score": score_N, "p_unseen": p_N})

    def save(self, path: str | Path) -> None:
        """Write it as JSON; `load_calibration` reads it back exactly."""
        content = {"format": FORMAT, **asdict(self)}
        write_local(path, json.dumps(content, sort_keys=True, default=np.ndarray.tolist).encode())


def calibrate(control_table: pa.Table, detector: str = "profile") -> Calibration:
    """Fit a calibration on a screen (or generation) of control captions.

    Captions are split by `caption_group` (the column, else computed from `caption`), by hash: one half fits the
    distance (Ledoit-Wolf covariance after median/MAD scaling), the other gives p-values and the tail. Raises AuditError
    if either half is too small, if the table lacks the detector's columns, or if all captions have the same features:
    such a score tells nothing, and every p-value would be 1.
    """
    if detector not in SCORES:
        raise UsageError(f"no detector {detector!r} gives a score", hint=f"Those that do: {', '.join(SCORES)}.")
    context = _context(control_table, detector)
    if distance_kind(COMBINED.get(detector, (detector,))[0]) == "agreement" and len(context["seeds"]) < 2:
        raise AuditError(
            f"{detector} compares seeds, and there is one", hint="Screen with two seeds or more, better four."
        )
    key, names_N, columns = _captions_of(control_table, detector)
    fits_N = np.array([_in_fitting_half(group) for group in _groups(control_table, key, names_N)], dtype=bool)
    smaller = min(int(fits_N.sum()), int((~fits_N).sum()))
    if smaller < MIN_HALF:
        raise AuditError(
            f"{len(names_N)} control captions that scored are too few: "
            f"{fits_N.sum()} fit and {(~fits_N).sum()} give p-values, each half needs {MIN_HALF}",
            hint=f"Give at least {3 * MIN_HALF} control captions of different groups, better 1,000 or more.",
        )
    parts = []
    for name in COMBINED.get(detector, (detector,)):
        features_NF = _features(name, columns)
        distance = fit_distance(distance_kind(name), features_NF[fits_N])
        _check_varies(name, features_NF, distance)
        parts.append(Part(name, distance, Survival.fit(distance(features_NF[~fits_N]))))
    return Calibration(detector, context, tuple(parts))


def load_calibration(path: str | Path) -> Calibration:
    """Read a calibration that `Calibration.save` wrote. Raises AuditError if it is not one."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, this version reads {FORMAT}")
        parts = tuple(
            Part(part["detector"], distance_of_json(part["distance"]), Survival.of_json(part["survival"]))
            for part in content["parts"]
        )
        return Calibration(content["detector"], content["context"], parts)
    except OSError as error:
        what = f"cannot be read: {(error.strerror or first_line(error)).lower()}"
        raise AuditError(what, where=str(path), hint="Give the calibration.json of a run.") from error
    except KeyError as error:
        what = f"not a calibration: it has no key {error}"
        raise AuditError(what, where=str(path), hint="Make it again: calibrate, save.") from error
    except (ValueError, TypeError) as error:
        raise AuditError(
            f"not a calibration: {first_line(error)}", where=str(path), hint="Make it again: calibrate, save."
        ) from error


def _features(detector: str, columns: dict[str, Floats]) -> Floats:
    """The detector's features, less those of the reference model where there is one: [N, F]."""
    own = features(detector, columns)
    theirs = {name: columns.get(REFERENCE + name) for name in columns_of(detector)}
    found = {name: values for name, values in theirs.items() if values is not None}
    return own - features(detector, found) if found else own


def _check_varies(detector: str, features_NF: Floats, distance: Distance | Agreement) -> None:
    """Raises AuditError if features [N, F] differ between captions by no more than float32 rounds."""
    spread_F, size_F = np.ptp(features_NF, axis=0), np.abs(features_NF).max(axis=0)
    if (spread_F > SAME * size_F).any() and np.ptp(distance(features_NF)) > 0:
        return
    raise AuditError(
        f"{detector} gives all {len(features_NF)} control captions the same score",
        hint="It tells nothing about this model: screen with another detector, or check that the captions differ.",
    )


def _captions_of(table: pa.Table, detector: str) -> tuple[str, list[str], dict[str, Floats]]:
    """The name of the key column, the captions in order of appearance, and their columns averaged over seeds."""
    key = "caption" if "caption" in table.column_names else "caption_id"
    wanted = [name for part in COMBINED.get(detector, (detector,)) for name in columns_of(part)]
    missing = [name for name in (key, "status", *wanted) if name not in table.column_names]
    if missing:
        raise AuditError(
            f"the table has no column {', '.join(missing)}",
            hint=f"Screen or generate with the detector {detector!r}; there is: {', '.join(table.column_names)}.",
        )
    sound = pc.is_valid(table[key])
    for name in wanted:  # the row's status may be that of another detector
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
    """How many captions of these caption groups fit the distance, and how many give p-values; each needs MIN_HALF."""
    fit = sum(map(_in_fitting_half, groups))
    return fit, len(groups) - fit


def _in_fitting_half(group: str) -> bool:
    return bool(blake2b(group.encode(), digest_size=1, person=b"crossaudit split").digest()[0] & 1)


def _context(table: pa.Table, detector: str) -> dict[str, Any]:
    """What this detector's numbers in a table depend on, flat: item -> value. Raises AuditError if it does not say."""
    metadata = (table.schema.metadata or {}).get(METADATA_KEY)
    if metadata is None:
        raise AuditError(
            "the table does not say what it depends on (no schema metadata 'crossaudit')",
            hint="Use a table of audit.screen or audit.generate, and keep its schema's metadata.",
        )
    found = json.loads(metadata)
    items = {f"weights of {name}": sha256 for name, sha256 in found["weights"].items() if name != "vae"}
    items |= {f"scheduler {name}": value for name, value in found["scheduler"].items()}
    for name, sha256 in found.get("reference", {}).get("weights", {}).items():
        items[f"reference model's weights of {name}"] = sha256
    items |= {"dtype": found["dtype"], "seeds": found["seeds"], "latent shape": found["latent_shape"]}
    for part in COMBINED.get(detector, (detector,)):
        name = RUN[part].name if part in RUN else part
        items[f"version of {name}"] = found["detectors"].get(name)
        if part in RUN:
            items |= {name: found.get(name) for name in ("steps", "guidance_scale")}
    return items


def _check_same(calibrated: dict[str, Any], found: dict[str, Any]) -> None:
    for item in sorted(calibrated.keys() | found.keys()):
        if calibrated.get(item) != found.get(item):
            raise AuditError(
                f"the calibration holds for another context: {item} is {found.get(item)!r} in the table, "
                f"{calibrated.get(item)!r} in the calibration",
                hint="Calibrate again under the table's context, or screen again under the calibration's.",
            )
