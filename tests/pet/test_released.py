"""The selection of the authors' code: what it picks, and how it misses its budget."""

from __future__ import annotations

import random

import pytest

from scalepet import backbones
from scalepet.backbones import Backbone
from scalepet.errors import ConfigError
from scalepet.pet.adapter import Adapters
from scalepet.pet.full import Full
from scalepet.pet.lora import Lora
from scalepet.pet.released import plan_released
from scalepet.pet.together import parts_of


@pytest.fixture(scope="module")
def sites(tiny_backbones):
    backbone = Backbone(str(tiny_backbones / "t5-gated"))
    return backbones.sketch_sites(backbones.read_model_config(backbone))


def greedy(sites, count: int, seed: int) -> tuple[set[str], set[str]]:
    """The loop of the released script, over names and sizes: (modules that get a pair or quadruple,
    tensors)."""
    groups = []
    for site in sites:
        rows, columns = site.shape[0], site.shape[-1]
        if site.part in ("q", "v"):
            groups.append((site.module, [8 * columns, 8 * rows]))
        if site.part in ("o", "ffn_out") and not site.is_cross:
            groups.append((site.module, [24 * rows, 24, 24 * rows, rows]))
    tensors = [(site.name, site.numel) for site in sites]
    random.seed(count * seed)
    random.shuffle(groups)
    random.shuffle(tensors)
    left, modules = count // 2, set()
    while groups and left > 0:
        name, sizes = groups.pop(0)
        if sizes[0] <= left:
            modules.add(name)
            left -= sum(sizes)
    left, names = count // 2, set()
    while tensors and left > 0:
        name, size = tensors.pop(0)
        if size <= left:
            names.add(name)
            left -= size
    return modules, names


@pytest.mark.parametrize("count", [900, 3000, 9000])
@pytest.mark.parametrize("seed", [1, 2])
def test_it_picks_what_the_released_script_picks(count, seed, sites):
    parts = parts_of(plan_released(sites, budget=count, seed=seed))
    modules = {
        site.module for part in parts if isinstance(part, Lora | Adapters) for site in part.sites
    }
    names = {site.name for part in parts if isinstance(part, Full) for site in part.sites}
    assert (modules, names) == greedy(sites, count, seed)


def test_it_misses_its_budget(sites):
    found = {n: plan_released(sites, budget=n).num_parameters for n in (900, 1900, 3000, 9000)}
    assert any(count != budget for budget, count in found.items())
    assert all(count < 1.2 * budget for budget, count in found.items())


def test_a_budget_that_fits_no_tensor_is_refused(sites):
    with pytest.raises(ConfigError, match="budget: 4 fits no tensor; allowed: at least 48"):
        plan_released(sites, budget=4)
