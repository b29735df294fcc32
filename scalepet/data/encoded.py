"""One split as token ids: plain arrays that loaders deal out and a fingerprint stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import ClassVar

import numpy as np

from scalepet.data.batch import Batch, Epoch, make_batch
from scalepet.data.forms import IGNORED, Form, Ids, RowNumbers
from scalepet.data.metrics import Reference


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
        unknown: what -> how many have a token that the tokenizer does not know, and of how many.
    """

    is_read_late: ClassVar[bool] = False

    form: Form
    input_ids: list[Ids]
    targets: list[Ids]
    classes: Ids | None = None
    references: Sequence[Reference] = ()
    label_ids: list[Ids] | None = None
    num_cut_sources: int = 0
    num_cut_targets: int = 0
    unknown: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.input_ids)

    @property
    def lengths(self) -> RowNumbers:
        """Source tokens of each row."""
        return np.array([len(ids) for ids in self.input_ids], dtype=np.int64)

    @property
    def num_targets(self) -> RowNumbers:
        """Targets of each row that are not ignored."""
        return np.array([np.count_nonzero(t != IGNORED) for t in self.targets], dtype=np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits of BLAKE2b over form, ids, targets and label words, in row order."""
        digest = blake2b(self.form.encode(), digest_size=16)
        for ids in (self.input_ids, self.targets, self.label_ids or []):
            digest.update(np.array([len(ids), *map(len, ids)], dtype="<i8").tobytes())
            for row in ids:
                digest.update(row.astype("<i4", copy=False).tobytes())
        return digest.hexdigest()

    def batch(
        self,
        rows: RowNumbers,
        *,
        epoch: Epoch | None = None,
        pad_id: int | None,
        pad_to_multiple_of: int = 1,
    ) -> Batch:
        """As ``make_batch``; token rows are the same in every epoch."""
        assert pad_id is not None, "token rows of a batch have one width"
        return make_batch(self, rows, pad_id=pad_id, pad_to_multiple_of=pad_to_multiple_of)
