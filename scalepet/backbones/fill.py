"""Models whose weights are read in parts: every process reads what it keeps, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
import transformers
from torch import Tensor, nn

from scalepet.backbones.backbone import Backbone
from scalepet.backbones.checkpoint import check_shapes, weight_files
from scalepet.backbones.convert import converted_folder
from scalepet.backbones.model_config import family_of
from scalepet.backbones.sites import matches
from scalepet.backbones.slices import WeightFiles

T = TypeVar("T")

Read = Callable[[int, int], Tensor]
"""``(start, stop) -> numbers start to stop of the flat tensor``."""

Fill = Callable[[nn.Parameter, Read], None]
"""Reads what this process keeps of a parameter, and keeps it."""


class Together(Protocol):
    """Work that fails on all ranks where it fails on one."""

    def __call__(self, work: Callable[[], T]) -> T: ...


@dataclass(frozen=True)
class Filled:
    """A model that ``fill_model`` made.

    Attributes:
        lacking: parameters that the checkpoint has not; they are drawn.
        how: for people, what was read.
    """

    model: Any
    lacking: tuple[str, ...]
    how: str


def fill_model(
    backbone: Backbone, config: Any, *, dtype: torch.dtype, fill: Fill, together: Together
) -> Filled | str:
    """Build the model empty, inside the engine's loading context, and fill it part by part.

    All ranks together; their files are the same.

    Returns:
        The reason why it cannot be done where the files are no safetensors, or do not name their
        tensors as the model does.

    Raises:
        ConfigError: a file is cut or broken, or has tensors of other shapes.
    """
    files, origin = weight_files(backbone, fetch=True), ""
    if any(file.suffix == ".bin" for file in files):
        folder = converted_folder(backbone, config)
        files, origin = sorted(folder.glob("*.safetensors")), f", from {folder}"
    if not files:
        return "its weights are no safetensors files"
    weights, family = together(lambda: WeightFiles.open(files)), family_of(config)
    model = _empty(backbone, config, dtype)
    sources = _sources(model, weights)
    parameters = dict(model.named_parameters())
    for name in [name for name in sources if matches(name, family.head)]:
        # A checkpoint that was tuned for other classes has a head of another size.
        if weights.shape(sources[name]) != full_shape(parameters[name]):
            del sources[name]
    lacking = tuple(name for name in parameters if name not in sources)
    unknown = [name for name in lacking if not matches(name, family.head + family.may_lack)]
    if unknown:
        return f"its files have no tensor for {unknown[0]}"
    check_shapes(
        backbone,
        [
            (name, weights.shape(source), full_shape(parameters[name]))
            for name, source in sources.items()
            if weights.shape(source) != full_shape(parameters[name])
        ],
    )

    def read() -> None:
        for name, source in sources.items():
            fill(parameters[name], partial(weights.read, source))
            parameters[name]._is_hf_initialized = True  # type: ignore[attr-defined]

    together(read)  # a rank whose disk fails must not leave the others in what follows
    if lacking:
        torch.manual_seed(backbone.seed)
        model._initialize_missing_keys(False)
    how = f"{weights.num_bytes / 1e9:,.3f} GB read by each rank, its own part{origin}"
    return Filled(model.eval(), lacking, how)


def _empty(backbone: Backbone, config: Any, dtype: torch.dtype) -> Any:
    """What ``from_pretrained`` builds before it reads; no weight is drawn."""
    model_class = family_of(config).model_class(config)
    with ExitStack() as stack:
        for context in model_class.get_init_context(dtype, False, False, None):
            stack.enter_context(context)
        model = model_class(config)
    model.tie_weights()
    read_generation_config(model, backbone)
    return model


def read_generation_config(model: Any, backbone: Backbone) -> None:
    """As ``from_pretrained`` does that is given a place."""
    if model.can_generate():
        with suppress(OSError):  # without a file of its own it stays as made from the config
            model.generation_config = transformers.GenerationConfig.from_pretrained(
                backbone.place, revision=backbone.revision
            )


def _sources(model: Any, weights: WeightFiles) -> dict[str, str]:
    """Name of a parameter -> name in the files, by the renamings that transformers itself knows."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    known = get_model_conversion_mapping(model)
    renamings = [entry for entry in known if isinstance(entry, WeightRenaming)]
    states, names = model.state_dict(), {name for name, _ in model.named_parameters()}
    sources = {}
    for source in weights.places:
        name, _ = rename_source_key(source, renamings, [], model.base_model_prefix, states)
        if name in names:
            sources[name] = source
    return sources


def full_shape(parameter: Any) -> tuple[int, ...]:
    """The shape of the whole parameter, which in ZeRO-3 shards is not its own."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
