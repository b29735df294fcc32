"""How texts are written: as the run says, and not as a file beside the weights does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers

from scalepet.backbones.backbone import Backbone
from scalepet.backbones.checkpoint import find_file

GENERATION_FILE = "generation_config.json"

_TOKENS = ("decoder_start_token_id", "eos_token_id", "pad_token_id", "bos_token_id")
_DECIDED = {*_TOKENS, "use_cache", "max_length", "max_new_tokens", "transformers_version"}
_DECIDED |= {"output_attentions", "output_hidden_states", "_from_model_config"}


def plain_generation(config: Any) -> Any:
    """Settings with nothing in them but the tokens that a text starts, ends and is filled with."""
    return transformers.GenerationConfig(
        **{
            name: getattr(config, name, None)
            for name in _TOKENS
            if getattr(config, name, None) is not None
        }
    )


def ignored_generation(backbone: Backbone) -> dict[str, Any]:
    """Settings of the backbone's own, where they are here, that would change what is written: in
    generation_config.json, or in the config.json of an old checkpoint.
    """
    usual = transformers.GenerationConfig._get_default_generation_params()
    known = {*transformers.GenerationConfig().to_dict()} - _DECIDED
    found: dict[str, Any] = {}
    for name in ("config.json", GENERATION_FILE):
        found |= {
            field: value
            for field, value in _fields(backbone, name).items()
            if field in known and value not in (None, False, usual.get(field))
        }
    return found


def _fields(backbone: Backbone, name: str) -> dict[str, Any]:
    place = Path(backbone.place)
    file = place if place.is_file() and name == "config.json" else None
    file = file or find_file(backbone, name, fetch=False)
    try:
        fields = {} if file is None else json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # it is not read for anything else, either
    return fields if isinstance(fields, dict) else {}
