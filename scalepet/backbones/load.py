"""Models out of transformers: with the weights of a checkpoint, with random ones, or with none.

Where a ZeRO-3 loading context of the engine is open, transformers builds every module straight into
shards; nothing here knows about it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn

from scalepet.backbones.backbone import Backbone, in_plain_words
from scalepet.backbones.checkpoint import check_shapes, first_of
from scalepet.backbones.convert import mapped_weights
from scalepet.backbones.fill import Fill, Filled, Together, fill_model
from scalepet.backbones.generation import plain_generation
from scalepet.backbones.model_config import check_tables, family_of
from scalepet.backbones.sites import Site, list_sites, matches
from scalepet.errors import ConfigError


@dataclass(frozen=True)
class Loaded:
    """A model in memory, all of it frozen.

    Attributes:
        head_names: the tensors that belong to the task; they are trained in full and saved.
        how: for people, how the weights were read.
    """

    model: nn.Module
    head_names: tuple[str, ...]
    how: str = ""


def quiet_transformers(*, show_progress: bool) -> None:
    """Errors only, and progress bars of loading only where someone looks."""
    transformers.utils.logging.set_verbosity_error()
    if not show_progress:
        transformers.utils.logging.disable_progress_bar()


@contextlib.contextmanager
def building_under(ds_config: Mapping[str, Any]) -> Iterator[None]:
    """Models built inside are ZeRO-3 shards from their first module on, where the DeepSpeed config
    says stage 3.

    transformers holds that config by a weak reference only, so someone must own it while the model
    loads.
    """
    from transformers.integrations import HfDeepSpeedConfig
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    owner = HfDeepSpeedConfig(dict(ds_config))
    try:
        yield
    finally:
        del owner
        unset_hf_deepspeed_config()


def sketch_sites(config: Any) -> tuple[Site, ...]:
    """The sites of the model that ``config`` describes; no weight is made, whatever the size.

    Left out is what belongs to the task or may be lacking from a checkpoint: it is no place for a
    mask.

    Raises:
        ConfigError: the config describes no model that can be built.
    """
    family, model = family_of(config), sketch_model(config)
    not_ours = family.head + family.may_lack
    sites = list_sites(
        model,
        parts=family.parts,
        head_width=family.head_width(config),
        cross=family.cross,
    )
    return tuple(site for site in sites if not matches(site.name, not_ours))


def t5_config(**shape: int) -> Any:
    """The config of a T5 v1.1 (gated GELU, a head of its own) of any shape."""
    config = transformers.T5Config(
        **shape,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    config.has_own_head = True
    return config


def sketch_model(config: Any) -> nn.Module:
    """The model without a single number in it, on the ``meta`` device.

    Raises:
        ConfigError: the config describes no model that can be built.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled

    assert not is_deepspeed_zero3_enabled(), "a sketch inside building_under has no shapes"
    with in_plain_words(Backbone(config.name_or_path)), torch.device("meta"):
        return family_of(config).model_class(config)._from_config(config)


def load_model(
    backbone: Backbone,
    config: Any,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    fill: Fill | None = None,
    together: Together = lambda work: work(),
) -> Loaded:
    """Build and fill the model; every parameter is frozen.

    Where the caller has opened the engine's loading context, it is built into shards.

    Args:
        config: of ``read_model_config``.
        device: where its weights go. They are read out of mapped files tensor by tensor, so that
            the processes of a machine share what host memory that takes. A random start is drawn
            there: a CPU needs minutes for ten billion numbers.
        fill: keeps the parts that this process needs of a sharded model; without it, or where the
            files cannot be read in parts, transformers reads all of them.
        together: does work that fails on all ranks where it fails on one.

    Raises:
        ConfigError: the checkpoint cannot be read, or lacks tensors of the backbone itself, or has
            them in other shapes.
    """
    family = family_of(config)
    check_tables(backbone, config)
    # The head (or all of a random start) is drawn on rank 0 from the global generator, with or
    # without shards.
    torch.manual_seed(backbone.seed)
    with in_plain_words(backbone):
        if backbone.random_start:
            model, lacking, how = _draw(config, dtype, device)
        else:
            model, lacking, how = _read(backbone, config, dtype, device, fill, together)
    _check_lacking(backbone, lacking, may_lack=family.may_lack)
    model.requires_grad_(False)
    if model.can_generate():
        model.generation_config = plain_generation(config)
    if backbone.checkpoint_activations:
        _checkpoint_activations(model)
    head = [
        name
        for name, _ in model.named_parameters()
        if matches(name, family.head) or name in lacking
    ]
    return Loaded(model, tuple(head), how)


Built = tuple[Any, Collection[str], str]
"""A model, the names of the tensors that its checkpoint lacks, and how it was read."""


def _draw(config: Any, dtype: torch.dtype, device: torch.device | str) -> Built:
    with torch.device(device):
        # What AutoModel.from_config calls; the class alone would not build into shards.
        model = family_of(config).model_class(config)._from_config(config, dtype=dtype)
    return model, (), "drawn at random"


def _read(
    backbone: Backbone,
    config: Any,
    dtype: torch.dtype,
    device: torch.device | str,
    fill: Fill | None,
    together: Together,
) -> Built:
    from transformers.integrations import is_deepspeed_zero3_enabled

    model_class = family_of(config).model_class(config)
    how = "read whole"
    if fill is not None:
        filled = fill_model(backbone, config, dtype=dtype, fill=fill, together=together)
        if isinstance(filled, Filled):
            return filled.model, filled.lacking, filled.how
        how = f"read whole by the first rank, since {filled}"
    weights = mapped_weights(backbone, config)
    with _drawing_alike(model_class, backbone.seed):
        model, report = model_class.from_pretrained(
            backbone.place if weights is None else None,
            config=config,
            revision=backbone.revision,
            dtype=dtype,
            device_map=None if is_deepspeed_zero3_enabled() else {"": torch.device(device)},
            state_dict=weights,
            trust_remote_code=False,
            generation_config=plain_generation(config),  # else it reads a file, whatever is in it
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are reported, and refused in our words
        )
    # A checkpoint that was tuned for other classes has a head of another size: ours starts anew.
    head = family_of(config).head
    mismatched = [key for key in report["mismatched_keys"] if not matches(key[0], head)]
    check_shapes(backbone, mismatched)
    new_head = {name for name, *_ in report["mismatched_keys"]}
    return model, {*report["missing_keys"], *new_head}, how


@contextlib.contextmanager
def _drawing_alike(model_class: Any, seed: int) -> Iterator[None]:
    """What a checkpoint lacks is drawn from the same seed, in shards or not.

    Some classes (ViT) draw numbers while they are built, which costs the generator nothing on the
    ``meta`` device and something in shards.
    """
    draw = model_class._initialize_missing_keys

    def seeded(self: Any, *args: Any, **kwargs: Any) -> Any:
        torch.manual_seed(seed)
        return draw(self, *args, **kwargs)

    model_class._initialize_missing_keys = seeded
    try:
        yield
    finally:
        model_class._initialize_missing_keys = draw


def _check_lacking(
    backbone: Backbone, lacking: Collection[str], *, may_lack: Sequence[str]
) -> None:
    allowed = ", ".join(may_lack) or "none"
    faults = [
        f"backbone.path: {backbone.path!r} lacks {name}; allowed to be missing: {allowed}"
        for name in sorted(lacking)
        if not matches(name, may_lack)
    ]
    if faults:
        raise ConfigError(first_of(faults))


def _checkpoint_activations(model: Any) -> None:
    """Reentrant: under ZeRO-3 a layer is then gathered once in backward, for the second run and its
    gradients together.

    It needs an input that asks for gradients, which a frozen embedding does not give by itself;
    transformers sees to that for models that read tokens.
    """
    model.activation_checkpointing_enable({"use_reentrant": True})
    if model.main_input_name != "input_ids":
        model.enable_input_require_grads()
