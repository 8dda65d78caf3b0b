"""Where the networks of a model are, and who takes turns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import audit
from audit.models.model import Model
from audit.models.placement import place_networks, take_turns, weights
from tests.support.tiny_mmdit import tiny_sd3

CAPTIONS = ["a red dog", "a table", ""]


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd3(tmp_path_factory.mktemp("sd3") / "model", data / "tiny-sd1/tokenizer")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Model:
    """A model that tests do not change."""
    return audit.load_model(folder)


@pytest.fixture
def model(folder: Path) -> Model:
    """Loaded anew, because tests add hooks to it."""
    return audit.load_model(folder)


class Order:
    """Notes which of two networks ran, in order."""

    def __init__(self, model: Model) -> None:
        self.seen: list[str] = []
        for name in ("text_encoder_3", "transformer"):
            network: nn.Module = model.networks[name]
            network.register_forward_pre_hook(lambda _network, _args, name=name: self.seen.append(name))

    def turns(self) -> int:
        return sum(one != other for one, other in zip(self.seen, self.seen[1:], strict=False))


def test_on_the_cpu_nothing_takes_turns(plain: Model) -> None:
    assert not plain.takes_turns
    assert not place_networks(plain.networks, plain.DENOISER, torch.device("cpu"))


def test_a_network_is_moved_if_any_of_its_tensors_is_elsewhere() -> None:
    network, device = nn.BatchNorm1d(3), torch.device("meta")
    for name in ("weight", "bias"):
        setattr(network, name, nn.Parameter(getattr(network, name).to(device)))
    place_networks({"one": network}, "one", device)
    assert all(tensor.is_meta for tensor in network.state_dict().values())


def test_the_size_of_weights_is_in_bytes() -> None:
    assert weights({"one": nn.Linear(3, 5), "two": nn.Linear(2, 2).half()}) == 4 * (3 * 5 + 5) + 2 * (2 * 2 + 2)


@pytest.mark.parametrize(
    ("seeds", "batch_size"),
    [
        ([0], 1),
        ([0, 1, 2], 2),  # batches that end between the seeds of a caption
        ([0, 1, 2], 16),
        pytest.param([0, 1, 2], 1, marks=pytest.mark.soak),
        pytest.param([0], 2, marks=pytest.mark.soak),
        pytest.param([0], 16, marks=pytest.mark.soak),
    ],
)
def test_a_model_whose_networks_take_turns_has_the_same_results_bit_for_bit(
    plain: Model, seeds: list[int], batch_size: int
) -> None:
    turning = replace(plain, takes_turns=True)
    names = ["caption_response", "attention_profile"]
    tables = [audit.screen(each, CAPTIONS, seeds, names, batch_size) for each in (plain, turning)]
    assert tables[0].equals(tables[1])
    tables = [
        audit.generate(each, CAPTIONS, seeds, steps=2, output="latents", batch_size=batch_size)
        for each in (plain, turning)
    ]
    assert tables[0].equals(tables[1])


def test_captions_of_several_batches_are_encoded_before_the_first_is_denoised(model: Model) -> None:
    order = Order(model)
    audit.screen(model, CAPTIONS, batch_size=1)
    before = order.turns()
    order.seen.clear()
    audit.screen(replace(model, takes_turns=True), CAPTIONS, batch_size=1)
    assert before == 2 * len(CAPTIONS) + 1
    assert order.seen == ["text_encoder_3", "transformer"] + ["text_encoder_3"] * 3 + ["transformer"] * 3


def test_a_network_that_runs_moves_the_other_one_away_first(model: Model) -> None:
    expected = audit.screen(model, CAPTIONS)
    t5, transformer = model.networks["text_encoder_3"], model.networks["transformer"]
    take_turns(t5, transformer, torch.device("cpu"))
    assert audit.screen(model, CAPTIONS).equals(expected)
    for one, other in ((t5, transformer), (transformer, t5)):
        assert one._hf_hook.prev_module_hook.model is other
        assert one._hf_hook.execution_device == torch.device("cpu")
