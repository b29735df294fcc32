"""APET: any number of weights, at any positions, of any tensors of the backbone.

Source: "Arbitrary Few Parameters are Good Enough for Adapting Large-scale Pre-trained Language
Models" (arXiv 2306.02320). A tunable module there is any set of weights that joins the frozen model
by ADD (changes of existing weights), CONCAT (new positions to read) or PLUG (new layers); each has
a file of that name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from scalepet.backbones import Part, Site, SiteKind, match_sites
from scalepet.errors import ConfigError
from scalepet.masks import Share, count_budget, draw_distinct
from scalepet.pet.add import Group, Select, plan_add
from scalepet.pet.concat import plan_concat
from scalepet.pet.method import Count, Method, Positive
from scalepet.pet.plug import plan_plug
from scalepet.pet.together import together
from scalepet.pet.units import Unit

Operation = Literal["add", "concat", "plug", "mix"]


def plan_apet(
    sites: Sequence[Site],
    *,
    budget: int | str,
    operation: Operation = "add",
    unit: Unit = "element",
    block: Count = 16,
    select: Select = "random",
    move_every: Count | None = None,
    move_share: Positive = 0.2,
    kinds: Sequence[SiteKind] = ("matrix",),
    parts: Sequence[Part] | None = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    share: Share = "uniform",
    group_by: Group = "layer",
    calibrated: bool = False,
    seed: int = 0,
) -> Method:
    """Choose the entries to train.

    Args:
        sites: the tensors of the backbone.
        budget: how many entries: a count (``4096``), a part of the eligible ones (``"0.1%"``), or
            as many as another method trains (``same-as:lora``, ``same-as:lora(r=4)``).
        operation: change existing weights (add), read new positions (concat), pass through new
            layers (plug), or all three with parts of the budget that the seed draws (mix).
        unit: what is chosen at random: a single element, or a whole row, column, block (a square),
            attention head or tensor, the last one cut to meet the budget.
        block: side of the square.
        select: at random, or by the largest magnitude |w|, gradient |g| or snip |w g| of a weight
            over the first batches; imported where positions came with an adapter from elsewhere.
        move_every: steps after which the least used entries move to where the gradient is largest;
            null for a mask that stays.
        move_share: part of the entries that the first move replaces; falls to zero with the run.
        kinds: which kinds of tensors are eligible.
        parts: which linear layers of a block are: q, k, v, o, ffn_in, ffn_out; null for any
            tensor.
        include: patterns of tensor names (*SelfAttention.[qv].weight): one must match.
        exclude: patterns of tensor names: none may match.
        share: ``uniform`` over all eligible entries, or the same number (``even``) or a number in
            proportion to its size (``proportional``) for every group.
        group_by: what a group is: a ``layer`` (block), or a ``role`` (the same tensor of all
            layers).
        calibrated: a learnt scale for the changes of each masked tensor, beside the budget.
        seed: of the positions.

    Raises:
        ConfigError: a pattern or kind that matches nothing, a budget that is not met exactly by
            what is eligible, options that exclude each other.
    """
    options = {
        "budget": budget,
        "operation": operation,
        "unit": unit,
        "block": block,
        "select": select,
        "move_every": move_every,
        "move_share": move_share,
        "kinds": list(kinds),
        "parts": None if parts is None else list(parts),
        "include": list(include),
        "exclude": list(exclude),
        "share": share,
        "group_by": group_by,
        "calibrated": calibrated,
        "seed": seed,
    }
    _check_options(options)
    eligible = match_sites(sites, kinds=kinds, parts=parts, include=include, exclude=exclude)
    count = count_budget(budget, num_eligible=sum(site.numel for site in eligible))
    plans: dict[str, Callable[[int], Method]] = {
        "add": partial(plan_add, eligible, options=options),
        "concat": partial(plan_concat, sites, options=options),
        "plug": partial(plan_plug, sites, options=options),
    }
    counts = _split(count, seed=seed) if operation == "mix" else {operation: count}
    return together([plans[name](part) for name, part in counts.items()])


def _check_options(options: Mapping[str, Any]) -> None:
    """What goes together with what."""
    faults = []
    plain = options["select"] == "random" and options["move_every"] is None
    if options["unit"] != "element" and not plain:
        faults.append(
            f"unit: {options['unit']} is chosen at random and stays; allowed: element with select"
            " or move_every"
        )
    if options["operation"] != "add" and not (plain and options["unit"] == "element"):
        faults.append(
            f"operation: {options['operation']} has no weights to score, to move or to group into"
            " units; allowed: add with select, unit or move_every"
        )
    if options["calibrated"] and (options["operation"] != "add" or options["select"] != "random"):
        faults.append(
            f"calibrated: true with operation: {options['operation']} and select:"
            f" {options['select']}; allowed: add and random, which tell beforehand how many tensors"
            " are masked and get a scale"
        )
    if options["move_share"] > 1:
        faults.append(f"move_share: {options['move_share']}; allowed: at most 1")
    if faults:
        raise ConfigError(faults)


def _split(count: int, *, seed: int) -> dict[str, int]:
    """An exact budget in three parts, every split into at least one entry each as likely as any
    other.
    """
    if count < 3:
        raise ConfigError(f"budget: {count} cannot be split among three operations; allowed: 3")
    first, second = 1 + draw_distinct(2, num_positions=count - 1, key=("mix", str(seed)))
    return {"add": int(first), "concat": int(second - first), "plug": int(count - second)}
