"""The selection of the authors' released code, apart, for comparison with APET.

Source: github.com/yushengsu-thu/PET_Scaling, ``train_seq2seq.py``. Whole tensors are picked: half
of the budget goes to shuffled LoRA pairs (r 8, alpha 16, q and v) and adapter quadruples (24, after
both sub-layers), half to shuffled tensors of the backbone, each taken if it still fits. It does not
hit a budget: of a pair or quadruple only the first tensor is held against what is left.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from scalepet.backbones import Site
from scalepet.errors import ConfigError
from scalepet.masks import count_budget
from scalepet.pet.adapter import Adapters, count_bottleneck, plan_adapter
from scalepet.pet.full import Full
from scalepet.pet.lora import Lora, plan_lora
from scalepet.pet.method import Method
from scalepet.pet.together import together

_RANK, _BOTTLENECK = 8, 24


def plan_released(sites: Sequence[Site], *, budget: int | str, seed: int = 1) -> Method:
    """Pick whole tensors greedily.

    Args:
        sites: the tensors of the backbone.
        budget: what the authors call the allowed number: a count, or a part of the backbone; about
            as many are trained.
        seed: of the order; the released code seeds with budget * seed, so 0 is one order for all
            budgets.

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
    tensors = [(site, site.numel, site.numel) for site in sites]
    generator = random.Random(count * seed)
    generator.shuffle(groups)
    generator.shuffle(tensors)
    new, old = _take(groups, count // 2), _take(tensors, count // 2)
    if not new and not old:
        smallest = 2 * min(site.numel for site in sites)
        raise ConfigError(f"budget: {count:,} fits no tensor; allowed: at least {smallest:,}")
    return together(_picked(sites, new, old, {"budget": budget, "seed": seed}))


def _take(candidates: Sequence[tuple[Site, int, int]], allowed: int) -> list[Site]:
    taken = []
    for site, first, whole in candidates:
        if allowed <= 0:
            break
        if first <= allowed:
            taken.append(site)
            allowed -= whole
    return taken


def _picked(
    sites: Sequence[Site], new: Sequence[Site], old: Sequence[Site], options: dict[str, Any]
) -> Iterator[Method]:
    """The tensors that were picked, as methods; none of those that were not."""
    lora, adapter = plan_lora(sites, r=_RANK), plan_adapter(sites, bottleneck=_BOTTLENECK)
    pairs = tuple(site for site in lora.sites if site in new)
    quadruples = tuple(site for site in adapter.sites if site in new)
    if pairs:
        yield Lora(pairs, lora.r, lora.scaling, {**lora.options, **options})
    if quadruples:
        yield Adapters(quadruples, adapter.bottleneck, {**adapter.options, **options})
    if old:
        yield Full(tuple(old), options)
