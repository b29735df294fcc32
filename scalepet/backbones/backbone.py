"""Which backbone a run asks for, and the plain words for one that cannot be had."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scalepet.errors import ConfigError, ScalepetError
from scalepet.paths import expanded
from scalepet.reading import check_file

WHAT_A_PATH_IS = (
    "a model name on the hub, a folder with config.json and weights,"
    " or a config.json with backbone.random_start: true"
)
_MAX_REASON_LENGTH = 300


@dataclass(frozen=True)
class Backbone:
    """What to load, before anything is loaded.

    Attributes:
        path: a hub name (``google/flan-t5-xxl``), a local folder of the same form, or a
            ``config.json``.
        random_start: build from the config alone with random weights, for tests and sizing.
        revision: branch, tag or commit on the hub.
        num_classes: size of the classification head; None for families without one.
        dropout: every dropout rate of the model; None keeps what its config says.
        seed: of what starts at random (the head, or everything with ``random_start``).
        checkpoint_activations: keep one activation a layer and run the layer again in backward.
    """

    path: str
    random_start: bool = False
    revision: str | None = None
    num_classes: int | None = None
    dropout: float | None = None
    seed: int = 0
    checkpoint_activations: bool = False

    @property
    def place(self) -> str:
        """Where transformers is to look: the path, with ``~`` and variables filled in."""
        return expanded(self.path)


_READ_FILES = ("*.json", "*.model", "*.txt", "*.jinja")
"""What transformers opens by its name, beside the weights."""

_WEIGHTS = ("*.safetensors", "*.bin")
"""Of these only those that are read have to be whole, which shows when they are."""


def check_files(place: str, shown: str) -> None:
    """Raises ConfigError where what a local folder holds, or the file that ``place`` is, is no file
    that can be read; ``shown`` begins the message.
    """
    path = Path(place)
    files = [file for pattern in _READ_FILES for file in path.glob(pattern)] or [path]
    odd = [file for pattern in _WEIGHTS for file in path.glob(pattern) if not file.is_file()]
    for file in (*files, *odd):
        if not os.path.lexists(file) or file.is_dir():
            continue
        try:
            check_file(file)
        except OSError as error:
            raise ConfigError(
                f"{shown}: {file.name} cannot be read: {error.strerror}; allowed: whole files"
            ) from error


@contextlib.contextmanager
def in_plain_words(backbone: Backbone) -> Iterator[None]:
    """transformers says what it misses in many ways and types of errors; a user needs one."""
    try:
        yield
    except (ScalepetError, AssertionError):
        raise
    except Exception as error:
        raise ConfigError(
            f"backbone.path: {backbone.path!r} cannot be loaded ({reason(error)});"
            f" allowed: {WHAT_A_PATH_IS}"
        ) from error


def reason(error: BaseException) -> str:
    """An error of a library in one line; its type where it says nothing."""
    words = " ".join(str(error).split()) or type(error).__name__
    if "trust_remote_code" in words:  # which transformers asks for, and nobody can give here
        return "it needs code of its own, which is never run"
    return words if len(words) <= _MAX_REASON_LENGTH else f"{words[:_MAX_REASON_LENGTH]}..."
