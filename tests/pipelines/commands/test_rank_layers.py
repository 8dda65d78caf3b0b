"""crossaudit rank-layers: it looks at the model that the run audited."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

import audit
from audit.explaining.layers import layers as look
from audit.record.ledger import Ledger
from audit.schema import VERDICTS, control_screen
from pipelines.commands.rank_layers import rank_layers
from pipelines.configuration.settings import load_config
from pipelines.engine.manifest import Manifest
from tests.support.called import crossaudit
from tests.support.toy import MODEL, write_config

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
CONFIRMED, UNSEEN = ["a planted picture", "another one"], ["lamp number 1", "river number 2"]


@pytest.fixture(scope="module")
def plain() -> pa.Table:
    """The table of the model without LoRA weights."""
    return look(audit.load_model(MODEL), CONFIRMED, UNSEEN)


def test_a_run_with_lora_weights_is_looked_at_with_them(
    tmp_path: Path, plain: pa.Table, capsys: pytest.CaptureFixture[str]
) -> None:
    width = load_file(MODEL / "unet/diffusion_pytorch_model.safetensors")[f"{QUERY}.weight"].shape
    factors = torch.full((2, width[1]), 0.5), torch.full((width[0], 2), 0.5)
    lora = tmp_path / "lora.safetensors"
    save_file({f"unet.{QUERY}.lora_{side}.weight": factor for side, factor in zip("AB", factors, strict=True)}, lora)

    config, given = load_config(write_config(tmp_path, lora=str(lora)))
    ledger = Ledger(config.out)
    Manifest.open(ledger, config, given).finish()
    rows = [{"caption_id": text, "caption": text, "row_count": 1, "verdict": "verbatim"} for text in CONFIRMED]
    filled = [dict.fromkeys(VERDICTS.names) | row for row in rows]
    ledger.write("verdicts", "00000", pa.Table.from_pylist(filled, VERDICTS))
    screened = [{"caption": text, "seed": seed} for text in UNSEEN for seed in (0, 1)]
    ledger.write("control_screen", "00000", pa.Table.from_pylist(screened, control_screen(())))

    rank_layers(config.out, None, None, device="cpu", out=tmp_path / "found.parquet")
    assert "look at layers: 4 captions, " in capsys.readouterr().err
    found = pq.read_table(tmp_path / "found.parquet")
    assert found.equals(look(audit.load_model(MODEL, lora=lora), CONFIRMED, UNSEEN))
    assert not found.equals(plain)


def test_the_default_column_of_each_file_is_read(tmp_path: Path, plain: pa.Table) -> None:
    (tmp_path / "own.jsonl").write_text("".join(f'{{"text": "{caption}"}}\n' for caption in CONFIRMED))
    (tmp_path / "unseen.csv").write_text("\n".join(["id,prompt", *(f"0,{caption}" for caption in UNSEEN)]))
    files = ("--captions", str(tmp_path / "own.jsonl"), "--controls", str(tmp_path / "unseen.csv"))
    code, _, error = crossaudit("rank-layers", str(MODEL), *files, "--out", str(tmp_path / "found.parquet"))
    assert code == 0, error
    assert pq.read_table(tmp_path / "found.parquet").equals(plain)
