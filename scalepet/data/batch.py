"""One micro-batch: rows padded to one width, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from scalepet.data.forms import CLASS_FORMS, IGNORED, Ids, RowNumbers

if TYPE_CHECKING:
    import torch

    from scalepet.data.encoded import Encoded

FILLER = -1
"""Row number of a filler: a row without a target that keeps a rank in step with the others."""


class Epoch(NamedTuple):
    """One pass over the rows to train on: what all chance in it is drawn from.

    Args:
        seed: of the run, 0 .. 2**64-1.
        number: of the pass, from 0.
    """

    seed: int
    number: int


@dataclass(frozen=True, eq=False)
class Batch:
    """One forward of one rank.

    Args:
        tensors: int64 "input_ids" and "attention_mask" (rows, width), right padding; or float32
            "pixel_values" (rows, 3, height, width). With them int64 "labels" (rows, target width),
            or (rows,) for classes; ``IGNORED`` where there is no target.
        num_targets: labels that are not ignored; 0 for a filler, so a mean over targets is
            undefined there, and a loss is a sum divided by the whole step's ``num_targets``.
        num_tokens: source and target tokens without padding and fillers; 0 of pictures.
        rows: row numbers within the split, int64; ``FILLER`` for a filler.
        num_pictures: without fillers; 0 of texts.
    """

    tensors: dict[str, torch.Tensor]
    num_targets: int
    num_tokens: int
    rows: RowNumbers
    num_pictures: int = 0


def make_batch(
    encoded: Encoded, rows: RowNumbers, *, pad_id: int, pad_to_multiple_of: int = 1
) -> Batch:
    """The batch of these rows; of one filler where there are none.

    Widths are those of the longest row, rounded up to the multiple.
    """
    import torch  # here, so that what a task is can be read without it

    sources = [encoded.input_ids[row] for row in rows]
    targets = [encoded.targets[row] for row in rows]
    num_targets = sum(int(np.count_nonzero(target != IGNORED)) for target in targets)
    num_tokens = sum(map(len, sources)) + (0 if encoded.form in CLASS_FORMS else num_targets)
    if len(rows) == 0:
        # A real token, because a row with nothing to attend to is undefined in attention.
        sources = [encoded.input_ids[0][:1]]
        targets = [np.array([IGNORED], dtype=np.int32)]
        rows = np.array([FILLER], dtype=np.int64)
    lengths = [len(source) for source in sources]
    input_ids = pad_right(sources, pad_id, pad_to_multiple_of)
    arrays: dict[str, npt.NDArray[Any]] = {
        "input_ids": input_ids,
        "attention_mask": np.arange(input_ids.shape[1]) < np.array(lengths)[:, None],
        "labels": np.concatenate(targets)
        if encoded.form in CLASS_FORMS
        else pad_right(targets, IGNORED, pad_to_multiple_of),
    }
    tensors = {name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()}
    return Batch(tensors=tensors, num_targets=num_targets, num_tokens=num_tokens, rows=rows)


def pad_right(ids: Sequence[Ids], fill: int, multiple: int) -> npt.NDArray[np.int64]:
    """Rows of ids in one array, ``fill`` behind each; the width is a multiple of ``multiple``."""
    width = -(-max(len(row) for row in ids) // multiple) * multiple
    padded = np.full((len(ids), width), fill, dtype=np.int64)
    for index, row in enumerate(ids):
        padded[index, : len(row)] = row
    return padded
