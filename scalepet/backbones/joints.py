"""Joints: the places of a transformers model where something new is let in.

A joint knows how a family of models is built and nothing of what comes in: a method of ``pet``
brings the numbers. Everything is done by ``override``, so ``bare`` undoes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalepet.backbones.overrides import override

Prompt = Callable[[int], Tensor]
"""``rows -> (rows, length, width)``: embedded positions to be read with the input."""

Branch = Callable[[Tensor], Tensor]
"""(..., width) input of a sub-layer -> what is added to its output, of the same shape."""

PREFIX_ATTENTION = "scalepet_prefix"


def read_prompt_t5(model: Any, prompt: Prompt, length: int) -> None:
    """The encoder reads the prompt in front of its embedded tokens; the decoder may look at it."""
    encoder = model.get_encoder()

    def encode(inner: Any, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        embedded = kwargs.pop("inputs_embeds", None)
        if embedded is None:
            embedded = encoder.embed_tokens(input_ids)
        mask = lengthened(attention_mask, length)
        longer = torch.cat([prompt(len(embedded)), embedded], dim=1)
        return inner(inputs_embeds=longer, attention_mask=mask, **kwargs)

    def decode(inner: Any, *args: Any, **kwargs: Any) -> Any:
        mask = lengthened(kwargs.pop("encoder_attention_mask", None), length)
        return inner(*args, encoder_attention_mask=mask, **kwargs)

    override(encoder, encode)
    override(model.get_decoder(), decode)


def read_prompt_bert(model: Any, prompt: Prompt, length: int) -> None:
    """The encoder reads the prompt behind the class token, which is still the one that is pooled.

    It comes after positions and norm, so the tokens keep their positions.
    """

    def read(inner: Any, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        return inner(input_ids, attention_mask=lengthened(attention_mask, length), **kwargs)

    override(model.bert, read)
    _insert_behind_first(model.bert.embeddings, prompt)


def read_prompt_vit(model: Any, prompt: Prompt, length: int) -> None:
    """The encoder reads the prompt between class token and patches (VPT, arXiv 2203.12119)."""
    _insert_behind_first(model.vit.embeddings, prompt)


def _insert_behind_first(embeddings: nn.Module, prompt: Prompt) -> None:
    def embed(inner: Any, *args: Any, **kwargs: Any) -> Tensor:
        embedded = inner(*args, **kwargs)
        rows = prompt(len(embedded))
        return torch.cat([embedded[:, :1], rows, embedded[:, 1:]], dim=1)

    override(embeddings, embed)


def lengthened(mask: Tensor | None, length: int) -> Tensor | None:
    """(rows, tokens) attention mask -> (rows, length + tokens), the new positions seen by all."""
    return None if mask is None else F.pad(mask, (length, 0), value=1)


def beside_module(sublayer: nn.Module, branch: Branch) -> None:
    """Where the sub-layer is one module that gets the input and gives the output (T5, ViT)."""

    def forward(inner: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = inner(hidden, *args, **kwargs)
        if isinstance(output, tuple):  # an attention gives its weights, too
            return output[0] + branch(hidden), *output[1:]
        return output + branch(hidden)

    override(sublayer, forward)


def beside_residual(sublayer: nn.Module, branch: Branch) -> None:
    """Where a module projects, adds the sub-layer's input and normalises (BERT).

    Its output is norm(projection(hidden) + input): what the branch adds goes in with the input.
    """

    def forward(inner: Any, hidden: Tensor, residual: Tensor) -> Any:
        return inner(hidden, residual + branch(residual))

    override(sublayer, forward)


def attend_prefix(
    model: Any,
    attention: nn.Module,
    prefix: Callable[[int], Any],
    *,
    compensated: bool = False,
) -> None:
    """Let an attention module look at more keys and values, in front of its own.

    They have no position: a position bias (T5) is zero for them. They stand outside of the cache of
    generation, which holds what depends on the tokens.

    Args:
        model: whose attention functions become ours; modules without a prefix compute as before.
        prefix: ``rows -> (keys, values)``, each (rows, heads, slots, head width).
        compensated: the weights of the slots, which sum to some m, are divided by it; those of the
            tokens stay (LAE, arXiv 2303.10070): (1 - m) Attn(tokens) + Attn(prefix).
    """
    _register_attention()
    model.set_attn_implementation(PREFIX_ATTENTION)

    def forward(inner: Any, *args: Any, **kwargs: Any) -> Any:
        vars(attention)["attended_prefix"] = (prefix, compensated)
        try:
            return inner(*args, **kwargs)
        finally:
            del vars(attention)["attended_prefix"]

    override(attention, forward)


def _register_attention() -> None:
    """Tell transformers of our attention function; masks come as sums, as for eager attention."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(PREFIX_ATTENTION, _prefix_attention)
    AttentionMaskInterface.register(PREFIX_ATTENTION, eager_mask)


def _prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' own SDPA attention over the prefix and the tokens.

    A compensated prefix has values of zero in it, which leaves (1 - m) Attn(tokens): exact, with
    the one fused product over all tokens. Attn(prefix), over few slots, is added.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    prefix, compensated = vars(module).get("attended_prefix", (None, False))
    if prefix is not None:
        keys, values = prefix(len(query))
        slots = keys.shape[2]
        shown = torch.zeros_like(values) if compensated else values
        key, value = torch.cat([keys, key], dim=2), torch.cat([shown, value], dim=2)
        if attention_mask is not None:
            attention_mask = F.pad(attention_mask, (slots, 0))
        if position_bias is not None:
            position_bias = F.pad(position_bias, (slots, 0))
    output: Tensor
    output, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, position_bias=position_bias, **kwargs
    )
    if compensated:
        alone = _attend_alone(
            query, keys, values, scaling=kwargs["scaling"], dropout=kwargs.get("dropout", 0.0)
        )
        output = output + alone.transpose(1, 2)
    return output, None


def _attend_alone(
    query: Tensor, keys: Tensor, values: Tensor, *, scaling: float, dropout: float
) -> Tensor:
    """Attention over the slots by themselves, (rows, heads, tokens, head width).

    What dropout leaves of their weights sums to one again, since LAE divides after the dropout.
    """
    weights = torch.softmax(query @ keys.mT * scaling, dim=-1, dtype=torch.float32)
    if dropout:
        weights = F.dropout(weights, dropout)
        weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-12)
    return weights.to(values.dtype) @ values
