"""One split as token ids: plain arrays that loaders deal out and a fingerprint stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Literal

import numpy as np
import numpy.typing as npt

from scalepet.data.metrics import Reference
from scalepet.data.task import Kind

Form = Literal["head", "label_words", "choice", "text"]
FORM_KINDS: dict[Form, Kind] = {
    "head": "classification",
    "label_words": "classification",
    "choice": "classification",
    "text": "sequence_to_sequence",
}
"""What a target is (a class for a head, a label word to write, a label word to choose, a text), and
the kind of task it serves."""

CLASS_FORMS: tuple[Form, ...] = ("head", "choice")
"""Whose targets are the numbers of classes; those of the others are tokens."""

IGNORED = -100
"""Label of what has no target: padding, fillers, rows without labels."""

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Encoded:
    """One split as token ids, row by row in the order of the split.

    Args:
        form: what the targets are.
        input_ids: tokens of each example, int32, special tokens included.
        targets: int32 token ids of each target; one class id in ``CLASS_FORMS``; one ``IGNORED``
            where the rows have no labels.
        classes: class of each row, int32; None for form "text" and without labels.
        references: target text (or right answers) of each row, or its label word; empty
            without labels.
        label_ids: tokens of each label word in class order, end token included; forms
            "label_words" and "choice" only.
        num_cut_sources: rows cut to ``max_source_length``.
        num_cut_targets: rows whose target was cut to ``max_target_length``.
    """

    form: Form
    input_ids: list[Ids]
    targets: list[Ids]
    classes: Ids | None = None
    references: Sequence[Reference] = ()
    label_ids: list[Ids] | None = None
    num_cut_sources: int = 0
    num_cut_targets: int = 0

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.input_ids)

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits of BLAKE2b over form, ids, targets and label words, in row order."""
        digest = blake2b(self.form.encode(), digest_size=16)
        for ids in (self.input_ids, self.targets, self.label_ids or []):
            digest.update(np.array([len(ids), *map(len, ids)], dtype="<i8").tobytes())
            for row in ids:
                digest.update(row.astype("<i4", copy=False).tobytes())
        return digest.hexdigest()
