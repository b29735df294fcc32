"""Rows, columns, blocks, heads and tensors of real backbones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scalepet import backbones
from scalepet.backbones import Backbone
from scalepet.errors import ConfigError
from scalepet.pet import Apet, plan_apet

HEAD_WIDTH = 6


@pytest.fixture(scope="module")
def sites(tiny_backbones):
    backbone = Backbone(str(tiny_backbones / "t5-gated"))
    return backbones.sketch_sites(backbones.read_model_config(backbone))


def whole_and_cut(mask, unit_of) -> tuple[int, int]:
    """How many units are in the mask as a whole, and in part."""
    whole = cut = 0
    for name, positions in mask.positions.items():
        rows, columns = mask.shapes[name][0], math.prod(mask.shapes[name][1:])
        units = unit_of(name, *np.divmod(np.arange(rows * columns), columns))
        sizes = np.bincount(units)
        taken = np.bincount(units[positions], minlength=len(sizes))
        whole += int(((taken == sizes) & (sizes > 0)).sum())
        cut += int(((taken < sizes) & (taken > 0)).sum())
    return whole, cut


UNITS = {
    "row": lambda name, row, column: row,
    "column": lambda name, row, column: column,
    "block": lambda name, row, column: row // 5 * 1000 + column // 5,
    "head": lambda name, row, column: (column if name.endswith(".o.weight") else row) // HEAD_WIDTH,
    "tensor": lambda name, row, column: 0 * row,
}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_mask_is_made_of_whole_units_but_one(unit, seed, sites):
    apet = plan_apet(sites, budget=1789, unit=unit, block=5, parts=("q", "k", "v", "o"), seed=seed)
    assert isinstance(apet, Apet) and apet.mask is not None
    assert apet.mask.count == apet.num_parameters == 1789
    whole, cut = whole_and_cut(apet.mask, UNITS[unit])
    assert whole > 0 and cut <= 1


def test_only_attentions_have_heads(sites):
    with pytest.raises(ConfigError, match=r"unit: head, but .* allowed: parts: \[q, k, v, o\]"):
        plan_apet(sites, budget=100, unit="head")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"unit": "row", "select": "snip"}, "unit: row is chosen at random"),
        ({"unit": "row", "move_every": 5}, "unit: row is chosen at random"),
        ({"operation": "plug", "select": "snip"}, "operation: plug has no weights to score"),
        ({"operation": "concat", "unit": "row"}, "operation: concat has no weights"),
        ({"move_share": 1.5}, "move_share: 1.5; allowed: at most 1"),
        ({"budget": 2, "operation": "mix"}, "budget: 2 cannot be split among three"),
        ({"budget": 20_000, "operation": "plug"}, "budget: 20,000 for operation plug"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options, words, sites):
    with pytest.raises(ConfigError, match=words):
        plan_apet(sites, **{"budget": 100, **options})


@pytest.mark.parametrize("seed", range(5))
def test_a_mix_meets_its_budget_with_all_three_operations(seed, sites):
    mix = plan_apet(sites, budget=1000, operation="mix", seed=seed)
    counts = [part.num_parameters for part in mix.methods]
    assert len(counts) == 3 and min(counts) > 0 and sum(counts) == 1000
