"""Backbones as numbers: stacks of blocks, and every tensor by name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Stream = Literal["source", "target"]
Kind = Literal["matrix", "embedding", "norm", "bias"]
Part = Literal["q", "k", "v", "o", "ffn_in", "ffn_out"]


@dataclass(frozen=True)
class Tensor:
    """One tensor of a backbone: name, full shape and what it is, in the words of ``Site``.

    Attributes:
        stream: whose tokens a matrix multiplies; None for all that is no matrix of a block.
        is_of_task: no site: a head, or what a checkpoint may lack.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    part: Part | None = None
    is_cross: bool = False
    stream: Stream | None = None
    is_of_task: bool = False

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def layer(self) -> str:
        """All up to the first number of the name; without one the module that holds the tensor."""
        parts = self.name.split(".")
        for depth, part in enumerate(parts):
            if part.isdigit():
                return ".".join(parts[: depth + 1])
        return ".".join(parts[:-1])

    @property
    def role(self) -> str:
        """The name without its numbers."""
        return ".".join(part for part in self.name.split(".") if not part.isdigit())


@dataclass(frozen=True)
class Attention:
    """Projections of the stream ``queries`` and of the stream ``keys``, and their mix.

    Attributes:
        inner: columns of all heads together.
        is_biased: the mask holds a number a head, as a T5's position bias makes it.
    """

    tensors: tuple[Tensor, ...]
    queries: Stream
    keys: Stream
    num_heads: int
    inner: int
    is_biased: bool


@dataclass(frozen=True)
class FeedForward:
    """One way in (two where it is gated), an activation, one way out.

    Attributes:
        width: columns between the two.
    """

    tensors: tuple[Tensor, ...]
    stream: Stream
    width: int
    activation: str
    is_gated: bool


Sublayer = Attention | FeedForward


@dataclass(frozen=True)
class Block:
    """One layer of a stack: what activation checkpointing runs again as one."""

    sublayers: tuple[Sublayer, ...]

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(tensor for sublayer in self.sublayers for tensor in sublayer.tensors)


@dataclass(frozen=True)
class Stack:
    """Blocks that one stream runs through.

    Attributes:
        end: the tensors behind the last block.
        start: those before the first one, such as a look-up table of its own.
    """

    stream: Stream
    blocks: tuple[Block, ...]
    end: tuple[Tensor, ...]
    start: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Shape:
    """A backbone.

    Attributes:
        family: ``t5`` or ``bert``.
        hidden: columns of the residual stream.
        head_width: columns of one attention head.
        start: tensors before all stacks: look-up tables and their norm.
        end: tensors behind the stacks.
        head: those that belong to the task and always train.
        output: the product that makes logits; in a tied T5 it is the look-up table.
        num_outputs: columns of the logits.
        dropout: rate.
        is_pre_norm: norms stand before the sub-layers (T5), or behind their sums (BERT).
    """

    family: str
    hidden: int
    head_width: int
    start: tuple[Tensor, ...]
    stacks: tuple[Stack, ...]
    end: tuple[Tensor, ...]
    head: tuple[Tensor, ...]
    output: Tensor
    num_outputs: int
    dropout: float
    is_pre_norm: bool

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them in the model's order, tied ones once."""
        return (*self.start, *self._stacked(), *self.end)

    def before(self, stack: Stack) -> tuple[Tensor, ...]:
        """What a stack reads its inputs from: its own table, or the one of all."""
        return stack.start or self.start

    def _stacked(self) -> Iterator[Tensor]:
        for stack in self.stacks:
            yield from stack.start
            for block in stack.blocks:
                yield from block.tensors
            yield from stack.end

    @property
    def numel(self) -> int:
        return sum(tensor.numel for tensor in self.tensors)
