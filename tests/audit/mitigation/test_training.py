from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

import audit
from audit.attention.probe import cross_attention_layers
from audit.errors import AuditError, UsageError
from audit.mitigation.guard_rules import mean_entropy
from tests.support.adapted import Adapted
from tests.support.explicit import Explicit
from tests.support.paths import DATA
from tests.support.ranks import one_of_two_ranks, train_as_the_other
from tests.support.small_unet import LAYERS, shallow_unet, small_unet


@pytest.fixture
def unet() -> UNet2DConditionModel:
    return small_unet().train()


@pytest.fixture
def shallow() -> UNet2DConditionModel:
    """One that compiles soon."""
    return shallow_unet(on_the_way="down").train()


@pytest.fixture
def whole_unet() -> UNet2DConditionModel:
    """All the layers of Stable Diffusion 1."""
    model = UNet2DConditionModel.from_pretrained(DATA / "tiny-sd1/unet")
    return model.train()


def inputs(unet: UNet2DConditionModel, size: int = 4, seed: int = 0, side: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    noisy = torch.randn(size, 4, side, side, generator=generator)
    timesteps = torch.randint(1000, (size,), generator=generator)
    return noisy, timesteps, torch.randn(size, 12, unet.config.cross_attention_dim, generator=generator)


def true_entropies(unet: UNet2DConditionModel, batch: tuple[Tensor, Tensor, Tensor]) -> np.ndarray:
    recording, exact = Explicit(), copy.deepcopy(unet).double()
    exact.set_attn_processor(recording)
    with torch.no_grad():
        exact(batch[0].double(), batch[1], batch[2].double())
    mean = torch.stack(recording.means, 1).mean(1)
    return -(mean * mean.log()).sum(1).numpy()


def loss_of(unet: torch.nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return unet(*batch).sample.square().mean((1, 2, 3))


@pytest.mark.parametrize("size", ["unet", "whole_unet"])
def test_a_sample_beyond_the_fixed_entropy_gets_no_weight(
    size: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    unet = request.getfixturevalue(size)
    batch = inputs(unet)
    truth = true_entropies(unet, batch)
    limit = float(np.sort(truth)[1:3].mean())
    guard = audit.TrainingGuard(unet, max_entropy=limit, log=tmp_path)
    loss_of(unet, batch)
    assert guard.weights(ids=["a", "b", "c", "d"]).tolist() == (truth <= limit).tolist()
    guard.close()
    row = pq.read_table(tmp_path).to_pylist()[0]
    loud = np.flatnonzero(truth > limit)
    assert (row["step"], row["seen"], row["silenced"]) == (0, 4, 2)
    assert row["ids"] == ["abcd"[i] for i in loud]
    assert row["timesteps"] == batch[1][loud].tolist()
    np.testing.assert_allclose(row["scores"], truth[loud], atol=1e-5)
    assert (guard.seen, guard.silenced) == (4, 2)


def test_it_adds_no_forward_and_changes_nothing_that_the_unet_computes(unet: UNet2DConditionModel) -> None:
    batch = inputs(unet)
    plain = loss_of(unet, batch)
    plain.mean().backward()
    gradients = [p.grad.clone() for p in unet.parameters()]
    unet.zero_grad()
    forwards: list[int] = []
    unet.conv_in.register_forward_hook(lambda *_: forwards.append(1))
    guard = audit.TrainingGuard(unet, max_entropy=100)
    guarded = loss_of(unet, batch)
    (guard.weights() * guarded).mean().backward()
    assert torch.equal(plain, guarded)
    assert all(torch.equal(a, p.grad) for a, p in zip(gradients, unet.parameters(), strict=True))
    assert len(forwards) == 1


def weights_of(guard: audit.TrainingGuard, unet: torch.nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    loss = loss_of(unet, batch)
    weights = guard.weights()
    (weights * loss).mean().backward()
    return weights


def median_entropy(unet: UNet2DConditionModel, batch: tuple[Tensor, Tensor, Tensor]) -> float:
    return float(np.sort(true_entropies(unet, batch))[1:3].mean())


def test_gradient_checkpointing_and_accumulation(unet: UNet2DConditionModel) -> None:
    first, second = inputs(unet, seed=1), inputs(unet, seed=2)
    limit = median_entropy(unet, first)
    truth = [true_entropies(unet, batch) <= limit for batch in (first, second)]
    unet.enable_gradient_checkpointing()
    guard = audit.TrainingGuard(unet, max_entropy=limit)
    for batch, quiet in zip((first, second), truth, strict=True):
        assert weights_of(guard, unet, batch).tolist() == quiet.tolist()  # backward runs between the two


def test_autocast(unet: UNet2DConditionModel) -> None:
    batch = inputs(unet)
    guard = audit.TrainingGuard(unet, max_entropy=median_entropy(unet, batch))
    with torch.autocast("cpu", torch.bfloat16):
        weights = weights_of(guard, unet, batch)
    assert weights.dtype == torch.float32
    assert set(weights.tolist()) == {0.0, 1.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("checkpointing", "backend"), [pytest.param(False, "eager", marks=pytest.mark.soak), (True, "aot_eager")]
)
def test_torch_compile_with_either_rule(shallow: UNet2DConditionModel, checkpointing: bool, backend: str) -> None:
    batches = [inputs(shallow, seed=seed, side=4) for seed in range(3)]
    limit = median_entropy(shallow, batches[0])
    truth = [(true_entropies(shallow, batch) <= limit).tolist() for batch in batches]
    if checkpointing:
        shallow.enable_gradient_checkpointing()
    guard = audit.TrainingGuard(shallow, max_entropy=limit)
    compiled = torch.compile(shallow, backend=backend)
    assert [weights_of(guard, compiled, batch).tolist() for batch in batches] == truth
    guard.close()
    control_captions = ControlCaptions(shallow)
    guard = audit.TrainingGuard(shallow, max_quantile=0.95, control_captions=control_captions)
    assert [weights_of(guard, compiled, batch).tolist() for batch in batches] == [[1.0] * 4] * 3
    assert control_captions.asked == 1


@pytest.mark.parametrize("change", ["adapter", "fused", "sliced"])
def test_what_is_changed_after_the_guard_was_made_is_what_it_reads(unet: UNet2DConditionModel, change: str) -> None:
    batch = inputs(unet)
    guard = audit.TrainingGuard(unet, max_entropy=100)
    loss_of(unet, batch)
    before = scores_of(guard)
    truth = before
    if change == "adapter":
        torch.manual_seed(6)  # an adapter that changes the scores of all samples
        for layer in cross_attention_layers(unet):
            layer.to_q, layer.to_k = Adapted(layer.to_q), Adapted(layer.to_k)
        recording = Explicit()
        processors = unet.attn_processors
        unet.set_attn_processor(recording)
        with torch.no_grad():
            unet.eval()(*batch)
        unet.train().set_attn_processor(processors)
        truth = mean_entropy(torch.stack(recording.means, 1))
        assert (truth - before).abs().min() > 1e-3
    elif change == "fused":
        unet.fuse_qkv_projections()
    else:
        unet.set_attention_slice(1)
    loss_of(unet, batch)
    torch.testing.assert_close(scores_of(guard), truth.double(), atol=1e-5, rtol=0)


def scores_of(guard: audit.TrainingGuard) -> Tensor:
    """The entropies of the forward just run."""
    assert guard._last is not None
    scores = mean_entropy(guard._last.attn_BLK)
    guard.weights()
    return scores


def test_peft_adapters_added_after_the_guard_was_made(unet: UNet2DConditionModel) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    guard, batch = audit.TrainingGuard(unet, max_entropy=100), inputs(unet)
    unet.add_adapter(peft.LoraConfig(r=4, lora_alpha=16, init_lora_weights=False, target_modules=["to_q", "to_k"]))
    unet.train()
    loss_of(unet, batch)
    late = scores_of(guard)
    guard.close()
    early = audit.TrainingGuard(unet, max_entropy=100)
    loss_of(unet, batch)
    torch.testing.assert_close(late, scores_of(early), atol=1e-6, rtol=0)
    unet.disable_adapters()
    loss_of(unet, batch)
    assert (late - scores_of(early)).abs().max() > 1e-3


def test_a_layer_that_hides_from_the_guard_is_an_error(unet: UNet2DConditionModel) -> None:
    audit.TrainingGuard(unet, max_entropy=100)
    unet.set_attn_processor(Explicit())
    with pytest.raises(AuditError, match=f"{LAYERS} did not attend exactly once"):
        unet(*inputs(unet))


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [pytest.param(False, marks=pytest.mark.soak), True])
def test_a_unet_that_was_compiled_in_place_before(shallow: UNet2DConditionModel, checkpointing: bool) -> None:
    batch = inputs(shallow)
    truth = true_entropies(shallow, batch)
    if checkpointing:
        shallow.enable_gradient_checkpointing()
    torch._dynamo.reset()
    shallow.compile(backend="eager", fullgraph=True)
    loss_of(shallow, batch).mean().backward()
    guard = audit.TrainingGuard(shallow, max_entropy=float(np.sort(truth)[1:3].mean()))
    loss = loss_of(shallow, batch)
    assert guard._last is not None
    np.testing.assert_allclose(mean_entropy(guard._last.attn_BLK), truth, atol=1e-5)
    (guard.weights() * loss).mean().backward()


@pytest.mark.slow
def test_each_rank_of_ddp_weighs_its_own_samples(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    groups = [tmp_path / "first", tmp_path / "second"]
    for folder in groups:
        folder.mkdir()
    given = list(unet.parameters()), {1 - rank: folder for rank, folder in enumerate(groups)}
    other = torch.multiprocessing.spawn(train_as_the_other, given, nprocs=1, join=False)
    for rank, folder in enumerate(groups):
        with one_of_two_ranks(rank, folder):
            batch = inputs(unet, seed=rank)
            guard = audit.TrainingGuard(unet, max_entropy=median_entropy(unet, batch), log=tmp_path / "log")
            loss = loss_of(torch.nn.parallel.DistributedDataParallel(unet), batch)
            (guard.weights(ids=[f"{rank}-{i}" for i in range(4)]) * loss).mean().backward()
            guard.close()
    other.join()
    parts = sorted((tmp_path / "log").iterdir())
    assert [part.name for part in parts] == ["000-0000000000.parquet", "001-0000000000.parquet"]
    for rank, part in enumerate(parts):
        truth = true_entropies(unet, inputs(unet, seed=rank))
        loud = np.argsort(truth)[2:]
        assert pq.read_table(part)["ids"].to_pylist() == [[f"{rank}-{i}" for i in sorted(loud)]]


def test_forwards_in_eval_mode_are_not_looked_at(unet: UNet2DConditionModel) -> None:
    guard = audit.TrainingGuard(unet, max_entropy=1)
    with torch.no_grad():
        unet.eval()(*inputs(unet))
    with pytest.raises(UsageError, match="no forward"):
        guard.weights()
    unet.train()(*inputs(unet))
    guard.weights()
    with pytest.raises(UsageError, match="no forward"):
        guard.weights()


def test_close_lets_go_of_the_unet(unet: UNet2DConditionModel) -> None:
    guard = audit.TrainingGuard(unet, max_entropy=1)
    guard.close()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())
    assert type(unet) is UNet2DConditionModel
    assert not any(name.startswith("_audit") for name in vars(unet))


def test_one_limit_and_a_sensible_one(unet: UNet2DConditionModel) -> None:
    for limits in ({}, {"max_quantile": 0.9, "max_entropy": 1.0}):
        with pytest.raises(UsageError, match="one limit"):
            audit.TrainingGuard(unet, **limits)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="max_quantile is 99"):
        audit.TrainingGuard(unet, max_quantile=99)
    with pytest.raises(UsageError, match="warmup is 0"):
        audit.TrainingGuard(unet, max_quantile=0.9, warmup=0)


def test_ids_must_fit_the_batch(unet: UNet2DConditionModel) -> None:
    guard = audit.TrainingGuard(unet, max_entropy=1)
    unet(*inputs(unet))
    with pytest.raises(UsageError, match="3 ids for 4 samples"):
        guard.weights(ids=[1, 2, 3])


def test_what_is_no_unet_is_refused_by_name(unet: UNet2DConditionModel) -> None:
    with pytest.raises(AuditError, match="not OptimizedModule"):
        audit.TrainingGuard(torch.compile(unet, backend="eager"), max_entropy=1)  # type: ignore[arg-type]


def test_a_forward_that_failed_leaves_nothing_behind(unet: UNet2DConditionModel) -> None:
    batch = inputs(unet)
    guard = audit.TrainingGuard(unet, max_entropy=median_entropy(unet, batch))
    truth = weights_of(guard, unet, batch)
    handle = unet.mid_block.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        unet(*batch)
    handle.remove()
    assert torch.equal(weights_of(guard, unet, batch), truth)


class ControlCaptions:
    """Hidden states of control captions: one text, varied a little; and how often they were asked for."""

    def __init__(self, unet: UNet2DConditionModel, spread: float = 0.1, seed: int = 7) -> None:
        self.spread, self.asked, self.generator = spread, 0, torch.Generator().manual_seed(seed)
        shape = 1, 12, unet.config.cross_attention_dim
        self.text = torch.randn(shape, generator=torch.Generator().manual_seed(8))

    def __call__(self, size: int) -> Tensor:
        self.asked += 1
        noise = torch.randn(size, *self.text.shape[1:], generator=self.generator)
        return self.text + self.spread * noise


def test_control_captions_take_the_place_of_the_captions_once_in_fifty_steps(shallow: UNet2DConditionModel) -> None:
    unet, control_captions = shallow, ControlCaptions(shallow)
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    guard = audit.TrainingGuard(unet, max_quantile=0.95, control_captions=control_captions)
    unet.register_forward_pre_hook(lambda _, args: seen.append(args))
    batch = inputs(unet)
    for step in range(52):
        unet(*batch)
        assert guard.weights().tolist() == [1.0] * 4  # too few control samples yet
        assert control_captions.asked == (1 if step < 50 else 2)
    of_control = [args for args in seen if args[2] is not batch[2]]
    assert len(of_control) == 2
    assert len(seen) == 54
    assert all(args[0] is batch[0] and args[1] is batch[1] for args in of_control)


def test_what_attends_unlike_control_captions_gets_no_weight(
    shallow: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audit.mitigation.training.CONTROL_EVERY", 1)
    unet = shallow
    guard = audit.TrainingGuard(unet, max_quantile=0.95, control_captions=ControlCaptions(unet))
    shares = {}
    for name, spread, steps in (("learning", 0.1, 12), ("like control captions", 0.1, 4), ("unlike", 1.0, 4)):
        found, captions = [], ControlCaptions(unet, spread, seed=9)
        for seed in range(steps):
            noisy, timesteps, _ = inputs(unet, 20, seed)
            unet(noisy, timesteps, encoder_hidden_states=captions(20))
            found.append(guard.weights().mean())
        shares[name] = float(torch.stack(found).mean())
    assert shares["like control captions"] > 0.8
    assert shares["unlike"] < 0.2


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_forward_of_control_captions_leaves_gradients_alone(
    unet: UNet2DConditionModel, autocast: bool, checkpointing: bool
) -> None:
    batch = inputs(unet)
    if checkpointing:
        unet.enable_gradient_checkpointing()

    def gradients(guard: audit.TrainingGuard | None) -> list[Tensor]:
        unet.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of(unet, batch)
        (loss if guard is None else loss * guard.weights()).mean().backward()
        return [p.grad.clone() for p in unet.parameters()]

    plain = gradients(None)
    guarded = gradients(audit.TrainingGuard(unet, max_quantile=0.95, control_captions=ControlCaptions(unet)))
    assert all(torch.equal(a, b) for a, b in zip(plain, guarded, strict=True))


def test_a_fixed_entropy_does_not_go_with_control_captions(unet: UNet2DConditionModel) -> None:
    with pytest.raises(UsageError, match="max_entropy cannot be combined with control captions"):
        audit.TrainingGuard(unet, max_entropy=1.0, control_captions=ControlCaptions(unet))
