"""What autograd keeps from forward to backward, counted layer by layer.

Per token and layer, with hidden size d, width f of the feed-forward layer, i columns of all heads,
and e bytes a number:

- T5's norm: its input (d e), in 16 bits a copy of it in fp32 (4 d), and a scale (4).
- Attention by ``scaled_dot_product_attention``: queries, keys, values and the mix (4 i e), and a
  sum a head (4). No scores: the fused kernels make them again. But a T5 adds its position bias as a
  mask, (rows, heads, queries, keys) in every layer, and a BERT its padding, (rows, 1, queries,
  keys).
- Feed-forward: what the activation keeps (once its width; ``gelu_new`` of torch operations four
  times), and both factors of a gate.
- Dropout: a byte a number.
- BERT's norm: the sum that goes in (d e).
- A linear layer keeps its input where its own weight trains. DeepSpeed's linear layers under ZeRO-3
  keep it always (``memory_efficient_linear``, whose function saves input and weight).
- Logits: log-probabilities of every target in fp32 (4 numbers of the vocabulary).

Nothing is kept below the first tuned tensor. ``tests/planning/test_activations.py`` holds these
sums to what ``torch.autograd.graph.saved_tensors_hooks`` counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scalepet.planning.shape import Attention, Block, FeedForward, Shape, Stack, Tensor

FP32_BYTES = 4
INDEX_BYTES = 8
"""Of labels."""

_KEPT_BY_ACTIVATION = {"relu": 1, "gelu": 1, "silu": 1, "gelu_new": 4}
_KEPT_BY_OTHERS = 4


@dataclass(frozen=True)
class Batch:
    """One forward of one GPU.

    Attributes:
        rows: of the micro-batch.
        source, target: tokens a row; a BERT has no target.
        num_bytes: of a number: 2 in bf16.
        dropout_bytes: of a number that dropout may have zeroed: 1 on a GPU (``native_dropout``
            keeps booleans); on a CPU its mask is as large as a number.
    """

    rows: int
    source: int
    target: int
    num_bytes: int
    dropout_bytes: int = 1

    def length(self, stream: str) -> int:
        return self.source if stream == "source" else self.target

    def tokens(self, stream: str) -> int:
        return self.rows * self.length(stream)


@dataclass(frozen=True)
class Kept:
    """Bytes of one forward.

    Attributes:
        saved_bytes: from forward to backward, the output's included.
        again_bytes: more of them while one layer is run again (activation checkpointing).
        passing_bytes: logits in their dtype and in fp32, and their gradients, beside what is saved.
    """

    saved_bytes: int
    again_bytes: int
    passing_bytes: int


def count_activations(
    shape: Shape,
    batch: Batch,
    *,
    tuned: Mapping[str, int],
    keeps_inputs: bool,
    is_checkpointed: bool,
) -> Kept:
    """What one micro-batch keeps.

    Args:
        tuned: names of the tensors that train, or that a trained path runs beside -> numbers a
            token that such a path keeps inside (the r of LoRA).
        keeps_inputs: as DeepSpeed's linear layers do under ZeRO-3.
        is_checkpointed: one activation a layer is kept, and the layer run again in backward.
    """
    walk = Walk(shape, batch, tuned, keeps_inputs)
    again, saved = 0, walk.output_bytes()
    if is_checkpointed:
        again = walk.largest_block_bytes()
        saved += walk.checkpoints_bytes()
    else:
        saved += walk.stacks_bytes()
    return Kept(saved, again, walk.passing_bytes())


@dataclass(frozen=True)
class Walk:
    """Through the layers in the order of forward."""

    shape: Shape
    batch: Batch
    tuned: Mapping[str, int]
    keeps_inputs: bool

    def stacks_bytes(self) -> int:
        """All blocks of all stacks."""
        total, memory = 0, False
        is_live = self._any_tuned(self.shape.start)
        for stack in self.shape.stacks:
            live = is_live
            total += self._start_bytes(stack) if live else 0
            for block in stack.blocks:
                found, live = self.block_bytes(block, is_live=live, memory=memory)
                total += found
            total += self._end_bytes(stack) if live else 0
            memory = live
        return total + self._memory_bytes(is_live=memory)

    def block_bytes(self, block: Block, *, is_live: bool, memory: bool) -> tuple[int, bool]:
        """What a block keeps, and whether a gradient flows through what it gives.

        Args:
            is_live: a gradient flows into what comes in.
            memory: the same of what the encoder gives.
        """
        total = 0
        for sublayer in block.sublayers:
            is_live = is_live or self._any_tuned(t for t in sublayer.tensors if t.part is None)
            if isinstance(sublayer, Attention):
                found, is_live = self._attention(sublayer, is_live=is_live, memory=memory)
            else:
                found, is_live = self._feed_forward(sublayer, is_live=is_live)
            total += found + self._beside_bytes(sublayer.tensors)
        return total, is_live

    def checkpoints_bytes(self) -> int:
        """One input a block, and around the blocks what is kept anyway.

        Everything is live: an input that asks for no gradient would end a reentrant checkpoint.
        """
        total = self._shared_bytes()
        for stack in self.shape.stacks:
            total += len(stack.blocks) * self._residual_bytes(stack)
            total += self._start_bytes(stack) + self._end_bytes(stack)
        return total

    def largest_block_bytes(self) -> int:
        blocks = [block for stack in self.shape.stacks for block in stack.blocks]
        return max(self.block_bytes(block, is_live=True, memory=True)[0] for block in blocks)

    def _residual_bytes(self, stack: Stack) -> int:
        return self._numbers(self.batch.tokens(stack.stream) * self.shape.hidden)

    def _start_bytes(self, stack: Stack) -> int:
        """Norm (BERT) and dropout before the first block."""
        return self._after(self.batch.tokens(stack.stream))

    def _end_bytes(self, stack: Stack) -> int:
        """Norm and dropout behind a stack."""
        if not stack.end:
            return 0
        tokens = self.batch.tokens(stack.stream)
        return self._norm(tokens) + self._dropout(tokens * self.shape.hidden)

    def _shared_bytes(self) -> int:
        """What the checkpoints of all layers share: masks, biases, the encoder's output."""
        total = 0
        for index, stack in enumerate(self.shape.stacks):
            for layer in stack.blocks[0].sublayers:
                if isinstance(layer, Attention):
                    biases = layer.num_heads if layer.is_biased else 0
                    total += self._numbers(biases * self._num_pairs(layer))
                    total += self._num_masks(layer) * self._num_pairs(layer)  # a byte each
            total += self._residual_bytes(self.shape.stacks[0]) if index else 0
        return total

    def output_bytes(self) -> int:
        """From the last layer to the loss."""
        hidden, outputs = self.shape.hidden, self.shape.num_outputs
        if self.shape.family == "t5":
            tokens = self.batch.tokens("target")
            is_kept = self.shape.output.name in self.tuned or self.keeps_inputs
            kept = self._numbers(tokens * hidden) if is_kept else 0
            return kept + tokens * (FP32_BYTES * outputs + INDEX_BYTES)
        pooled = self._numbers(2 * self.batch.rows * hidden)
        # The pooler reads one token of each row, a view that keeps all of them.
        pooled += self._residual_bytes(self.shape.stacks[0]) if self.keeps_inputs else 0
        return pooled + self.batch.rows * (FP32_BYTES * outputs + INDEX_BYTES)

    def passing_bytes(self) -> int:
        """Logits and their gradient in the model's dtype, and the gradient once more in fp32."""
        count = self.batch.rows if self.shape.family == "bert" else self.batch.tokens("target")
        return count * self.shape.num_outputs * (2 * self.batch.num_bytes + FP32_BYTES)

    def _attention(self, layer: Attention, *, is_live: bool, memory: bool) -> tuple[int, bool]:
        queries, keys = self.batch.tokens(layer.queries), self.batch.tokens(layer.keys)
        is_cross = layer.queries != layer.keys
        into = [t for t in layer.tensors if t.part in ("q", "k", "v")]
        beside = [t for t in into if t.part == "q" or not is_cross]
        out = [t for t in layer.tensors if t.part == "o"]
        is_mixed = is_live or self._any_tuned(into) or (is_cross and memory)
        total = self._norm(queries) if is_live and self.shape.is_pre_norm else 0
        if self._keeps(beside, is_live=is_live):
            total += self._numbers(queries * self.shape.hidden)
        if is_mixed:
            total += self._numbers(2 * (queries + keys) * layer.inner)
            total += FP32_BYTES * queries * layer.num_heads + self._mask_bytes(layer)
        elif self._keeps(out, is_live=False):
            total += self._numbers(queries * layer.inner)
        is_live = is_mixed or self._any_tuned(out)
        return total + (self._after(queries) if is_live else 0), is_live

    def _feed_forward(self, layer: FeedForward, *, is_live: bool) -> tuple[int, bool]:
        tokens = self.batch.tokens(layer.stream)
        into = [t for t in layer.tensors if t.part == "ffn_in"]
        out = [t for t in layer.tensors if t.part == "ffn_out"]
        inner = tokens * layer.width
        total = self._norm(tokens) if is_live and self.shape.is_pre_norm else 0
        if self._keeps(into, is_live=is_live):
            total += self._numbers(tokens * self.shape.hidden)
        is_mixed = is_live or self._any_tuned(into)
        drops = self.shape.is_pre_norm and self.shape.dropout > 0
        if is_mixed:
            total += self._numbers(inner * _kept_inside(layer))
            total += self._dropout(inner) if drops else 0
        is_relu = layer.activation == "relu" and not layer.is_gated
        if self._keeps(out, is_live=is_mixed) and (drops or not is_relu or not is_mixed):
            total += self._numbers(inner)  # else it is what relu keeps
        is_live = is_mixed or self._any_tuned(out)
        return total + (self._after(tokens) if is_live else 0), is_live

    def _beside_bytes(self, tensors: Iterable[Tensor]) -> int:
        return sum(
            self._numbers(self.batch.tokens(tensor.stream) * self.tuned.get(tensor.name, 0))
            for tensor in tensors
            if tensor.stream
        )

    def _after(self, tokens: int) -> int:
        """Behind a sub-layer: dropout, and the norm of the sum where it stands there."""
        dropped = self._dropout(tokens * self.shape.hidden)
        return dropped + (0 if self.shape.is_pre_norm else self._sum_before_norm(tokens))

    def _memory_bytes(self, *, is_live: bool) -> int:
        """The encoder's output: one tensor is the input of keys and values in all layers."""
        if len(self.shape.stacks) == 1:
            return 0
        crossing = [
            tensor for tensor in self.shape.tensors if tensor.is_cross and tensor.part in ("k", "v")
        ]
        is_kept = self._keeps(crossing, is_live=is_live)
        return self._residual_bytes(self.shape.stacks[0]) if is_kept else 0

    def _mask_bytes(self, layer: Attention) -> int:
        heads = layer.num_heads if layer.is_biased else 1
        return self._numbers(self._num_masks(layer) * heads * self._num_pairs(layer))

    def _num_masks(self, layer: Attention) -> int:
        """A decoder's own attention has no padding, so that its rows share one mask."""
        return 1 if layer.queries == layer.keys == "target" else self.batch.rows

    def _num_pairs(self, layer: Attention) -> int:
        return self.batch.length(layer.queries) * self.batch.length(layer.keys)

    def _keeps(self, tensors: Iterable[Tensor], *, is_live: bool) -> bool:
        return (self.keeps_inputs and is_live) or self._any_tuned(tensors)

    def _any_tuned(self, tensors: Iterable[Tensor]) -> bool:
        return any(tensor.name in self.tuned for tensor in tensors)

    def _norm(self, tokens: int) -> int:
        copied = FP32_BYTES * self.shape.hidden if self.batch.num_bytes < FP32_BYTES else 0
        return self._numbers(tokens * self.shape.hidden) + tokens * (copied + FP32_BYTES)

    def _sum_before_norm(self, tokens: int) -> int:
        return self._numbers(tokens * (self.shape.hidden + 2))

    def _dropout(self, count: int) -> int:
        return self.batch.dropout_bytes * count if self.shape.dropout > 0 else 0

    def _numbers(self, count: int) -> int:
        return count * self.batch.num_bytes


def _kept_inside(layer: FeedForward) -> int:
    """How often the width is kept between the ways in and out."""
    kept = _KEPT_BY_ACTIVATION.get(layer.activation, _KEPT_BY_OTHERS)
    if not layer.is_gated:
        return kept
    return kept + (1 if layer.activation == "relu" else 2)
