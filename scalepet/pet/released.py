"""The selection of the authors' released code, apart, for comparison with APET.

Source: github.com/yushengsu-thu/PET_Scaling, ``train_seq2seq.py``. Whole tensors are picked: half
of the budget goes to shuffled LoRA pairs (r 8, alpha 16, q and v) and adapter quadruples (24, after
both sub-layers), half to shuffled tensors of the backbone, each taken if it still fits. Linear
layers without a bias (T5) have been given one before (``modeling_t5.py``), which is a tensor like
the others. It does not hit a budget: of a pair or quadruple only the first tensor is held against
what is left.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from scalepet.backbones import T5_HEAD, Site
from scalepet.errors import ConfigError
from scalepet.masks import count_budget
from scalepet.pet.adapter import Adapters, count_bottleneck, plan_adapter
from scalepet.pet.bitfit import BitFit
from scalepet.pet.full import Full
from scalepet.pet.lora import Lora, plan_lora
from scalepet.pet.method import Method
from scalepet.pet.together import together

T = TypeVar("T")

_RANK, _BOTTLENECK = 8, 24


def plan_released(
    sites: Sequence[Site], *, budget: int | str, seed: int = 1, biases: bool = True
) -> Method:
    """Pick whole tensors greedily.

    Args:
        sites: the tensors of the backbone.
        budget: what the authors call the allowed number: a count, or a part of the backbone; about
            as many are trained.
        seed: of the order; the released code seeds with budget * seed, so 0 is one order for all
            budgets.
        biases: give linear layers that have none (T5) a bias that starts at zero, before anything
            is picked.

    Raises:
        ConfigError: not one tensor fits the budget.
    """
    count = count_budget(budget, num_eligible=sum(site.numel for site in sites))
    pairs = plan_lora(sites, r=_RANK).sites
    quadruples = plan_adapter(sites, bottleneck=_BOTTLENECK).sites
    # (site, first tensor, all tensors), in numbers.
    groups = [
        *((site, _RANK * site.shape[1], _RANK * sum(site.shape)) for site in pairs),
        *(
            (site, _BOTTLENECK * site.shape[0], count_bottleneck(_BOTTLENECK, site.shape[0]))
            for site in quadruples
        ),
    ]
    order = {site.name: index for index, site in enumerate(sites)}
    groups.sort(key=lambda group: order[group[0].name])
    lacking = _lacking_biases(sites) if biases else set()
    tensors: list[tuple[Site | _Bias, int, int]] = [
        (candidate, size, size)
        for site in sites
        for candidate, size in _with_bias(site, site.module in lacking)
    ]
    generator = random.Random(count * seed)
    generator.shuffle(groups)
    generator.shuffle(tensors)
    new, old = _take(groups, count // 2), _take(tensors, count // 2)
    if not new and not old:
        smallest = 2 * min(size for _, size, _ in tensors)
        raise ConfigError(f"budget: {count:,} fits no tensor; allowed: at least {smallest:,}")
    options = {"budget": budget, "seed": seed, "biases": biases}
    return together(_picked(sites, new, old, options))


@dataclass(frozen=True)
class _Bias:
    """The bias that the layer of a weight is given."""

    weight: Site


def _with_bias(site: Site, lacks_bias: bool) -> Iterator[tuple[Site | _Bias, int]]:
    yield site, site.numel
    if lacks_bias:
        yield _Bias(site), site.shape[0]


def _lacking_biases(sites: Sequence[Site]) -> set[str]:
    """Modules of linear layers without a bias; the output projection of a T5 is one."""
    with_bias = {site.module for site in sites if site.kind == "bias"}
    linear = {site.module for site in sites if site.kind == "matrix" or site.name == T5_HEAD}
    return linear - with_bias


def _take(candidates: Sequence[tuple[T, int, int]], allowed: int) -> list[T]:
    taken = []
    for site, first, whole in candidates:
        if allowed <= 0:
            break
        if first <= allowed:
            taken.append(site)
            allowed -= whole
    return taken


def _picked(
    sites: Sequence[Site],
    new: Sequence[Site],
    old: Sequence[Site | _Bias],
    options: dict[str, Any],
) -> Iterator[Method]:
    """The tensors that were picked, as methods; none of those that were not."""
    lora, adapter = plan_lora(sites, r=_RANK), plan_adapter(sites, bottleneck=_BOTTLENECK)
    pairs = tuple(site for site in lora.sites if site in new)
    quadruples = tuple(site for site in adapter.sites if site in new)
    if pairs:
        yield Lora(pairs, lora.r, lora.scaling, {**lora.options, **options})
    if quadruples:
        yield Adapters(quadruples, adapter.bottleneck, {**adapter.options, **options})
    whole = tuple(one for one in old if isinstance(one, Site))
    biases = tuple(one.weight for one in old if isinstance(one, _Bias))
    if whole:
        yield Full(whole, options)
    if biases:
        lacking = frozenset(site.module for site in biases)
        yield BitFit(biases, lacking, {"calibrated": False, **options})
