"""The families of backbones that can be trained, written down as numbers.

Building a T5-XXL without weights takes 0.03 s, but importing the code of transformers' models takes
1.2 s, more than half of the time that a plan may take. So their tensors are written down here once
more, and tests hold names, order, shapes and kinds to the models themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from scalepet.errors import ConfigError
from scalepet.planning.shape import (
    Attention,
    Block,
    FeedForward,
    Kind,
    Part,
    Shape,
    Stack,
    Stream,
    Tensor,
)

Config = Mapping[str, Any]
"""The fields of a config.json, those that it leaves out filled in."""


def shape_of(config: Config) -> Shape:
    """The backbone that a config describes.

    Raises:
        ConfigError: a family that cannot be trained yet.
    """
    family = config["model_type"]
    if family not in SHAPES:
        raise ConfigError(
            f"backbone.path: a {family!r} model cannot be planned; allowed: {', '.join(SHAPES)}"
        )
    return SHAPES[family](config)


def _t5(config: Config) -> Shape:
    hidden, words = config["d_model"], (config["vocab_size"], config["d_model"])
    table = Tensor("shared.weight", words, "embedding")
    own = Tensor("lm_head.weight", words, "embedding", stream="target")
    has_own_head = config.get("has_own_head", not config["scale_decoder_outputs"])
    depths = (config["num_layers"], config["num_decoder_layers"])
    return Shape(
        family="t5",
        hidden=hidden,
        head_width=config["d_kv"],
        start=(table,),
        stacks=(_t5_stack("encoder", depths[0], config), _t5_stack("decoder", depths[1], config)),
        end=(own,) if has_own_head else (),
        head=(),
        output=own if has_own_head else table,
        num_outputs=words[0],
        dropout=config["dropout_rate"],
        is_pre_norm=True,
    )


def _t5_stack(name: str, depth: int, config: Config) -> Stack:
    stream: Stream = "source" if name == "encoder" else "target"
    blocks = []
    for index in range(depth):
        path = f"{name}.block.{index}.layer"
        sublayers = [_t5_attention(f"{path}.0", stream, stream, config, is_first=index == 0)]
        if name == "decoder":
            sublayers.append(_t5_attention(f"{path}.1", stream, "source", config))
        blocks.append(
            Block((*sublayers, _t5_feed_forward(f"{path}.{len(sublayers)}", stream, config)))
        )
    end = _vector(f"{name}.final_layer_norm.weight", config["d_model"])
    table = Tensor(
        f"{name}.embed_tokens.weight", (config["vocab_size"], config["d_model"]), "embedding"
    )
    start = (table,) if table.name in (config.get("own_tables") or ()) else ()
    return Stack(stream, tuple(blocks), (end,), start)


def _t5_attention(
    path: str, queries: Stream, keys: Stream, config: Config, *, is_first: bool = False
) -> Attention:
    hidden, heads = config["d_model"], config["num_heads"]
    inner = heads * config["d_kv"]
    is_cross = queries != keys
    module = f"{path}.{'EncDecAttention' if is_cross else 'SelfAttention'}"
    projections: tuple[tuple[Part, tuple[int, int], Stream], ...] = (
        ("q", (inner, hidden), queries),
        ("k", (inner, hidden), keys),
        ("v", (inner, hidden), keys),
        ("o", (hidden, inner), queries),
    )
    tensors = [
        Tensor(f"{module}.{part}.weight", shape, "matrix", part, is_cross, stream)
        for part, shape, stream in projections
    ]
    if is_first:
        buckets = (config["relative_attention_num_buckets"], heads)
        tensors.append(Tensor(f"{module}.relative_attention_bias.weight", buckets, "embedding"))
    tensors.append(_vector(f"{path}.layer_norm.weight", hidden))
    return Attention(tuple(tensors), queries, keys, heads, inner, is_biased=True)


def _t5_feed_forward(path: str, stream: Stream, config: Config) -> FeedForward:
    hidden, width, is_gated = config["d_model"], config["d_ff"], config["is_gated_act"]
    module = f"{path}.DenseReluDense"
    tensors = (
        *(
            Tensor(f"{module}.{name}.weight", (width, hidden), "matrix", "ffn_in", stream=stream)
            for name in (("wi_0", "wi_1") if is_gated else ("wi",))
        ),
        Tensor(f"{module}.wo.weight", (hidden, width), "matrix", "ffn_out", stream=stream),
        _vector(f"{path}.layer_norm.weight", hidden),
    )
    return FeedForward(tensors, stream, width, config["dense_act_fn"], is_gated)


def _bert(config: Config) -> Shape:
    hidden = config["hidden_size"]
    tables = {
        "word": config["vocab_size"],
        "position": config["max_position_embeddings"],
        "token_type": config["type_vocab_size"],
    }
    embeddings = "bert.embeddings"
    start = [
        Tensor(f"{embeddings}.{name}_embeddings.weight", (rows, hidden), "embedding")
        for name, rows in tables.items()
    ]
    num_classes = config.get("num_labels") or len(config["id2label"])
    classifier = tuple(_linear("classifier", (num_classes, hidden), is_of_task=True))
    pooler = tuple(_linear("bert.pooler.dense", (hidden, hidden), is_of_task=True))
    blocks = tuple(
        _bert_block(f"bert.encoder.layer.{index}", config)
        for index in range(config["num_hidden_layers"])
    )
    return Shape(
        family="bert",
        hidden=hidden,
        head_width=hidden // config["num_attention_heads"],
        start=(*start, *_norm(f"{embeddings}.LayerNorm", hidden)),
        stacks=(Stack("source", blocks, ()),),
        end=(*pooler, *classifier),
        head=classifier,
        output=classifier[0],
        num_outputs=num_classes,
        dropout=config["hidden_dropout_prob"],
        is_pre_norm=False,
    )


def _bert_block(path: str, config: Config) -> Block:
    hidden, width = config["hidden_size"], config["intermediate_size"]
    attention = f"{path}.attention"
    names: tuple[tuple[str, Part], ...] = (("query", "q"), ("key", "k"), ("value", "v"))
    projections = [
        tensor
        for name, part in names
        for tensor in _linear(f"{attention}.self.{name}", (hidden, hidden), part)
    ]
    return Block(
        (
            Attention(
                (
                    *projections,
                    *_linear(f"{attention}.output.dense", (hidden, hidden), "o"),
                    *_norm(f"{attention}.output.LayerNorm", hidden),
                ),
                "source",
                "source",
                config["num_attention_heads"],
                hidden,
                is_biased=False,
            ),
            FeedForward(
                (
                    *_linear(f"{path}.intermediate.dense", (width, hidden), "ffn_in"),
                    *_linear(f"{path}.output.dense", (hidden, width), "ffn_out"),
                    *_norm(f"{path}.output.LayerNorm", hidden),
                ),
                "source",
                width,
                config["hidden_act"],
                is_gated=False,
            ),
        )
    )


def _linear(
    path: str, shape: tuple[int, int], part: Part | None = None, *, is_of_task: bool = False
) -> Iterator[Tensor]:
    stream: Stream | None = None if is_of_task else "source"
    yield Tensor(f"{path}.weight", shape, "matrix", part, stream=stream, is_of_task=is_of_task)
    yield _vector(f"{path}.bias", shape[0], is_of_task=is_of_task)


def _norm(path: str, size: int) -> Iterator[Tensor]:
    yield _vector(f"{path}.weight", size)
    yield _vector(f"{path}.bias", size)


def _vector(name: str, size: int, *, is_of_task: bool = False) -> Tensor:
    kind: Kind = "bias" if name.endswith(".bias") else "norm"
    return Tensor(name, (size,), kind, is_of_task=is_of_task)


SHAPES: dict[str, Callable[[Config], Shape]] = {"t5": _t5, "bert": _bert}
"""By ``model_type``, as ``FAMILIES`` of the backbones."""
