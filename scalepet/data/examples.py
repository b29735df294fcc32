"""What loaders deal out, whatever the rows are made of: ``Encoded`` texts, or ``Pictures``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from scalepet.data.batch import Batch, Epoch
from scalepet.data.forms import Form, Ids, RowNumbers
from scalepet.data.metrics import Reference


class Examples(Protocol):
    """One split, row by row in its order."""

    @property
    def form(self) -> Form:
        """What the targets are."""

    @property
    def num_rows(self) -> int:
        """Number of rows."""

    @property
    def lengths(self) -> RowNumbers:
        """How long each row is, in any unit: long ones are evaluated first."""

    @property
    def num_targets(self) -> RowNumbers:
        """Targets of each row; 0 without labels."""

    @property
    def classes(self) -> Ids | None:
        """Class of each row; None where rows have none."""

    @property
    def references(self) -> Sequence[Reference]:
        """The right answer of each row; empty without labels."""

    @property
    def label_ids(self) -> list[Ids] | None:
        """Tokens of each label word, for forms that score them."""

    @property
    def num_cut_sources(self) -> int:
        """Rows that lost a part of their source."""

    @property
    def num_cut_targets(self) -> int:
        """Rows that lost a part of their target."""

    @property
    def unknown(self) -> Mapping[str, tuple[int, int]]:
        """What -> how many have a token that the tokenizer does not know, and of how many."""

    @property
    def is_read_late(self) -> bool:
        """Whether a row is read when its batch is made, which can fail on one rank alone."""

    @property
    def fingerprint(self) -> str:
        """32 hex digits that tell these rows from others."""

    def batch(
        self,
        rows: RowNumbers,
        *,
        epoch: Epoch | None = None,
        pad_id: int | None,
        pad_to_multiple_of: int = 1,
    ) -> Batch:
        """The batch of these rows; of one filler where there are none.

        Args:
            epoch: what chance in a row depends on, beside its number; None for what evaluation
                sees, without chance.
            pad_id: the tokenizer's padding token; None where there is no tokenizer.
            pad_to_multiple_of: widths of token rows are rounded up to it.

        Raises:
            DataError: a row that is read late cannot be read.
        """
