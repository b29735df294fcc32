"""A word tokenizer, encoded rows of chosen lengths, and datasets without network or memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import numpy as np
import pytest

from scalepet.data import Encoded

PAD, END, START = 0, 1, 2


class WordTokenizer:
    """Words get ids in order of appearance; texts end with ``END`` and may begin with ``START``."""

    def __init__(self, *, has_start: bool = False, has_end: bool = True) -> None:
        self.eos_token_id: int | None = END
        self.words: dict[str, int] = {}
        self.num_calls = 0
        self._head = [START] if has_start else []
        self._tail = [END] if has_end else []

    def __call__(
        self,
        texts: list[str],
        /,
        *,
        truncation: bool = False,
        max_length: int | None = None,
        verbose: bool = True,
    ) -> dict[str, Any]:
        self.num_calls += 1
        return {
            "input_ids": [self._ids(text, max_length if truncation else None) for text in texts]
        }

    def _ids(self, text: str, max_length: int | None) -> list[int]:
        words = [self.words.setdefault(word.lower(), 3 + len(self.words)) for word in text.split()]
        if max_length is not None:
            words = words[: max_length - len(self._head) - len(self._tail)]
        return [*self._head, *words, *self._tail]


@pytest.fixture
def tokenizer() -> WordTokenizer:
    return WordTokenizer()


@pytest.fixture
def word_tokenizer() -> type[WordTokenizer]:
    return WordTokenizer


@pytest.fixture
def make_encoded() -> Callable[..., Encoded]:
    """Rows of seeded lengths; the first id of row i is 100 + i, so that ids name their row."""

    def make(num_rows: int, *, form: str = "text") -> Encoded:
        lengths = np.random.default_rng(num_rows).integers(1, 9, size=(num_rows, 2))
        lengths[:, 1] = 1 if form == "head" else lengths[:, 1]
        sources = [np.full(length, 100 + row, np.int32) for row, length in enumerate(lengths[:, 0])]
        targets = [np.full(length, row % 3, np.int32) for row, length in enumerate(lengths[:, 1])]
        return Encoded(form=form, input_ids=sources, targets=targets)  # type: ignore[arg-type]

    return make


@pytest.fixture(autouse=True)
def closed_datasets(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """No network and a cache of its own; set on the modules, which may be imported already."""
    cache = tmp_path_factory.mktemp("datasets_cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache
