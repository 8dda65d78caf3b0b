"""Controls: read the control captions, leave out those of the dataset, and test whether the others are like it."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

import audit
from audit.errors import AuditError
from pipelines.engine.context import Run
from pipelines.reading.control_captions import read_control_captions
from pipelines.steps import caption_groups, control_likeness
from pipelines.steps.calibration_checks import require_enough
from pipelines.tables.calibration import CONTROL_CAPTIONS


def run(run: Run) -> None:
    """Write the control captions, and record how alike they and the captions of the dataset are.

    This comes before anything is embedded or screened, because p-values against unlike control captions are worthless.
    """
    with run.stage("controls", "control captions") as stage:
        if not run.ledger.parts(CONTROL_CAPTIONS):
            kept, removed = _control_captions(run)
            run.manifest.data.calibration.removed = removed
            run.ledger.write(CONTROL_CAPTIONS, "00000", kept)
        rows = run.ledger.rows(CONTROL_CAPTIONS, "00000")
        require_enough(run.config, rows)
        stage.rows_in, stage.rows_out = rows + run.manifest.data.calibration.removed, rows
        control_likeness.run(run)


def _control_captions(run: Run) -> tuple[pa.Table, int]:
    """Return the control captions that are not in the dataset, and the number of those that are.

    A control caption that is near-identical to a caption of the dataset counts as being in it. The table has the
    columns caption_id, caption and caption_group.
    """
    path = run.config.calibration.captions
    texts = read_control_captions(path, run.config.calibration.column)
    table = pa.table({"caption": pa.array(texts, pa.string())}).filter(pc.invert(caption_groups.known(run, texts)))
    if not len(table):
        raise AuditError(
            f"the dataset contains all {len(texts)} control captions",
            where=path,
            hint="Give captions that the model was not trained on.",
        )
    kept = table["caption"].to_pylist()
    ids, groups = [audit.caption_id(text) for text in kept], audit.caption_groups(kept)
    columns = {"caption_id": ids, "caption": kept, "caption_group": groups}
    return pa.table(columns, schema=pa.schema([(name, pa.string()) for name in columns])), len(texts) - len(table)
