"""FLOPs are those that torch's own counter counts, whether or not the same shapes were seen before."""

from __future__ import annotations

import gc
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import audit
from audit.costs.flop_counter import FlopCounter
from audit.costs.meta_networks import META, outline_model
from tests.support.toy import MODEL

DEVICES = pytest.mark.parametrize("device", [torch.device("cpu"), META], ids=str)


@pytest.fixture(scope="module")
def model() -> audit.Model:
    return outline_model(MODEL)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda mode: mode.__name__)
def test_a_forward_costs_what_torch_counts(mode: type, model: audit.Model) -> None:
    """In inference mode, the counter is given composed operations; otherwise, those that they consist of."""
    sample_BCHW, conditioning = torch.empty(2, *model.latent_shape, device=META), model.encode(["x"]).expand(2)
    with mode(), FlopCounterMode(display=False) as torchs:
        model.predict(sample_BCHW, 5, conditioning)
    for _ in range(2):
        with mode(), FlopCounter() as ours:
            model.predict(sample_BCHW, 5, conditioning)
        assert ours.total == torchs.get_total_flops() > 0


@DEVICES
def test_shapes_that_depend_on_data_are_found_each_time(device: torch.device) -> None:
    rows, weight = torch.ones(8, 3, device=device), torch.ones(3, 5, device=device)
    for kept in (2, 7):
        mask = torch.arange(8) < kept  # has data, whatever the device of the rows
        with FlopCounter() as counter:
            assert (rows[mask] @ weight).shape == (kept, 5)
        assert counter.total == 2 * kept * 3 * 5


@DEVICES
@pytest.mark.parametrize("change", [partial(Tensor.squeeze_, dim=0), Tensor.t_], ids=["squeezed", "transposed"])
def test_a_result_that_is_changed_in_place_does_not_change_later_ones(device: torch.device, change: partial) -> None:
    row, weight = torch.ones(1, 3, device=device), torch.ones(3, 5, device=device)
    with FlopCounter() as counter:
        change(row @ weight)
        assert (row @ weight).shape == (1, 5)
    assert counter.total == 2 * 2 * 3 * 5


def test_operations_that_return_several_tensors_return_all_of_them_again() -> None:
    rows = torch.ones(6, 4, device=META)
    with FlopCounter():
        first, second = (torch.native_layer_norm(rows, [4], None, None, 1e-5) for _ in range(2))
    assert [each.shape for each in second] == [each.shape for each in first] == [(6, 4), (6, 1), (6, 1)]


def test_no_tensor_outlives_the_count() -> None:
    with FlopCounter():
        _ = torch.ones(11, 3, device=META) @ torch.ones(3, 13, device=META)
    del _
    assert not [thing for thing in gc.get_objects() if type(thing) is Tensor and thing.shape == (11, 13)]
