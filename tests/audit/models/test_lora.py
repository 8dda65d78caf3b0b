"""LoRA weights are added as the paper says, however the file spells the layers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import audit
from audit.errors import AuditError
from tests.support.paths import DATA

MODEL = DATA / "toy-model"
QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
OUT = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0"
CONV = "conv_in"
TEXT = "encoder.layers.0.self_attn.q_proj"
RANK, ALPHA = 2, 3.0

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture(scope="module")
def plain() -> audit.Model:
    return audit.load_model(MODEL)


@pytest.fixture(scope="module")
def factors(plain: audit.Model) -> Factors:
    """(down, up) of four layers, one of them a convolution and one of the text encoder."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name in (QUERY, OUT, CONV, TEXT):
        shape = weight(plain, name).shape
        down = torch.randn(RANK, *shape[1:], generator=generator)
        found[name] = down, torch.randn(shape[0], RANK, *[1] * (len(shape) - 2), generator=generator)
    return found


def weight(model: audit.Model, name: str) -> torch.Tensor:
    return (model.text_encoder if name == TEXT else model.unet).get_submodule(name).weight


def peft(name: str) -> tuple[str, str]:
    prefix = f"text_encoder.text_model.{name}" if name == TEXT else f"unet.{name}"
    return f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight"


def diffusers(name: str) -> tuple[str, str]:
    if name == TEXT:
        prefix = f"text_encoder.text_model.{name}.lora_linear_layer"
        return f"{prefix}.down.weight", f"{prefix}.up.weight"
    return f"unet.{name}.lora.down.weight", f"unet.{name}.lora.up.weight"


def older_diffusers(name: str) -> tuple[str, str]:
    if name not in (QUERY, OUT):
        return diffusers(name)
    block, _, layer = name.removesuffix(".0").rpartition(".")
    return f"unet.{block}.processor.{layer}_lora.down.weight", f"unet.{block}.processor.{layer}_lora.up.weight"


def kohya(name: str) -> tuple[str, str]:
    prefix = f"lora_te_text_model_{name}" if name == TEXT else f"lora_unet_{name}"
    prefix = prefix.replace(".", "_")
    return f"{prefix}.lora_down.weight", f"{prefix}.lora_up.weight"


@pytest.mark.parametrize(
    ("spelling", "alpha"),
    [
        (peft, ALPHA),
        (diffusers, None),
        (older_diffusers, ALPHA),
        (kohya, None),
        (kohya, ALPHA),
        pytest.param(peft, None, marks=pytest.mark.soak),
        pytest.param(diffusers, ALPHA, marks=pytest.mark.soak),
        pytest.param(older_diffusers, None, marks=pytest.mark.soak),
    ],
)
def test_the_layers_are_w_plus_alpha_over_rank_times_up_times_down(
    plain: audit.Model, factors: Factors, spelling, alpha: float | None, tmp_path: Path
) -> None:
    tensors, metadata = {}, None
    for name, parts in factors.items():
        tensors |= dict(zip(spelling(name), parts, strict=True))
        if alpha is not None and spelling is kohya:
            tensors[spelling(name)[0].replace(".lora_down.weight", ".alpha")] = torch.tensor(alpha)
    if alpha is not None and spelling is not kohya:
        metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": alpha, "text_encoder.lora_alpha": alpha})}
    save_file(tensors, tmp_path / "lora.safetensors", metadata)
    model = audit.load_model(MODEL, lora=tmp_path / "lora.safetensors")
    scale = 1.0 if alpha is None else alpha / RANK
    for name, (down, up) in factors.items():
        product = torch.einsum("or...,ri...->oi...", up.double().flatten(1), down.double().flatten(1))
        expected = weight(plain, name).double() + scale * product.reshape(weight(plain, name).shape)
        torch.testing.assert_close(weight(model, name).double(), expected, rtol=1e-5, atol=1e-5)
    changed = {name for name, layer in model.unet.named_parameters() if not layer.equal(plain.unet.get_parameter(name))}
    assert changed == {f"{name}.weight" for name in (QUERY, OUT, CONV)}


def peft_folder(folder: Path, factors: Factors, names: tuple[str, ...], **config: object) -> Path:
    """What `save_pretrained` of a PeftModel writes: keys without a component, the strength beside them."""
    tensors = {}
    for name in names:
        prefix = f"base_model.model.{'text_model.' if name == TEXT else ''}{name}"
        down, up = factors[name]
        tensors |= {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    known = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "use_dora": False}
    (folder / "adapter_config.json").write_text(json.dumps(known | config))
    return folder


@pytest.mark.parametrize("names", [(QUERY, OUT, CONV), (TEXT,)])
@pytest.mark.parametrize("whole", [True, False])
def test_an_adapter_of_peft_has_the_strength_that_its_configuration_says(
    plain: audit.Model, factors: Factors, names: tuple[str, ...], whole: bool, tmp_path: Path
) -> None:
    folder = peft_folder(tmp_path, factors, names)
    model = audit.load_model(MODEL, lora=folder if whole else folder / "adapter_model.safetensors")
    for name in factors:
        down, up = factors[name]
        product = torch.einsum("or...,ri...->oi...", up.double().flatten(1), down.double().flatten(1))
        expected = weight(plain, name).double()
        if name in names:
            expected = expected + ALPHA / RANK * product.reshape(expected.shape)
        torch.testing.assert_close(weight(model, name).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        ({"use_dora": True}, "it has use_dora"),
        ({"use_rslora": True}, "it has use_rslora"),
        ({"peft_type": "LOHA"}, "it has peft_type LOHA"),
        ({"bias": "all"}, "it has bias all"),
        ({"lora_alpha": None}, "their strength is unknown"),
    ],
)
def test_other_adapters_of_peft_are_refused(
    factors: Factors, config: dict[str, object], wrong: str, tmp_path: Path
) -> None:
    with pytest.raises(AuditError, match=wrong):
        audit.load_model(MODEL, lora=peft_folder(tmp_path, factors, (QUERY,), **config))


def test_an_adapter_of_peft_without_its_configuration_is_refused(factors: Factors, tmp_path: Path) -> None:
    (peft_folder(tmp_path, factors, (QUERY,)) / "adapter_config.json").unlink()
    with pytest.raises(AuditError, match="their strength is unknown because adapter_config.json is not next to them"):
        audit.load_model(MODEL, lora=tmp_path)


def test_lora_weights_that_are_not_finite_are_named(factors: Factors, tmp_path: Path) -> None:
    down, up = peft(QUERY)
    save_file({down: factors[QUERY][0], up: factors[QUERY][1] * float("nan")}, tmp_path / "lora.safetensors")
    with pytest.raises(AuditError, match=f"{up} has values that are NaN or infinite"):
        audit.load_model(MODEL, lora=tmp_path / "lora.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_conv_in.hada_w1_a",
        "lora_unet_conv_in.lokr_w1",
        "base_model.model.no.such.layer.lora_A.weight",
        f"{QUERY}.lora_A.weight",
    ],
)
def test_loha_lokr_and_names_without_their_component_are_refused_by_key(name: str, tmp_path: Path) -> None:
    save_file({name: torch.zeros(2, 3)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 1}))
    with pytest.raises(AuditError, match=f"{name} belongs to no layer"):
        audit.load_model(MODEL, lora=tmp_path)


def test_scores_are_of_the_model_with_its_lora_and_say_so(plain: audit.Model, factors: Factors, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(dict(zip(peft(QUERY), factors[QUERY], strict=True)), path)
    model = audit.load_model(MODEL, lora=path)
    assert model.weights_sha256["lora"] == hashlib.sha256(path.read_bytes()).hexdigest()
    ours, theirs = (audit.screen(each, ["a dog"]) for each in (model, plain))
    assert ours["caption_response"] != theirs["caption_response"]
    weights = [json.loads(table.schema.metadata[b"crossaudit"])["weights"] for table in (ours, theirs)]
    assert weights[0] == weights[1] | {"lora": model.weights_sha256["lora"]}


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("unet.no.such.layer.lora_A.weight", "belongs to no layer"),
        (f"unet.{QUERY}.lora_magnitude_vector", "belongs to no layer"),
        (f"unet.{QUERY}.lora_A.weight", "do not fit the layer"),
    ],
)
def test_what_is_no_plain_lora_of_this_model_is_refused(name: str, wrong: str, tmp_path: Path) -> None:
    save_file({name: torch.zeros(2, 3)}, tmp_path / "lora.safetensors")
    with pytest.raises(AuditError, match=wrong):
        audit.load_model(MODEL, lora=tmp_path / "lora.safetensors")


def test_variants_of_lora_are_refused(factors: Factors, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    tensors = dict(zip(peft(QUERY), factors[QUERY], strict=True))
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps({"unet.use_rslora": True})})
    with pytest.raises(AuditError, match="it has use_rslora"):
        audit.load_model(MODEL, lora=path)


def test_a_pickle_and_a_damaged_file_are_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "lora.bin")
    with pytest.raises(AuditError, match="one .safetensors file"):
        audit.load_model(MODEL, lora=tmp_path / "lora.bin")
    (tmp_path / "lora.safetensors").write_bytes(b"no header")
    with pytest.raises(AuditError, match="does not load"):
        audit.load_model(MODEL, lora=tmp_path / "lora.safetensors")
