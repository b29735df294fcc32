"""Several data sets as one, whose classes are those of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from scalepet.data.encoded import Encoded
from scalepet.data.examples import Examples
from scalepet.errors import ConfigError


def joined(parts: Sequence[Examples], classes: Sequence[Sequence[int]]) -> Encoded:
    """The rows of all parts, part after part, in a form whose targets are classes.

    Args:
        classes: for each part, the class in the whole of each of its own classes.

    Raises:
        ConfigError: the rows are pictures, which are not held in memory.
    """
    texts = [part for part in parts if isinstance(part, Encoded)]
    if len(texts) < len(parts):
        raise ConfigError(
            "lae.joint: true with several data sets of pictures; allowed: false, or one data set"
            " in portions"
        )
    numbers = [
        np.asarray(places)[_classes(part)] for part, places in zip(texts, classes, strict=True)
    ]
    flat = np.concatenate(numbers).astype(np.int32)
    return Encoded(
        form=texts[0].form,
        input_ids=[ids for part in texts for ids in part.input_ids],
        targets=list(flat[:, None]),
        classes=flat,
        references=[reference for part in texts for reference in part.references],
        label_ids=_label_ids(texts, classes),
        num_cut_sources=sum(part.num_cut_sources for part in texts),
        unknown=_unknown(texts),
    )


def _classes(part: Encoded) -> Any:
    assert part.classes is not None, "rows with labels"
    return part.classes


def _unknown(parts: Sequence[Encoded]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for part in parts:
        for what, (count, total) in part.unknown.items():
            before = found.get(what, (0, 0))
            found[what] = (before[0] + count, before[1] + total)
    return found


def _label_ids(parts: Sequence[Encoded], classes: Sequence[Sequence[int]]) -> Any:
    words: dict[int, Any] = {}
    for part, places in zip(parts, classes, strict=True):
        words.update(zip(places, part.label_ids or (), strict=False))
    return [words[place] for place in sorted(words)] or None
