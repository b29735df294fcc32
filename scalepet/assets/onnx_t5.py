"""A T5 v1.1 (gated GELU, untied head) out of two int8 ONNX graphs, as a transformers folder.

onnxruntime's dynamic quantization keeps the name of an embedding or norm in its initializer, but
that of a linear layer only in the scope of the node that uses it, such as
`/m/decoder/block.0/layer.0/SelfAttention/q/MatMul_quant`. A weight is
(quantized - zero_point) * scale; those of linear layers are stored as (in, out), so transposed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.numpy import save

from scalepet.errors import DataError

Tensors = dict[str, NDArray[Any]]

QUANTIZED = "_quantized"
LINEAR_NODE = "/MatMul_quant"
# Root scopes of the exporting modules, and what transformers calls them.
ROOTS = {"enc": "encoder", "m": ""}
ENCODER_EMBEDDING = "encoder.embed_tokens.weight"
HEAD = "lm_head.weight"
RELATIVE_BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
MAX_TOKENS = 512


def quantized_t5(raw: Path, folder: Path) -> str:
    """Write a T5ForConditionalGeneration folder; returns what was done, for the asset's SOURCE.md.

    Args:
        raw: holds encoder.onnx, decoder.onnx and tokenizer.json.
        folder: gets model.safetensors (float32), config.json, generation_config.json and the
            tokenizer.

    Raises:
        DataError: the two graphs do not share one embedding, which a T5 of transformers must.
    """
    tensors = read_weights(raw / "encoder.onnx") | read_weights(raw / "decoder.onnx")
    if not np.array_equal(tensors.pop(ENCODER_EMBEDDING), tensors["shared.weight"]):
        raise DataError("encoder.onnx and decoder.onnx: their token embeddings differ")
    (folder / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    _write_json(folder / "config.json", model_config(tensors))
    _write_json(
        folder / "generation_config.json",
        {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0},
    )
    _write_tokenizer(raw / "tokenizer.json", folder)
    num_parameters = sum(tensor.size for tensor in tensors.values())
    return (
        f"{len(tensors)} tensors, {num_parameters} parameters, dequantized from int8 to float32."
        " lm_head is not tied to the embedding. These are not Google's weights."
    )


def read_weights(path: Path) -> Tensors:
    """Every weight of one graph under its transformers name, float32."""
    graph = onnx.load(path).graph
    raw = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    weights: Tensors = {}
    for node in graph.node:
        if node.op_type == "MatMulInteger" and node.name.endswith(LINEAR_NODE):
            scope = node.name.removesuffix(LINEAR_NODE).removeprefix("/").replace("/", ".")
            weight = _dequantized(raw, node.input[1].removesuffix(QUANTIZED))
            weights[_transformers_name(f"{scope}.weight")] = np.ascontiguousarray(weight.T)
    for name, value in raw.items():
        if name.endswith(f".weight{QUANTIZED}"):
            stem = name.removesuffix(QUANTIZED)
            weights[_transformers_name(stem)] = _dequantized(raw, stem)
        elif name.endswith("layer_norm.weight"):
            weights[_transformers_name(name)] = value
    return weights


def model_config(tensors: Tensors) -> dict[str, Any]:
    """The config.json that fits the tensors; what no shape tells is that of every T5 v1.1."""
    vocab_size, d_model = tensors["shared.weight"].shape
    num_buckets, num_heads = tensors[RELATIVE_BIAS].shape
    inner = tensors["encoder.block.0.layer.0.SelfAttention.q.weight"].shape[0]
    return {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "vocab_size": vocab_size,
        "d_model": d_model,
        "d_kv": inner // num_heads,
        "d_ff": tensors["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"].shape[0],
        "num_heads": num_heads,
        "num_layers": _num_blocks(tensors, "encoder"),
        "num_decoder_layers": _num_blocks(tensors, "decoder"),
        "relative_attention_num_buckets": num_buckets,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "dropout_rate": 0.1,
        # Also tells transformers not to scale what enters the head by d_model ** -0.5.
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


def _dequantized(raw: Tensors, stem: str) -> NDArray[Any]:
    quantized = raw[stem + QUANTIZED].astype(np.int32) - raw[f"{stem}_zero_point"].astype(np.int32)
    return quantized.astype(np.float32) * raw[f"{stem}_scale"]


def _transformers_name(name: str) -> str:
    root, _, rest = name.partition(".")
    return f"{ROOTS[root]}.{rest}".removeprefix(".")


def _num_blocks(tensors: Tensors, stack: str) -> int:
    return len({name.split(".")[2] for name in tensors if name.startswith(f"{stack}.block.")})


def _write_tokenizer(source: Path, folder: Path) -> None:
    tokenizer = json.loads(source.read_text(encoding="utf-8"))
    # The titler's own length limit and padding; a caller asks for what it needs.
    tokenizer["truncation"] = tokenizer["padding"] = None
    _write_json(folder / "tokenizer.json", tokenizer)
    settings = {
        # Reads tokenizer.json as it is; T5Tokenizer would rebuild it without its normalizer.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_TOKENS,
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
