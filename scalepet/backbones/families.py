"""What differs between the families of backbones: the class, the head, the loss, how labels are
scored, how text is written.

A family is a value of plain functions over a transformers model. They run unchanged on a bare model
and on one that DeepSpeed shards, because they only ever call modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy.typing as npt
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from scalepet.backbones.joints import (
    Branch,
    Prompt,
    beside_module,
    beside_residual,
    read_prompt_bert,
    read_prompt_t5,
    read_prompt_vit,
)
from scalepet.backbones.sites import Part

Form = Literal["head", "label_words", "choice", "text"]

IGNORED = -100
"""Label of positions that do not count, as everywhere in transformers."""


@dataclass(frozen=True)
class Family:
    """How one family of backbones is used.

    Attributes:
        forms: what an example can be (``head``, ``label_words``, ``text``), by kind of task.
        model_class: ``config -> the transformers class`` that builds it.
        head: patterns of the tensors that belong to the task, not to the backbone; they always
            train in full.
        may_lack: patterns of tensors that a checkpoint may lack; what is lacking starts at random
            and trains with the head.
        loss_sum: ``(model, tensors, config=...) -> Tensor ()``, the cross-entropy summed over all
            targets that count, in nats. ``model`` is only called: it may be DeepSpeed's engine,
            whose attributes are not those of the model.
        parts: patterns of the names of weights, by the part that they play in a block.
        head_width: ``config -> columns of one attention head``.
        read_prompt: ``(model, prompt, length)``, lets the backbone read that many positions more.
        beside: ``(sublayer, branch)``, adds what ``branch`` makes of a sub-layer's input to its
            output; ``sublayer`` is the module that owns the sub-layer's last projection.
        cross: patterns of the tensors of cross-attentions.
        needs: fields of the config that may not be null.
        fp16_risk: why fp16 is no good choice; None where it is as good as any.
    """

    forms: Mapping[str, Form]
    model_class: Callable[[Any], Any]
    head: tuple[str, ...]
    may_lack: tuple[str, ...]
    loss_sum: Callable[..., Tensor]
    parts: Mapping[Part, tuple[str, ...]]
    head_width: Callable[[Any], int]
    read_prompt: Callable[[Any, Prompt, int], None]
    beside: Callable[[nn.Module, Branch], None]
    cross: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    fp16_risk: str | None = None

    @property
    def reads_pictures(self) -> bool:
        """Whether it reads pixels, for which there is no tokenizer."""
        return "image_classification" in self.forms


T5_HEAD = "lm_head.weight"
T5_TABLES = (
    "shared.weight",
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    T5_HEAD,
)
"""The tensors that a T5 may store as one, in the order in which transformers looks for it."""


def own_head_t5() -> Any:
    """The class of a T5 whose output projection is a weight of its own: v1.1, flan, UL2."""
    return _t5_with((T5_HEAD,))


@cache
def _t5_with(own: tuple[str, ...]) -> Any:
    """The class of a T5 with these of ``T5_TABLES`` as weights of their own.

    transformers ties all of them in every T5, unless it finds other numbers in the checkpoint.
    Under ZeRO-3 it compares empty placeholders, finds them equal, and the model silently loses its
    head. So what is tied is said here, before anything is loaded.
    """
    # The modules of the models take seconds to import, and most commands need none of them.
    base: Any = transformers.T5ForConditionalGeneration
    tied = {name: of for name, of in base._tied_weights_keys.items() if name not in own}
    return type("OwnTablesT5", (base,), {"_tied_weights_keys": tied}) if own else base


def _t5_class(config: Any) -> Any:
    if getattr(config, "own_tables", None) is not None:
        return _t5_with(tuple(config.own_tables))
    has_own_head = getattr(config, "has_own_head", not config.scale_decoder_outputs)
    return _t5_with((T5_HEAD,) if has_own_head else ())


def _cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """fp32 sum over targets; a batch of ignored targets alone gives 0 and zero gradients."""
    flat = logits.float().flatten(0, -2)
    return F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="sum")


def _head_loss_sum(model: nn.Module, tensors: Mapping[str, Tensor], *, config: Any) -> Tensor:
    return _cross_entropy_sum(classify(model, tensors), tensors["labels"])


def _t5_loss_sum(model: nn.Module, tensors: Mapping[str, Tensor], *, config: Any) -> Tensor:
    labels = tensors["labels"]
    output = model(
        input_ids=tensors["input_ids"],
        attention_mask=tensors["attention_mask"],
        decoder_input_ids=_shift_right(labels, config),
        use_cache=False,
    )
    return _cross_entropy_sum(output.logits, labels)


def _shift_right(labels: Tensor, config: Any) -> Tensor:
    """(rows, length) labels -> decoder inputs: the start token, then all labels but the last.

    Ignored labels become padding.
    """
    start = labels.new_full((len(labels), 1), config.decoder_start_token_id)
    shifted = torch.cat([start, labels[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == IGNORED, config.pad_token_id)


def classify(model: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor:
    """Logits of a model with a classification head, (rows, classes); from token ids or pixels."""
    inputs = {name: tensor for name, tensor in tensors.items() if name != "labels"}
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(_dtype_of(model))
    logits: Tensor = model(**inputs).logits
    return logits


def class_scores(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    label_ids: Sequence[npt.ArrayLike] | None,
    *,
    config: Any,
) -> Tensor:
    """Log-probabilities of the classes, (rows, classes), fp32, in nats: of the head, or of label
    words as whole answers, which are not all that a model can answer and do not add up to one.

    Args:
        label_ids: tokens of each label word, end token included; None for a model with a head.
    """
    if label_ids is None:
        return classify(model, tensors).float().log_softmax(-1)
    return score_label_words(model, tensors, label_ids, config=config)


def score_label_words(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    label_ids: Sequence[npt.ArrayLike],
    *,
    config: Any,
) -> Tensor:
    """Log-probability of every label word as the whole answer, (rows, classes), in nats.

    One call of the model: the decoder reads all label words (each its tokens with the end token)
    one behind the other, and none of them sees another. A T5 knows positions by their distance
    alone, so a word has the numbers that it has by itself, while the encoder, and the keys and
    values that the decoder takes from it, are computed once for all words.

    The sum over tokens, with no length normalisation: a probability.

    Args:
        model: is only called, so that it may be DeepSpeed's engine.
    """
    mask = tensors["attention_mask"]
    words = [torch.as_tensor(ids, dtype=torch.int64, device=mask.device) for ids in label_ids]
    lengths = [len(word) for word in words]
    inputs = torch.cat([_shift_right(word[None], config)[0] for word in words])
    # Additive, as eager attention has it: it reaches every implementation beside the position bias.
    sees = torch.block_diag(*(torch.ones(n, n).tril() for n in lengths)).to(mask.device) > 0
    blocked = torch.zeros(sees.shape, dtype=_dtype_of(model), device=mask.device)
    blocked = blocked.masked_fill(~sees, torch.finfo(blocked.dtype).min)
    output = model(
        input_ids=tensors["input_ids"],
        attention_mask=mask,
        decoder_input_ids=inputs.expand(len(mask), -1),
        decoder_attention_mask=blocked.expand(len(mask), 1, -1, -1),
        use_cache=False,
    )
    logits = output.logits.float()
    targets = torch.cat(words).expand(len(mask), -1)[..., None]
    of_tokens = logits.gather(-1, targets).squeeze(-1) - logits.logsumexp(-1)
    return torch.stack([part.sum(1) for part in of_tokens.split(lengths, dim=1)], dim=1)


def _dtype_of(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def write_text(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    max_new_tokens: int,
    num_beams: int = 1,
    use_cache: bool = True,
    all_ranks_together: bool = False,
) -> Tensor:
    """Greedy (or beam) answers as token ids, (rows, length), padded on the right.

    Args:
        all_ranks_together: go on until the last rank is done. Needed where the backbone is sharded:
            a rank that stops early leaves the others waiting for its part of the next gather for
            ever.
    """
    typed: Any = model
    cache = {"past_key_values": _growing_cache()} if use_cache else {}
    ids: Tensor = typed.generate(
        input_ids=tensors["input_ids"],
        attention_mask=tensors["attention_mask"],
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        do_sample=False,
        use_cache=use_cache,
        synced_gpus=all_ranks_together,
        **cache,
    )
    return ids


def _growing_cache() -> Any:
    """Keys and values of as many layers as the decoder turns out to have; what ``generate`` makes
    by itself has a place for each layer of the encoder.
    """
    return transformers.EncoderDecoderCache(
        transformers.DynamicCache(), transformers.DynamicCache()
    )


FAMILIES: dict[str, Family] = {
    "bert": Family(
        forms={"classification": "head"},
        model_class=lambda config: transformers.BertForSequenceClassification,
        head=("classifier.*",),
        may_lack=("classifier.*", "bert.pooler.*"),
        loss_sum=_head_loss_sum,
        parts={
            "q": ("*.attention.self.query.weight",),
            "k": ("*.attention.self.key.weight",),
            "v": ("*.attention.self.value.weight",),
            "o": ("*.attention.output.dense.weight",),
            "ffn_in": ("*.intermediate.dense.weight",),
            "ffn_out": ("*.output.dense.weight",),
        },
        head_width=lambda config: config.hidden_size // config.num_attention_heads,
        read_prompt=read_prompt_bert,
        beside=beside_residual,
    ),
    "t5": Family(
        forms={"classification": "label_words", "sequence_to_sequence": "text"},
        model_class=_t5_class,
        head=(),
        may_lack=(),
        loss_sum=_t5_loss_sum,
        parts={
            "q": ("*.SelfAttention.q.weight", "*.EncDecAttention.q.weight"),
            "k": ("*.SelfAttention.k.weight", "*.EncDecAttention.k.weight"),
            "v": ("*.SelfAttention.v.weight", "*.EncDecAttention.v.weight"),
            "o": ("*.SelfAttention.o.weight", "*.EncDecAttention.o.weight"),
            "ffn_in": ("*.DenseReluDense.wi.weight", "*.DenseReluDense.wi_[01].weight"),
            "ffn_out": ("*.DenseReluDense.wo.weight",),
        },
        head_width=lambda config: config.d_kv,
        read_prompt=read_prompt_t5,
        beside=beside_module,
        cross=("*.EncDecAttention.*",),
        needs=("decoder_start_token_id", "pad_token_id", "eos_token_id"),
        fp16_risk="T5 was trained in bf16, and in larger checkpoints its feed-forward layers go"
        " beyond fp16's largest number, 65,504, so that losses become inf or nan",
    ),
    "vit": Family(
        forms={"image_classification": "head"},
        model_class=lambda config: transformers.ViTForImageClassification,
        head=("classifier.*",),
        may_lack=("classifier.*",),
        loss_sum=_head_loss_sum,
        parts={
            "q": ("*.attention.q_proj.weight",),
            "k": ("*.attention.k_proj.weight",),
            "v": ("*.attention.v_proj.weight",),
            "o": ("*.attention.o_proj.weight",),
            "ffn_in": ("*.mlp.fc1.weight",),
            "ffn_out": ("*.mlp.fc2.weight",),
        },
        head_width=lambda config: config.hidden_size // config.num_attention_heads,
        read_prompt=read_prompt_vit,
        beside=beside_module,
    ),
}
"""By ``model_type`` of the transformers config; T5 v1.0, v1.1, flan-T5 and UL2 are all ``t5``."""
