"""Tokenizers: SentencePiece, WordPiece or any fast one, as it lies beside the weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import transformers

from scalepet.backbones.backbone import Backbone, check_files, reason
from scalepet.errors import ConfigError

_ALLOWED = "allowed: a hub name or a folder with tokenizer.json, spiece.model or vocab.txt"

_SPACE = "\u2581"
"""How SentencePiece writes a space; an empty one has this token and no other."""


def load_tokenizer(
    backbone: Backbone, *, path: str | None = None, vocab_size: int | None = None
) -> Any:
    """The backbone's tokenizer (SentencePiece or fast), or the one at ``path``; pads on the right.

    Args:
        vocab_size: how many tokens the model knows, from its config; None where that is not known.

    Raises:
        ConfigError: there is none, it knows no word, it has more tokens than the model, or it has
            no padding token.
    """
    place = Backbone(path).place if path else _beside(backbone)
    check_files(place, f"backbone.tokenizer: {place!r}")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            place, revision=None if path else backbone.revision, trust_remote_code=False
        )
        tokenizer("a")  # a broken vocabulary shows only here
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # bare Exceptions, and panics of Rust, which are not even that
        raise ConfigError(
            f"backbone.tokenizer: none can be loaded from {place!r} ({reason(error)}); {_ALLOWED}"
        ) from error
    if not {*tokenizer.get_vocab()} - {*tokenizer.all_special_tokens, _SPACE}:
        # Where it finds no file, transformers makes an empty tokenizer, to which all is unknown.
        raise ConfigError(f"backbone.tokenizer: {place!r} holds no vocabulary; {_ALLOWED}")
    if vocab_size is not None and len(tokenizer) > vocab_size:
        raise ConfigError(
            f"backbone.tokenizer: {place!r} has {len(tokenizer):,} tokens, {backbone.path!r} knows"
            f" {vocab_size:,}; allowed: the tokenizer that the backbone was trained with"
        )
    if tokenizer.pad_token_id is None:
        raise ConfigError(
            f"backbone.tokenizer: {place!r} has no padding token, so rows cannot be batched;"
            " allowed: a tokenizer with one"
        )
    tokenizer.padding_side = "right"
    return tokenizer


_PROBES = (
    "It\u2019s 3.14  \t(naïve) Straße\n",
    "A\u0301 ﬁ Ⅷ ½ don't_stop #42-b",
    "日本語 한국어 עברית Ελλάς привет \U0001f600",
)
"""Texts that normalisers and splitters take apart in different ways."""


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A short name for what a tokenizer does, the same in every version of its library: 32 hex
    digits of BLAKE2b over its vocabulary, its special tokens and the ids of a few probes.
    """
    known = (
        sorted(tokenizer.get_vocab().items()),
        sorted(tokenizer.all_special_tokens),
        [tokenizer(probe)["input_ids"] for probe in _PROBES],
    )
    return hashlib.blake2b(json.dumps(known).encode(), digest_size=16).hexdigest()


def _beside(backbone: Backbone) -> str:
    """The backbone's own folder or hub name; for a config.json the folder that it lies in."""
    place = Path(backbone.place)
    return str(place.parent) if place.is_file() else backbone.place
