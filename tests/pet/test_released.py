"""The selection of the authors' code: what it picks, and how it misses its budget."""

from __future__ import annotations

import random

import pytest

from scalepet import backbones
from scalepet.backbones import Backbone, t5_config
from scalepet.errors import ConfigError
from scalepet.pet.adapter import Adapters
from scalepet.pet.bitfit import BitFit
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
    tensors = []
    for site in sites:  # modeling_t5.py has bias=True in every linear layer
        tensors.append((site.name, site.numel))
        if site.kind == "matrix" or site.name == "lm_head.weight":
            tensors.append((f"{site.module}.bias", site.shape[0]))
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
    biased = [site for part in parts if isinstance(part, BitFit) for site in part.sites]
    names |= {f"{site.module}.bias" for site in biased}
    assert (modules, names) == greedy(sites, count, seed)


def test_it_misses_its_budget(sites):
    found = {n: plan_released(sites, budget=n).num_parameters for n in (900, 1900, 3000, 9000)}
    assert any(count != budget for budget, count in found.items())
    assert all(count < 1.2 * budget for budget, count in found.items())


def test_a_budget_that_fits_no_tensor_is_refused(sites):
    with pytest.raises(ConfigError, match="budget: 4 fits no tensor; allowed: at least 48"):
        plan_released(sites, budget=4)


OF_THE_AUTHORS = {
    "lora": (6_291_456, 0.58, 0.96),
    "adapter": (19_269_888, 0.53, 0.65),
    "bitfit": (2_444_644, 0.70, 0.99),
}
"""Their budgets of a T5-XXL (``apet_scale.py``), and how much of them is filled."""


@pytest.mark.parametrize(("budget", "without", "filled"), OF_THE_AUTHORS.values())
def test_biases_fill_the_budgets_of_a_t5_xxl(budget, without, filled):
    config = t5_config(
        vocab_size=32_128, d_model=4096, d_kv=64, d_ff=10_240, num_layers=24, num_heads=64
    )
    sites = backbones.sketch_sites(config)
    with_biases = plan_released(sites, budget=budget).num_parameters / budget
    alone = plan_released(sites, budget=budget, biases=False).num_parameters / budget
    assert (alone, with_biases) == (
        pytest.approx(without, abs=0.01),
        pytest.approx(filled, abs=0.01),
    )


def test_a_bert_has_its_biases_already(tiny_backbones):
    backbone = Backbone(str(tiny_backbones / "bert"), num_classes=2)
    sites = backbones.sketch_sites(backbones.read_model_config(backbone))
    for seed in range(5):
        parts = parts_of(plan_released(sites, budget=3000, seed=seed))
        without = parts_of(plan_released(sites, budget=3000, seed=seed, biases=False))
        assert [part.sites for part in parts] == [part.sites for part in without]
        assert not any(isinstance(part, BitFit) for part in parts)
