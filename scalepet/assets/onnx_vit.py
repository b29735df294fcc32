"""A DINOv2 backbone out of a float32 ONNX graph, as a ViT folder of transformers.

The exporter keeps the names of biases, norms and embeddings. The weight of a linear layer is named
only by the scope of the node that uses it, such as `/backbone/encoder/layer.0/mlp/fc1/MatMul`, and
is stored as (in, out), so transposed. What the graph has behind the backbone is left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import GraphProto, numpy_helper
from safetensors.numpy import save
from torch.nn import functional as F

from scalepet.errors import DataError

Tensors = dict[str, NDArray[Any]]

# Half of the package's 224 px: a fourth of the patches, so that a CPU trains in minutes.
IMAGE_SIZE = 112
HEAD_WIDTH = 64  # of every DINOv2, whatever its width
LAYER_NORM_EPS = 1e-6
# ImageNet's red, green and blue, for pixels in [0, 1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

LINEAR_NODE = "/MatMul"
EMBEDDINGS = "/backbone/embeddings/"
PATCHES = "vit.embeddings.patch_embeddings.projection.weight"
POSITIONS = "vit.embeddings.position_embeddings"
# Names of DINOv2 and those in the files of a ViT, where they differ.
RENAMED = {
    "backbone.": "vit.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
}
# LayerScale multiplies the outputs of a layer, one factor each; a ViT has none.
SCALED = {
    ".layer_scale1.lambda1": ".attention.output.dense",
    ".layer_scale2.lambda1": ".output.dense",
}


def dinov2_as_vit(raw: Path, folder: Path) -> str:
    """Write a ViTForImageClassification folder for 112 px without its head; returns what was done.

    Args:
        raw: holds one .onnx file.
        folder: gets model.safetensors (float32), config.json and preprocessor_config.json.

    Raises:
        DataError: the graph has not the position embeddings of a DINOv2.
    """
    (path,) = raw.glob("*.onnx")
    tensors = fold_scales(read_weights(path))
    tensors[POSITIONS] = resize(tensors[POSITIONS], side=IMAGE_SIZE // tensors[PATCHES].shape[-1])
    (folder / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    _write_json(folder / "config.json", model_config(tensors))
    _write_json(folder / "preprocessor_config.json", preprocessing())
    num_parameters = sum(tensor.size for tensor in tensors.values())
    return (
        f"{len(tensors)} tensors, {num_parameters} parameters, float32. LayerScale is folded into"
        f" the layers that it scales; the positions are resized for {IMAGE_SIZE} px (bicubic). No"
        " head and no pooler: a classifier reads the CLS state behind the last norm. Pictures"
        f" enter as (pixel / 255 - mean) / std with mean {MEAN} and std {STD}. The package does"
        " not say whether its author tuned the backbone."
    )


def read_weights(path: Path) -> Tensors:
    """Every weight of the backbone under its name in the files of a ViT, LayerScale included.

    Raises:
        DataError: there are not one position for CLS and a square of them for the patches.
    """
    graph = onnx.load(path).graph
    raw = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    weights = {_vit_name(name): raw[name] for name in raw if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in raw:
            scope = node.name.removesuffix(LINEAR_NODE).removeprefix("/").replace("/", ".")
            weights[_vit_name(f"{scope}.weight")] = np.ascontiguousarray(raw[node.input[1]].T)
    weights[POSITIONS] = _positions(graph, raw, path.name)
    return weights


def fold_scales(tensors: Tensors) -> Tensors:
    """The same function without LayerScale: s * (W x + b) = (s W) x + s b."""
    folded = dict(tensors)
    for name in tensors:
        for scale, layer in SCALED.items():
            if name.endswith(scale):
                factors, stem = folded.pop(name), name.removesuffix(scale) + layer
                folded[f"{stem}.weight"] = factors[:, None] * folded[f"{stem}.weight"]
                folded[f"{stem}.bias"] = factors * folded[f"{stem}.bias"]
    return folded


def resize(positions: NDArray[Any], *, side: int) -> NDArray[Any]:
    """Positions for side x side patches, as DINOv2 itself resizes them (bicubic).

    Args:
        positions: (1, 1 + n * n, width), the first for CLS, which stays as it is.

    Returns:
        (1, 1 + side * side, width).
    """
    width, old_side = positions.shape[-1], int((positions.shape[1] - 1) ** 0.5)
    square = torch.from_numpy(positions[:, 1:].reshape(1, old_side, old_side, width))
    resized = F.interpolate(
        square.permute(0, 3, 1, 2), size=(side, side), mode="bicubic", align_corners=False
    )
    patches = resized.permute(0, 2, 3, 1).reshape(1, side * side, width).numpy()
    return np.concatenate([positions[:, :1], patches], axis=1)


def model_config(tensors: Tensors) -> dict[str, Any]:
    """The config.json that fits the tensors; what no shape tells is that of every DINOv2."""
    width, num_channels, patch_size, _ = tensors[PATCHES].shape
    return {
        "model_type": "vit",
        "architectures": ["ViTForImageClassification"],
        "hidden_size": width,
        "num_hidden_layers": len({n.split(".")[3] for n in tensors if ".encoder.layer." in n}),
        "num_attention_heads": width // HEAD_WIDTH,
        "intermediate_size": tensors["vit.encoder.layer.0.intermediate.dense.weight"].shape[0],
        "hidden_act": "gelu",
        "layer_norm_eps": LAYER_NORM_EPS,
        "image_size": IMAGE_SIZE,
        "patch_size": patch_size,
        "num_channels": num_channels,
        "qkv_bias": True,
    }


def preprocessing() -> dict[str, Any]:
    """The preprocessor_config.json: resized whole, then normalized as the backbone expects it."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }


def _positions(graph: GraphProto, raw: Tensors, file: str) -> NDArray[Any]:
    """The exporter splits them: CLS is concatenated, the patches are reshaped into a square."""
    found = {
        node.op_type: raw[node.input[0]]
        for node in graph.node
        if node.name.startswith(EMBEDDINGS) and node.input and node.input[0] in raw
    }
    sizes = [found[kind].shape[1] if kind in found else 0 for kind in ("Concat", "Reshape")]
    if sizes[0] != 1 or sizes[1] < 1 or int(sizes[1] ** 0.5) ** 2 != sizes[1]:
        raise DataError(
            f"{file}: has {sizes[0]} positions for CLS and {sizes[1]} for patches;"
            " allowed: 1 and a square number"
        )
    return np.concatenate([found["Concat"], found["Reshape"]], axis=1)


def _vit_name(name: str) -> str:
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
