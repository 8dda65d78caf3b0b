from __future__ import annotations

import numpy as np
import pytest

import audit
from audit.errors import UsageError
from audit.explaining.layers import LAYERS, layers

OWN, CONTROL = ["a dog", "two dogs in the snow", "a very long walk"], ["a boat", "the old house", "rain", "a blue hill"]


def test_every_timestep_and_layer_is_ranked_and_one_of_them_is_the_profiles(small: audit.Model) -> None:
    table = layers(small, OWN, CONTROL, seed=3, batch_size=2)
    assert table.schema.equals(LAYERS)
    assert len(table) == 8 * len(small.layers) * 2
    own, control = (audit.screen(small, texts, [3], ["attention_profile"]) for texts in (OWN, CONTROL))
    for feature, column in (("entropy", "layer_entropy"), ("bos", "layer_bos")):
        own_NL, control_NL = (np.array(screened[column].to_pylist()) for screened in (own, control))
        mine = [row for row in table.to_pylist() if (row["timestep"], row["feature"]) == (621, feature)]
        for layer, row in enumerate(mine):
            higher = (own_NL[:, None, layer] > control_NL[None, :, layer]).mean()
            assert row["layer"] == layer
            assert row["auroc"] == pytest.approx(higher)
            assert row["median"] == pytest.approx(np.median(own_NL[:, layer]), abs=2e-5)
            assert row["control_median"] == pytest.approx(np.median(control_NL[:, layer]), abs=2e-5)


def test_captions_of_both_kinds_are_needed(small: audit.Model) -> None:
    with pytest.raises(UsageError, match="nothing to compare"):
        layers(small, [], CONTROL)
