"""Batches of conditionings keep rows, tensors and tokens together."""

from __future__ import annotations

import pytest
import torch

from audit.models.conditioning import Conditioning, Tokens, joined


def conditioning(rows: int, tokens: bool = True) -> Conditioning:
    ids = torch.arange(rows * 5).reshape(rows, 5)
    counts = torch.arange(rows) + 2
    of = Tokens(ids, torch.ones_like(ids), counts, counts - 1, ids.clone()) if tokens else None
    hidden, mask = torch.randn(rows, 5, 3), torch.arange(rows)[:, None].expand(-1, 5)
    return Conditioning({"hidden": hidden, "pooled": torch.randn(rows, 2), "mask": mask}, of)


@pytest.mark.parametrize("rows", [slice(1, 3), torch.tensor([2, 0, 2])])
def test_rows_of_tensors_and_tokens_are_selected_together(rows: slice | torch.Tensor) -> None:
    whole = conditioning(4)
    part = whole[rows]
    for name, tensor in whole.tensors.items():
        assert torch.equal(part.tensors[name], tensor[rows])
    assert whole.tokens is not None
    assert part.tokens is not None
    for name, values in vars(whole.tokens).items():
        assert torch.equal(vars(part.tokens)[name], values[rows])


def test_a_single_row_is_repeated_and_rows_are_joined() -> None:
    one, two = conditioning(1, tokens=False), conditioning(2)
    both = joined([one.expand(2), two])
    assert len(both) == 4
    assert torch.equal(both.tensors["pooled"], torch.cat([one.tensors["pooled"]] * 2 + [two.tensors["pooled"]]))


def test_only_equal_tokens_are_the_same() -> None:
    tokens = conditioning(3).tokens
    assert tokens is not None
    assert tokens.same_as(tokens[slice(1, 2)]).tolist() == [False, True, False]
    assert not tokens.same_as(None).any()


def test_a_step_towards_another_leaves_masks_and_shortens_the_distance() -> None:
    whole, other = conditioning(3), conditioning(1)
    nearer = whole.towards(other, 0.25)
    assert torch.equal(nearer.tensors["mask"], whole.tensors["mask"])
    torch.testing.assert_close(nearer.distance(other), 0.75 * whole.distance(other), atol=1e-6, rtol=0)
    parts = [(whole.tensors[name] - other.tensors[name]).flatten(1).double() for name in ("hidden", "pooled")]
    torch.testing.assert_close(whole.distance(other), torch.cat(parts, dim=1).square().sum(1).sqrt())
