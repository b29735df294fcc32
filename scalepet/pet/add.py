"""APET's ADD: entries of frozen tensors train, as changes on them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor, nn

from scalepet import dist
from scalepet.backbones import Site
from scalepet.errors import CheckpointError
from scalepet.masks import (
    Indices,
    ScoreShard,
    SparseMask,
    decode_sorted,
    describe,
    encode_sorted,
    mask_of_positions,
    select_entries,
    select_top,
)
from scalepet.pet.calibration import add_scale, scaled_in
from scalepet.pet.masked_forward import mask_module, users_of
from scalepet.pet.method import Method
from scalepet.pet.scores import Score
from scalepet.pet.units import tiles_of

Group = Literal["layer", "role"]
Select = Literal["random", "magnitude", "gradient", "snip", "imported"]

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
    """Trains entries of frozen tensors as deltas on them: W + scatter(values); calibrated, values
    times a scale of each masked tensor, which is beside the budget.

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
        return self.count + self.num_scales

    @property
    def num_scales(self) -> int:
        """One a masked tensor where the method is calibrated, none otherwise."""
        if not self.options["calibrated"]:
            return 0
        assert self.mask is not None, "the mask is not chosen yet"
        return len(self.mask.positions)

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
        """Give every masked tensor its values, (entries,) in its dtype; tied ones share theirs, and
        their scale.
        """
        assert self.mask is not None, "the mask is not chosen yet"
        users = users_of(model)
        for name, positions in self.mask.positions.items():
            parameter = model.get_parameter(name)
            zeros = torch.zeros(len(positions), dtype=parameter.dtype, device=parameter.device)
            values = nn.Parameter(zeros)
            indices = torch.from_numpy(positions).to(parameter.device)
            for module, own_name in users[id(parameter)]:
                mask_module(module, own_name, values, indices)
            if self.options["calibrated"]:
                _share_scale(users[id(parameter)], like=parameter)

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
        return name.endswith("_values") or super().may_rest(name)

    def merged(self, name: str, tensor: Tensor, trained: Mapping[str, Tensor]) -> Tensor:
        assert self.mask is not None, "the mask is not chosen yet"
        if name not in self.mask.positions:
            return tensor
        merged = tensor.clone()
        positions = torch.from_numpy(self.mask.positions[name]).to(tensor.device)
        values = scaled_in(trained, f"{name}_values").float()
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
                name.removesuffix(POSITIONS): decode_sorted(_row_of_bytes(name, tensor))
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


def _row_of_bytes(name: str, saved: Tensor) -> Any:
    if saved.dtype != torch.uint8 or saved.dim() != 1:
        raise ValueError(
            f"{name} is {saved.dtype} of {tuple(saved.shape)}; allowed: a row of bytes"
        )
    return saved.numpy()


def plan_add(eligible: Sequence[Site], count: int, *, options: Mapping[str, Any]) -> Apet:
    """The method that trains exactly ``count`` entries of these tensors; options as checked by
    ``plan_apet``.
    """
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


def _share_scale(users: Sequence[tuple[nn.Module, str]], *, like: Tensor) -> None:
    (first, own_name), *others = users
    scale = add_scale(first, f"{own_name}_values", like=like)
    for module, name in others:
        module.register_parameter(f"{name}_values_scale", scale)


def _groups(sites: Sequence[Site], group_by: Group) -> dict[str, str]:
    return {site.name: getattr(site, group_by) for site in sites}


def largest_move(apet: Apet, name: str, part: Fraction) -> int:
    """How many entries of the tensor ``name`` may move when ``part`` of them should."""
    assert apet.mask is not None
    num_entries = apet.mask.positions[name].size
    free = math.prod(apet.mask.shapes[name]) - num_entries
    return min(round(part * num_entries), free)
