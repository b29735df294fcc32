"""Which weights are trained: a set of positions in named tensors, and how it came to be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from scalepet.errors import ConfigError
from scalepet.masks.digest import digest_parts

Indices: TypeAlias = npt.NDArray[np.signedinteger[Any]]
Share: TypeAlias = Literal["uniform", "even", "proportional"]


@dataclass(frozen=True)
class MaskRule:
    """How a random mask is chosen; with shapes (and groups, tiles) it gives the mask again.

    Attributes:
        budget: what was asked for, "4096" or "0.1%".
        count: the entries that this came to.
        share: how they are spread over the eligible tensors.
        seed: the mask seed, apart from every other seed of a run.
        unit: what is chosen as one, in the words of the caller: "element", "row"; the caller makes
            the tiles of each tensor out of it.
    """

    budget: str
    count: int
    share: Share
    seed: int
    unit: str = "element"


@dataclass(frozen=True)
class Overlap:
    """What two masks have in common.

    Attributes:
        num_both: entries in both masks.
        num_first: entries in the first.
        num_second: entries in the second.
        num_expected: mean of num_both if each mask kept its number of entries in each tensor but
            drew them uniformly and independently of the other: the sum over tensors of
            entries of the first * entries of the second / size.
    """

    num_both: int
    num_first: int
    num_second: int
    num_expected: float

    @property
    def share_of_first(self) -> float:
        """num_both as a part of the first mask, 0 to 1."""
        return self.num_both / self.num_first

    @property
    def share_of_second(self) -> float:
        """num_both as a part of the second mask, 0 to 1."""
        return self.num_both / self.num_second

    @property
    def expected_share_of_first(self) -> float:
        """share_of_first that two independent masks would have on average."""
        return self.num_expected / self.num_first

    @property
    def expected_share_of_second(self) -> float:
        """share_of_second that two independent masks would have on average."""
        return self.num_expected / self.num_second


@dataclass(frozen=True, eq=False)
class SparseMask:
    """At least one entry of at least one tensor; compare two masks by ``checksum``.

    Attributes:
        positions: tensor name to sorted flat row-major indices, int32 where they fit, else int64;
            tensors without an entry are left out.
        shapes: full shape of each tensor in positions.
        rule: how the mask was chosen, None where no rule can give it again.
        num_eligible: entries from which it was chosen, None where nobody knows.
    """

    positions: dict[str, Indices]
    shapes: dict[str, tuple[int, ...]]
    rule: MaskRule | None = None
    num_eligible: int | None = None

    def __post_init__(self) -> None:
        """Asserts that the parts fit each other."""
        faults = find_mask_faults(self.positions, self.shapes)
        assert not faults, faults
        for name, indices in self.positions.items():
            expected = index_dtype(math.prod(self.shapes[name]))
            assert indices.dtype == expected, (name, indices.dtype, expected)
        assert self.rule is None or self.rule.count == self.count, (self.rule, self.count)
        assert self.num_eligible is None or self.num_eligible >= self.count, self.num_eligible

    @property
    def count(self) -> int:
        """The number of entries."""
        return sum(indices.size for indices in self.positions.values())

    @cached_property
    def checksum(self) -> str:
        """32 hex digits over names, shapes and positions, whatever the dict order and int width."""
        return digest_parts(self._parts()).hex()

    def _parts(self) -> Iterator[str | bytes]:
        for name in sorted(self.positions):
            yield name
            yield "x".join(map(str, self.shapes[name]))
            yield self.positions[name].astype("<i8").tobytes()

    def overlap(self, other: SparseMask) -> Overlap:
        """What this mask (the first) shares with another (the second).

        Raises:
            ConfigError: a tensor has another shape in the other mask.
        """
        common = sorted(self.positions.keys() & other.positions.keys())
        faults = [
            f"mask overlap: {name!r} has shape {self.shapes[name]} in one mask and "
            f"{other.shapes[name]} in the other; allowed: masks of one backbone"
            for name in common
            if self.shapes[name] != other.shapes[name]
        ]
        if faults:
            raise ConfigError(faults)
        return Overlap(
            num_both=sum(_count_common(self.positions[n], other.positions[n]) for n in common),
            num_first=self.count,
            num_second=other.count,
            num_expected=sum(
                self.positions[n].size * other.positions[n].size / math.prod(self.shapes[n])
                for n in common
            ),
        )


def index_dtype(num_positions: int) -> np.dtype[np.signedinteger[Any]]:
    """int32 where every index below num_positions fits, else int64."""
    return np.dtype(np.int32) if num_positions <= 2**31 else np.dtype(np.int64)


def find_mask_faults(
    positions: Mapping[str, Indices], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Every reason why these positions are no mask of these tensors; empty when they are one.

    Positions must be whole numbers, sorted, distinct and in range; both mappings must name the same
    tensors.
    """
    faults = [] if positions else ["no tensor has an entry"]
    for name in sorted(positions.keys() ^ shapes.keys()):
        faults.append(f"{name!r} has {'no shape' if name in positions else 'no positions'}")
    for name in sorted(positions.keys() & shapes.keys()):
        fault = _find_tensor_fault(positions[name], math.prod(shapes[name]))
        faults += [f"{name!r} of shape {shapes[name]}: {fault}"] if fault else []
    return faults


def _find_tensor_fault(indices: Indices, num_positions: int) -> str | None:
    if indices.ndim != 1 or indices.dtype.kind != "i":
        return f"positions are {indices.dtype} of shape {indices.shape}, not a row of integers"
    if not indices.size:
        return "no entry; such a tensor is left out"
    if not (indices[1:] > indices[:-1]).all():
        return "positions are not strictly rising"
    if indices[0] < 0 or indices[-1] >= num_positions:
        return f"positions {indices[0]} to {indices[-1]} leave the range 0 to {num_positions - 1}"
    return None


def _count_common(first: Indices, second: Indices) -> int:
    return int(np.intersect1d(first, second, assume_unique=True).size)
