"""APET: any number of weights, at any positions, of any tensors of the backbone.

Source: "Arbitrary Few Parameters are Good Enough for Adapting Large-scale Pre-trained Language
Models" (arXiv 2306.02320). A tunable module there is any set of weights that joins the frozen model
by ADD (changes of existing weights: this file), CONCAT (``concat``) or PLUG (``plug``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from scalepet import dist
from scalepet.backbones import Part, Site, SiteKind, match_sites
from scalepet.errors import CheckpointError, ConfigError
from scalepet.masks import (
    Indices,
    ScoreShard,
    Share,
    SparseMask,
    count_budget,
    decode_sorted,
    describe,
    draw_distinct,
    encode_sorted,
    mask_of_positions,
    select_entries,
    select_top,
)
from scalepet.pet.concat import plan_concat
from scalepet.pet.masked_forward import mask_module, users_of
from scalepet.pet.method import Count, Method, Positive
from scalepet.pet.plug import plan_plug
from scalepet.pet.scores import Score
from scalepet.pet.together import together
from scalepet.pet.units import Unit, tiles_of

Group = Literal["layer", "role"]
Select = Literal["random", "magnitude", "gradient", "snip", "imported"]
Operation = Literal["add", "concat", "plug", "mix"]

POSITIONS = "_positions"
"""Ends the names of saved positions, as ``_values`` ends those of the values."""


@dataclass(frozen=True)
class Moves:
    """When and how far a mask moves.

    Attributes:
        every: optimizer steps from one move to the next.
        share: part of the entries that the first move replaces; falls linearly to zero at the end
            of the run.
    """

    every: int
    share: float


@dataclass(frozen=True)
class Apet(Method):
    """Trains entries of frozen tensors as deltas on them: W + scatter(values).

    Attributes:
        eligible: the tensors whose entries may be trained.
        count: how many are.
        mask: which ones; None until they are chosen by a score, or come out of a file.
        select: what they are chosen by; for ``random`` the options alone give the mask.
        moves: None for a mask that stays.
        options: as given to ``plan_apet``.
    """

    eligible: tuple[Site, ...]
    count: int
    mask: SparseMask | None
    options: Mapping[str, Any]
    select: Select = "random"
    moves: Moves | None = None

    goes_first = True

    @property
    def num_parameters(self) -> int:
        return self.count

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Full shapes of the eligible tensors."""
        return {site.name: site.shape for site in self.eligible}

    @property
    def values(self) -> dict[str, str]:
        """Name of a masked tensor -> name of the parameter that holds its entries' values."""
        assert self.mask is not None, "the mask is not chosen yet"
        return {name: f"{name}_values" for name in self.mask.positions}

    def attach(self, model: nn.Module) -> None:
        """Give every masked tensor its values, (entries,) in its dtype; tied ones share theirs."""
        assert self.mask is not None, "the mask is not chosen yet"
        users = users_of(model)
        for name, positions in self.mask.positions.items():
            parameter = model.get_parameter(name)
            zeros = torch.zeros(len(positions), dtype=parameter.dtype, device=parameter.device)
            values = nn.Parameter(zeros)
            indices = torch.from_numpy(positions).to(parameter.device)
            for module, own_name in users[id(parameter)]:
                mask_module(module, own_name, values, indices)

    def place(self, model: nn.Module) -> None:
        """Let a model that the method is attached to look at these positions from now on."""
        assert self.mask is not None
        users = users_of(model)
        for name, positions in self.mask.positions.items():
            for module, own_name in users[id(model.get_parameter(name))]:
                buffer = module.get_buffer(f"{own_name}{POSITIONS}")
                buffer.copy_(torch.from_numpy(positions))

    def moved_to(self, positions: Mapping[str, Indices]) -> Apet:
        """The method with other positions of the eligible tensors."""
        shapes = {name: self.shapes[name] for name in positions}
        num_eligible = sum(site.numel for site in self.eligible)
        return self.with_mask(
            mask_of_positions(positions, shapes=shapes, num_eligible=num_eligible)
        )

    def with_mask(self, mask: SparseMask) -> Apet:
        """The method with any mask, and as many entries as it has."""
        return dataclasses.replace(self, mask=mask, count=mask.count)

    def record(self) -> dict[str, Any]:
        if self.is_rule:
            assert self.mask is not None
            return {"options": dict(self.options), "mask": describe(self.mask)}
        return {"options": dict(self.options), "count": self.count}

    def may_rest(self, name: str) -> bool:
        return name.endswith("_values")

    def merged(self, name: str, tensor: Tensor, trained: Mapping[str, Tensor]) -> Tensor:
        assert self.mask is not None, "the mask is not chosen yet"
        if name not in self.mask.positions:
            return tensor
        merged = tensor.clone()
        positions = torch.from_numpy(self.mask.positions[name]).to(tensor.device)
        values = trained[f"{name}_values"].to(torch.float32)
        flat = merged.view(-1)
        flat[positions] = (flat[positions].float() + values).to(tensor.dtype)
        return merged

    @property
    def score(self) -> Score | None:
        """What chooses the mask once the weights are there."""
        return None if self.select == "random" or self.select == "imported" else self.select

    @property
    def is_rule(self) -> bool:
        """Whether the options alone give the mask, so that no positions need to be saved."""
        return self.select == "random" and self.moves is None

    def choose(self, scores: Mapping[str, ScoreShard]) -> Apet:
        """The method with the entries of the largest scores. All ranks together.

        Args:
            scores: this rank's slices of the scores of every eligible tensor.
        """
        mask = select_top(
            scores,
            shapes=self.shapes,
            budget=self.count,
            share=self.options["share"],
            groups=_groups(self.eligible, self.options["group_by"]),
            sum_over_ranks=lambda counts: dist.sum_over_ranks(torch.from_numpy(counts)).numpy(),
            gather=dist.all_gather_objects,
        )
        return dataclasses.replace(self, mask=mask)

    def saved_positions(self) -> dict[str, Tensor]:
        """The positions as bytes, by ``NAME_positions``; nothing where the options give them."""
        if self.is_rule:
            return {}
        assert self.mask is not None, "the mask is not chosen yet"
        return {
            f"{name}{POSITIONS}": torch.from_numpy(encode_sorted(positions))
            for name, positions in self.mask.positions.items()
        }

    def with_positions(self, saved: Mapping[str, Tensor]) -> Apet:
        """The method with the positions that ``saved_positions`` gave.

        Raises:
            CheckpointError: they are none of this backbone.
        """
        if self.is_rule:
            return self
        try:
            positions = {
                name.removesuffix(POSITIONS): decode_sorted(tensor.numpy())
                for name, tensor in saved.items()
            }
        except ValueError as error:
            raise CheckpointError(f"the saved positions of a mask: {error}") from error
        unknown = sorted(positions.keys() - self.shapes.keys())
        if unknown or sum(map(len, positions.values())) != self.count:
            raise CheckpointError(
                f"the saved positions are of {len(positions)} tensors, {len(unknown)} of them not"
                f" eligible; allowed: {self.count:,} entries of the {len(self.eligible)} eligible"
            )
        return self.moved_to(positions)


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
        "seed": seed,
    }
    _check_options(options)
    eligible = match_sites(sites, kinds=kinds, parts=parts, include=include, exclude=exclude)
    count = count_budget(budget, num_eligible=sum(site.numel for site in eligible))
    plans: dict[str, Callable[[int], Method]] = {
        "add": partial(_plan_add, eligible, options=options),
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
    if options["move_share"] > 1:
        faults.append(f"move_share: {options['move_share']}; allowed: at most 1")
    if faults:
        raise ConfigError(faults)


def _plan_add(eligible: Sequence[Site], count: int, *, options: Mapping[str, Any]) -> Apet:
    select, every = options["select"], options["move_every"]
    moves = None if every is None else Moves(every, options["move_share"])
    mask = None
    if select == "random":
        unit = options["unit"]
        tiles = None if unit == "element" else tiles_of(eligible, unit=unit, block=options["block"])
        # The rule keeps what was asked for ("0.1%"), unless the budget is a part of a mix.
        asked = options["budget"] if options["operation"] == "add" else count
        mask = select_entries(
            {site.name: site.shape for site in eligible},
            budget=asked,
            seed=options["seed"],
            share=options["share"],
            groups=_groups(eligible, options["group_by"]),
            tiles=tiles,
            unit=unit,
        )
    return Apet(tuple(eligible), count, mask, options, select, moves)


def _groups(sites: Sequence[Site], group_by: Group) -> dict[str, str]:
    return {site.name: getattr(site, group_by) for site in sites}


def _split(count: int, *, seed: int) -> dict[str, int]:
    """An exact budget in three parts, every split into at least one entry each as likely as any
    other.
    """
    if count < 3:
        raise ConfigError(f"budget: {count} cannot be split among three operations; allowed: 3")
    first, second = 1 + draw_distinct(2, num_positions=count - 1, key=("mix", str(seed)))
    return {"add": int(first), "concat": int(second - first), "plug": int(count - second)}


def largest_move(apet: Apet, name: str, part: float) -> int:
    """How many entries of the tensor ``name`` may move when ``part`` of them should."""
    assert apet.mask is not None
    num_entries = apet.mask.positions[name].size
    free = math.prod(apet.mask.shapes[name]) - num_entries
    return min(round(part * num_entries), free)
