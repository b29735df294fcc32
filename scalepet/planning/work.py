"""What one training step has to hold and to compute, before anybody says on which GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from scalepet.planning.activations import Batch, Kept, count_activations
from scalepet.planning.shape import Attention, Shape, Tensor


@dataclass(frozen=True)
class Work:
    """A backbone, what is tuned on it, and a batch.

    Attributes:
        frozen: numbers of every frozen tensor.
        trained: numbers of every trained tensor, the head's and those trained in place included.
        tuned, outputs, slots: see ``count_activations``.
        whole_gradients: names of weights whose whole gradient is formed in backward.
        index_bytes: of the positions of masks; whole on every GPU.
        temporary_bytes: of value gradients while they are formed.
        num_tuned: numbers that the method trains, without the head.
        num_offline: offline copies of them that LAE keeps.
        batch_size: rows of an optimizer step over all GPUs.
        rows: of a micro-batch, at most.
        source, target, prompt: see ``Batch``.
    """

    shape: Shape
    frozen: tuple[int, ...]
    trained: tuple[int, ...]
    tuned: Mapping[str, int]
    whole_gradients: frozenset[str] = frozenset()
    index_bytes: int = 0
    temporary_bytes: int = 0
    num_tuned: int = 0
    num_offline: int = 0
    batch_size: int = field(kw_only=True)
    rows: int = field(kw_only=True)
    outputs: frozenset[str] = field(default=frozenset(), kw_only=True)
    slots: Mapping[str, int] = field(default_factory=dict, kw_only=True)
    prompt: int = field(default=0, kw_only=True)
    source: int = field(kw_only=True)
    target: int = field(kw_only=True)
    num_bytes: int = field(kw_only=True)

    @property
    def num_frozen(self) -> int:
        return sum(self.frozen)

    @property
    def num_trained(self) -> int:
        return sum(self.trained)

    def batch(self, rows: int) -> Batch:
        return Batch(rows, self.source, self.target, self.num_bytes, prompt=self.prompt)

    def tokens(self, rows: int) -> int:
        """Of all streams."""
        batch = self.batch(rows)
        return batch.tokens("source") + batch.tokens("target")

    def kept(self, rows: int, *, keeps_inputs: bool, is_checkpointed: bool) -> Kept:
        return count_activations(
            self.shape,
            self.batch(rows),
            tuned=self.tuned,
            outputs=self.outputs,
            slots=self.slots,
            keeps_inputs=keeps_inputs,
            is_checkpointed=is_checkpointed,
        )

    @cached_property
    def live(self) -> frozenset[str]:
        """Names of the tensors that backward passes: a gradient flows into their layer's input, or
        they are tuned themselves.

        A decoder is live from its first cross-attention where the encoder is.
        """
        found: list[str] = []
        memory = False
        for stack in self.shape.stacks:
            is_live = any(tensor.name in self.tuned for tensor in self.shape.before(stack))
            is_live = is_live or (self.prompt > 0 and stack.stream == "source")
            for block in stack.blocks:
                for layer in block.sublayers:
                    is_live = is_live or any(t.name in self.tuned for t in layer.tensors)
                    crosses = isinstance(layer, Attention) and layer.queries != layer.keys
                    is_live = is_live or (crosses and memory)
                    found += [tensor.name for tensor in layer.tensors if is_live]
            found += [tensor.name for tensor in stack.end if is_live]
            memory = is_live
        found += [tensor.name for tensor in (*self.shape.end, self.shape.output)]
        return frozenset(found)

    def operations(self, rows: int, *, is_checkpointed: bool) -> float:
        """Floating-point operations of one micro-batch on one GPU.

        With N numbers and W tokens, 2NW for a product forward, 2NW for the gradient of its input
        where it is live, 2NW for a whole gradient of the weight, 2NW to run it again. Attention: 4
        (queries x keys x columns) forward, twice as much backward.
        """
        batch = self.batch(rows)
        runs_again = 1 if is_checkpointed else 0
        total = 0.0
        for stack in self.shape.stacks:
            for block in stack.blocks:
                for tensor in block.tensors:
                    if tensor.stream:
                        product = 2.0 * tensor.numel * batch.tokens(tensor.stream)
                        total += product * (self._num_products(tensor) + runs_again)
                for layer in block.sublayers:
                    if isinstance(layer, Attention):
                        pairs = batch.tokens(layer.queries) * batch.length(layer.keys)
                        total += 4.0 * pairs * layer.inner * (3 + runs_again)
        count = batch.tokens("target") if self.shape.family == "t5" else rows
        return total + 4.0 * self.shape.output.numel * count

    def _num_products(self, tensor: Tensor) -> int:
        return 1 + (tensor.name in self.live) + (tensor.name in self.whole_gradients)

    def with_rows(self, rows: int) -> Work:
        return replace(self, rows=rows)
