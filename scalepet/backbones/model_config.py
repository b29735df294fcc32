"""What a backbone is, read from its config.json alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from scalepet.backbones.backbone import WHAT_A_PATH_IS, Backbone, check_files, in_plain_words
from scalepet.backbones.checkpoint import own_tables
from scalepet.backbones.families import FAMILIES, T5_HEAD, T5_TABLES, Family
from scalepet.errors import ConfigError

DROPOUT_FIELDS = (
    "dropout_rate",
    "classifier_dropout",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)


def read_model_config(backbone: Backbone) -> Any:
    """The transformers config with the wishes of ``backbone`` put in.

    Raises:
        ConfigError: nothing is found under the path, it is no family that scalepet knows, or it
            lacks what the family needs.
    """
    _check_place(backbone)
    with in_plain_words(backbone):
        config = transformers.AutoConfig.from_pretrained(
            backbone.place, revision=backbone.revision, trust_remote_code=False
        )
    if getattr(config, "auto_map", None):
        raise ConfigError(
            f"backbone.path: {backbone.path!r} brings code of its own ({config.auto_map}), which"
            f" is never run; allowed: {', '.join(FAMILIES)} models as transformers has them"
        )
    if config.model_type not in FAMILIES:
        raise ConfigError(
            f"backbone.path: {backbone.path!r} is a {config.model_type!r} model;"
            f" allowed: {', '.join(FAMILIES)}"
        )
    _check_needs(backbone, config)
    if config.model_type == "t5":
        _tell_tables(backbone, config)
    if backbone.num_classes is not None:
        config.num_labels = backbone.num_classes
    if backbone.dropout is not None:
        for name in DROPOUT_FIELDS:
            if hasattr(config, name):
                setattr(config, name, backbone.dropout)
    return config


def _tell_tables(backbone: Backbone, config: Any) -> None:
    """``own_tables``: which tables of a T5 are weights of their own, None where the files are not
    here; ``has_own_head``: whether its output projection is one (v1.1, flan, UL2) or the embedding
    (v1.0). v1.0 scales what goes into the projection, v1.1 does not.
    """
    own = own_tables(backbone, T5_TABLES)
    config.own_tables = None if own is None else list(own)
    config.has_own_head = not config.scale_decoder_outputs if own is None else T5_HEAD in own


def check_tables(backbone: Backbone, config: Any) -> None:
    """Raises ConfigError where weights that have come after ``read_model_config`` have other
    tables than their config.json says.
    """
    if config.model_type != "t5" or config.own_tables is not None or backbone.random_start:
        return
    told = [T5_HEAD] if config.has_own_head else []
    found = list(own_tables(backbone, T5_TABLES) or ())
    if found != told:
        raise ConfigError(
            f"backbone.path: {backbone.path!r}: tables of their own are {found or 'none'} in its"
            f" weights, {told or 'none'} by its config.json; now that the weights are here, the"
            " same command reads them as they are"
        )


def _check_place(backbone: Backbone) -> None:
    """transformers takes whatever is no folder for a hub name, and says so in its own way."""
    place, shown = Path(backbone.place), f"backbone.path: {backbone.path!r}"
    if place.is_file() and not backbone.random_start:
        raise ConfigError(f"{shown} is a file, which holds no weights; allowed: {WHAT_A_PATH_IS}")
    check_files(backbone.place, shown)
    looks_local = backbone.path.startswith((".", "/", "~", "$")) or backbone.path.count("/") > 1
    if looks_local and not place.exists():
        raise ConfigError(f"{shown} does not exist; allowed: {WHAT_A_PATH_IS}")


def _check_needs(backbone: Backbone, config: Any) -> None:
    lacking = [name for name in family_of(config).needs if getattr(config, name, None) is None]
    if lacking:
        raise ConfigError(
            [
                f"backbone.path: {backbone.path!r}: {name} is null in its config.json;"
                " allowed: the number of a token"
                for name in lacking
            ]
        )


def family_of(config: Any) -> Family:
    """How the backbone is used that a transformers config describes."""
    return FAMILIES[config.model_type]


def picture_shape(config: Any) -> tuple[int, int, int]:
    """Channels, height and width of the pictures that a ViT reads."""
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return config.num_channels, height, width


def longest_input(config: Any) -> int | None:
    """The most tokens that an input may have; None where positions are relative (T5)."""
    return getattr(config, "max_position_embeddings", None)
