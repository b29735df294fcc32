"""What autograd keeps from forward to backward, counted layer by layer.

Per token and layer, with hidden size d, width f of the feed-forward layer, i columns of all heads,
and e bytes a number:

- T5's norm: its input (d e), in 16 bits a copy of it in fp32 (4 d), and a scale (4); where its
  weight trains, what that is multiplied with (d e).
- Attention by ``scaled_dot_product_attention``: queries, keys, values and the mix (4 i e), and a
  sum a head (4). No scores: the fused kernels make them again (a CPU has none that gives a T5's
  position bias its gradient, and keeps more where that trains). But a T5 adds its position bias as
  a mask, (rows, heads, queries, keys) in every layer, and a BERT its padding, (rows, 1, queries,
  keys).
- A prefix: its slots beside the keys and values of every row, and as many columns of the mask. (A
  calibrated one mixes its slots once more by themselves, which is not counted.)
- A prompt: all of this for its positions too.
- Feed-forward: what the activation keeps (once its width; ``gelu_new`` of torch operations four
  times), and both factors of a gate.
- Dropout: a byte a number.
- BERT's norm: the sum that goes in (d e).
- A linear layer keeps its input where its own weight trains, and not for a bias. DeepSpeed's linear
  layers under ZeRO-3 keep it always (``memory_efficient_linear``, whose function saves input and
  weight).
- Logits: log-probabilities of every target in fp32 (4 numbers of the vocabulary).

Nothing is kept below the first tuned tensor. What a forward holds at the fullest moment of a
sub-layer, kept or not: what was embedded, the layer's input and the residual (3 d e), what the norm
gives (T5: d e), and

- attention: queries, keys, values, the mask, and the mix or (T5) the mask once more;
- feed-forward: the width before and after its activation (``gelu_new`` of torch operations four
  times), with a gate three times, with dropout behind it four times.

``tests/planning/test_activations.py`` holds these sums to what
``torch.autograd.graph.saved_tensors_hooks`` counts and to what torch's profiler sees allocated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scalepet.planning.shape import (
    Attention,
    FeedForward,
    Shape,
    Stack,
    Sublayer,
    Tensor,
)

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
        prompt: positions that the encoder reads beside the source.
        num_bytes: of a number: 2 in bf16.
        dropout_bytes: of a number that dropout may have zeroed: 1 on a GPU (``native_dropout``
            keeps booleans); on a CPU its mask is as large as a number.
    """

    rows: int
    source: int
    target: int
    num_bytes: int
    dropout_bytes: int = 1
    prompt: int = 0

    def length(self, stream: str) -> int:
        return self.source + self.prompt if stream == "source" else self.target

    def tokens(self, stream: str) -> int:
        return self.rows * self.length(stream)


@dataclass(frozen=True)
class Kept:
    """Bytes of one forward.

    Attributes:
        saved_bytes: from forward to backward, the output's included.
        again_bytes: more of them while one layer is run again (activation checkpointing).
        passing_bytes: logits in their dtype and in fp32, and their gradients, beside what is saved.
        layer_bytes: more than what is saved in the end, while one layer runs forward.
    """

    saved_bytes: int
    again_bytes: int
    passing_bytes: int
    layer_bytes: int


def count_activations(
    shape: Shape,
    batch: Batch,
    *,
    tuned: Mapping[str, int],
    outputs: frozenset[str] = frozenset(),
    slots: Mapping[str, int] | None = None,
    keeps_inputs: bool,
    is_checkpointed: bool,
) -> Kept:
    """What one micro-batch keeps.

    Args:
        tuned: names of the tensors that train, or that a trained path runs beside -> numbers a
            token that such a path keeps inside (the r of LoRA).
        outputs: names of those where only something behind the layer trains (a bias), so that its
            input is not kept.
        slots: names of key projections -> slots of the prefix of their attention.
        keeps_inputs: as DeepSpeed's linear layers do under ZeRO-3.
        is_checkpointed: one activation a layer is kept, and the layer run again in backward.
    """
    walk = Walk(shape, batch, tuned, outputs, slots or {}, keeps_inputs)
    again, saved = 0, walk.output_bytes()
    if is_checkpointed:
        again = walk.largest_block_bytes()
        saved += walk.checkpoints_bytes()
        # Beside what backward holds while it runs a layer again, which is no other moment's.
        fullest = saved + walk.largest_moment_bytes() - again
    else:
        in_stacks, fullest = walk.stacks_bytes()
        saved += in_stacks
    return Kept(saved, again, walk.passing_bytes(), max(0, fullest - saved))


@dataclass(frozen=True)
class Walk:
    """Through the layers in the order of forward."""

    shape: Shape
    batch: Batch
    tuned: Mapping[str, int]
    outputs: frozenset[str]
    slots: Mapping[str, int]
    keeps_inputs: bool

    def stacks_bytes(self) -> tuple[int, int]:
        """Of all blocks of all stacks what is kept, and what is held at the fullest moment."""
        total = fullest = 0
        memory = False
        for stack in self.shape.stacks:
            is_live = self._any_tuned(self.shape.before(stack))
            if is_live:
                is_read = any(self._trains(tensor) for tensor in self.shape.before(stack))
                total += self._start_bytes(stack, keeps_sum=is_read)
            is_live = is_live or (self.batch.prompt > 0 and stack.stream == "source")
            for sublayer in (sublayer for block in stack.blocks for sublayer in block.sublayers):
                found, is_live = self._sublayer(sublayer, is_live=is_live, memory=memory)
                fullest = max(fullest, total + self._moment_bytes(sublayer, kept=found))
                total += found
            found, is_live = self._end(stack, is_live=is_live)
            total += found
            if stack is self.shape.stacks[0]:
                total += self._memory_bytes(is_live=is_live)
            memory = is_live
        return total, fullest

    def checkpoints_bytes(self) -> int:
        """One input a block, and around the blocks what is kept anyway.

        Everything is live: an input that asks for no gradient would end a reentrant checkpoint.
        """
        total = self._shared_bytes()
        for stack in self.shape.stacks:
            total += len(stack.blocks) * self._residual_bytes(stack)
            total += self._start_bytes(stack, keeps_sum=True) + self._end(stack, is_live=True)[0]
        return total

    def largest_moment_bytes(self) -> int:
        """Of a forward that keeps nothing."""
        return max(
            self._moment_bytes(sublayer, kept=0)
            for stack in self.shape.stacks
            for block in stack.blocks
            for sublayer in block.sublayers
        )

    def largest_block_bytes(self) -> int:
        """Kept where a gradient flows into all of it."""
        return max(
            sum(self._sublayer(s, is_live=True, memory=True)[0] for s in block.sublayers)
            for stack in self.shape.stacks
            for block in stack.blocks
        )

    def _residual_bytes(self, stack: Stack) -> int:
        return self._numbers(self.batch.tokens(stack.stream) * self.shape.hidden)

    def _start_bytes(self, stack: Stack, *, keeps_sum: bool) -> int:
        """Norm (BERT) and dropout before the first block. A BERT's prompt comes behind them."""
        rows, length = self.batch.rows, self.batch.length(stack.stream)
        length -= 0 if self.shape.is_pre_norm or stack.stream == "target" else self.batch.prompt
        dropped = self._dropout(rows * length * self.shape.hidden)
        summed = 0 if self.shape.is_pre_norm else self._sum_before_norm(rows * length)
        return dropped + (summed if keeps_sum else 0)

    def _end(self, stack: Stack, *, is_live: bool) -> tuple[int, bool]:
        """Norm and dropout behind a stack."""
        if not stack.end:
            return 0, is_live
        tokens = self.batch.tokens(stack.stream)
        found, is_live = self._norm(stack.end, tokens, is_live=is_live)
        return found + (self._dropout(tokens * self.shape.hidden) if is_live else 0), is_live

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

    def _sublayer(self, layer: Sublayer, *, is_live: bool, memory: bool) -> tuple[int, bool]:
        """What a sub-layer keeps, and whether a gradient flows through what it gives.

        Args:
            is_live: a gradient flows into what comes in.
            memory: the same of what the encoder gives.
        """
        if isinstance(layer, Attention):
            found, is_live = self._attention(layer, is_live=is_live, memory=memory)
        else:
            found, is_live = self._feed_forward(layer, is_live=is_live)
        return found + self._beside_bytes(layer.tensors), is_live

    def _attention(self, layer: Attention, *, is_live: bool, memory: bool) -> tuple[int, bool]:
        queries, keys = self.batch.tokens(layer.queries), self._num_keys(layer) * self.batch.rows
        is_cross = layer.queries != layer.keys
        into = [t for t in layer.tensors if t.part in ("q", "k", "v")]
        beside = [t for t in into if t.part == "q" or not is_cross]
        out = [t for t in layer.tensors if t.part == "o"]
        biases = [t for t in layer.tensors if t.kind == "embedding"]
        total, is_live = self._before(layer, queries, is_live=is_live)
        is_mixed = is_live or self._any_tuned([*into, *biases]) or (is_cross and memory)
        if self._keeps(beside, is_live=is_live):
            total += self._numbers(queries * self.shape.hidden)
        if is_mixed:
            total += self._numbers(2 * (queries + keys) * layer.inner)
            total += FP32_BYTES * queries * layer.num_heads + self._mask_bytes(layer)
        elif self._keeps(out, is_live=False):
            total += self._numbers(queries * layer.inner)
        found, is_live = self._behind(layer, queries, is_live=is_mixed or self._any_tuned(out))
        return total + found, is_live

    def _feed_forward(self, layer: FeedForward, *, is_live: bool) -> tuple[int, bool]:
        tokens = self.batch.tokens(layer.stream)
        into = [t for t in layer.tensors if t.part == "ffn_in"]
        out = [t for t in layer.tensors if t.part == "ffn_out"]
        inner = tokens * layer.width
        total, is_live = self._before(layer, tokens, is_live=is_live)
        if self._keeps(into, is_live=is_live):
            total += self._numbers(tokens * self.shape.hidden)
        is_mixed = is_live or self._any_tuned(into)
        drops = self._drops_inside
        if is_mixed:
            total += self._numbers(inner * _kept_inside(layer))
            total += self._dropout(inner) if drops else 0
        is_relu = layer.activation == "relu" and not layer.is_gated
        if self._keeps(out, is_live=is_mixed) and (drops or not is_relu or not is_mixed):
            total += self._numbers(inner)  # else it is what relu keeps
        found, is_live = self._behind(layer, tokens, is_live=is_mixed or self._any_tuned(out))
        return total + found, is_live

    def _moment_bytes(self, layer: Sublayer, *, kept: int) -> int:
        """Held at the fullest moment of a sub-layer's forward, of which some is ``kept``."""
        return self._around_bytes(layer) + max(kept, self._inside_bytes(layer))

    def _around_bytes(self, layer: Sublayer) -> int:
        """What was embedded, the layer's input, the residual and what the norm gives; beside a
        decoder what the encoder gave.
        """
        stream = layer.queries if isinstance(layer, Attention) else layer.stream
        around = self.batch.tokens(stream) * (4 if self.shape.is_pre_norm else 3)
        around += self.batch.tokens("source") if stream == "target" else 0
        return self._numbers(around * self.shape.hidden)

    def _inside_bytes(self, layer: Sublayer) -> int:
        if isinstance(layer, FeedForward):
            inner = self.batch.tokens(layer.stream) * layer.width
            dropped = self._dropout(inner) if self._drops_inside else 0
            return self._numbers(inner * self._held_inside(layer)) + dropped
        queries, keys = self.batch.tokens(layer.queries), self._num_keys(layer) * self.batch.rows
        mask, mixed = self._mask_bytes(layer), self._numbers(queries * layer.inner)
        # The sum of mask and bias is put in order, as a copy, before there is a mix.
        mixed = max(mixed, mask) if layer.is_biased else mixed
        return self._numbers((queries + 2 * keys) * layer.inner) + mask + mixed

    def _held_inside(self, layer: FeedForward) -> int:
        """How often the width is there at once between the ways in and out."""
        held = 2 + layer.is_gated * (1 + self._drops_inside)
        return max(held, _kept_by_activation(layer))  # all that torch operations keep is there

    @property
    def _drops_inside(self) -> bool:
        """T5 drops what its activation gives."""
        return self.shape.is_pre_norm and self.shape.dropout > 0

    def _beside_bytes(self, tensors: Iterable[Tensor]) -> int:
        return sum(
            self._numbers(self.batch.tokens(tensor.stream) * self.tuned.get(tensor.name, 0))
            for tensor in tensors
            if tensor.stream
        )

    def _before(self, layer: Sublayer, tokens: int, *, is_live: bool) -> tuple[int, bool]:
        """The norm before a sub-layer, where it stands there."""
        if not self.shape.is_pre_norm:
            return 0, is_live
        return self._norm(_norms_of(layer), tokens, is_live=is_live)

    def _behind(self, layer: Sublayer, tokens: int, *, is_live: bool) -> tuple[int, bool]:
        """Dropout, and the norm of the sum where it stands there."""
        norms = [] if self.shape.is_pre_norm else _norms_of(layer)
        total = self._dropout(tokens * self.shape.hidden) if is_live else 0
        if norms and (is_live or any(self._trains(norm) for norm in norms)):
            total += self._sum_before_norm(tokens)
        return total, is_live or self._any_tuned(norms)

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
        """A decoder's own attention has no padding, so that its rows share one mask; with a prefix
        every row has its own.
        """
        is_shared = layer.queries == layer.keys == "target" and not self._num_slots(layer)
        return 1 if is_shared else self.batch.rows

    def _num_pairs(self, layer: Attention) -> int:
        return self.batch.length(layer.queries) * self._num_keys(layer)

    def _num_keys(self, layer: Attention) -> int:
        """Of a row."""
        return self.batch.length(layer.keys) + self._num_slots(layer)

    def _num_slots(self, layer: Attention) -> int:
        return sum(self.slots.get(tensor.name, 0) for tensor in layer.tensors)

    def _keeps(self, tensors: Iterable[Tensor], *, is_live: bool) -> bool:
        """Whether the input of these layers is kept."""
        return (self.keeps_inputs and is_live) or any(self._trains(t) for t in tensors)

    def _trains(self, tensor: Tensor) -> bool:
        """The tensor itself, or something beside it that reads the same input."""
        return tensor.name in self.tuned and tensor.name not in self.outputs

    def _any_tuned(self, tensors: Iterable[Tensor]) -> bool:
        """Whether anything of these layers is, their biases included."""
        return any(
            name in self.tuned for tensor in tensors for name in (tensor.name, _bias_of(tensor))
        )

    def _norm(self, norms: Iterable[Tensor], tokens: int, *, is_live: bool) -> tuple[int, bool]:
        """T5's: what it keeps, and whether a gradient flows through what it gives."""
        (weight,) = norms
        size = self._numbers(tokens * self.shape.hidden)
        copied = FP32_BYTES * self.shape.hidden if self.batch.num_bytes < FP32_BYTES else 0
        total = size + tokens * (copied + FP32_BYTES) if is_live else 0
        total += size if self._trains(weight) else 0
        return total, is_live or self._any_tuned([weight])

    def _sum_before_norm(self, tokens: int) -> int:
        return self._numbers(tokens * (self.shape.hidden + 2))

    def _dropout(self, count: int) -> int:
        return self.batch.dropout_bytes * count if self.shape.dropout > 0 else 0

    def _numbers(self, count: int) -> int:
        return count * self.batch.num_bytes


def _norms_of(layer: Sublayer) -> list[Tensor]:
    """Weights and biases of the norms of a sub-layer."""
    biases = [_bias_of(tensor) for tensor in layer.tensors if tensor.kind == "norm"]
    return [t for t in layer.tensors if t.kind == "norm" or t.name in biases]


def _bias_of(tensor: Tensor) -> str:
    return f"{tensor.name.removesuffix('weight')}bias"


def _kept_by_activation(layer: FeedForward) -> int:
    """How often the width is kept, a gate apart."""
    return _KEPT_BY_ACTIVATION.get(layer.activation, _KEPT_BY_OTHERS)


def _kept_inside(layer: FeedForward) -> int:
    """How often the width is kept between the ways in and out."""
    kept = _kept_by_activation(layer)
    if not layer.is_gated:
        return kept
    return kept + (1 if layer.activation == "relu" else 2)
