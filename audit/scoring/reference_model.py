"""Compare a model with a reference model by subtracting the reference's features for the same captions.

A reference model cannot have memorized the captions in question: an earlier checkpoint, or the base of a fine-tune. It
shows what style, length and language do to a score; the difference is what the audited model has learned since.
"""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.compute as pc

from audit import schema
from audit.errors import AuditError


def beside(table: pa.Table, reference: pa.Table) -> pa.Table:
    """Combine the screen of a model with a reference model's screen of the same rows, in one table.

    Calibrations measure distances in the difference of the features. A row in which anything failed in either screen
    has status "error". A column that failed in one of them is null in both.

    Args:
        table: Screen of the model.
        reference: Screen of the reference model.

    Raises:
        AuditError: The two are not screens of the same captions, seeds and noise.
    """
    ours, theirs = (json.loads((t.schema.metadata or {})[schema.METADATA_KEY]) for t in (table, reference))
    for item in ("latent_shape", "seeds", "detectors"):
        if ours[item] != theirs[item]:
            what = f"{item.replace('_', ' ')} is {theirs[item]} in the reference model, {ours[item]} in the model"
            raise AuditError(what, hint="Give a reference model of the same shape, such as an earlier checkpoint.")
    if not all(table[key].equals(reference[key]) for key in ("caption", "seed")):
        raise AuditError(
            "the reference model screened other captions or seeds",
            hint="Screen the same captions and seeds with both models.",
        )
    own = schema.features_of(table.schema)
    layout = schema.scored([*own, *(schema.REFERENCE + name for name in own)])
    columns = {name: table[name] for name in ("caption", "seed", "prompt_tokens")}
    for name in own:
        nothing = pa.scalar(None, table.schema.field(name).type)
        sound = pc.and_(pc.is_valid(table[name]), pc.is_valid(reference[name]))
        columns[name] = pc.if_else(sound, table[name], nothing)
        columns[schema.REFERENCE + name] = pc.if_else(sound, reference[name], nothing)
    fine = pc.and_(*(pc.equal(screened["status"], "ok") for screened in (table, reference)))
    columns["status"] = pc.if_else(fine, "ok", "error")
    why = pc.binary_join_element_wise("reference model", reference["error"], ": ")  # null if there is no error
    columns["error"] = pc.coalesce(table["error"], why)
    context = ours | {"reference": {"weights": theirs["weights"], "scheduler": theirs["scheduler"]}}
    metadata = {schema.METADATA_KEY: json.dumps(context, sort_keys=True).encode()}
    return pa.table([columns[name] for name in layout.names], schema=layout.with_metadata(metadata))
