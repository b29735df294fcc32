"""Which rows go through which forward of which rank: arithmetic, and the same at any world size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

import numpy as np
import numpy.typing as npt

from scalepet.data.batch import Batch, make_batch
from scalepet.data.encoded import IGNORED, Encoded

RowNumbers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Step:
    """One optimizer step as this rank sees it.

    Args:
        index: optimizer step, from 0.
        epoch: pass over the rows, from 0.
        micro_batches: this rank's forwards; every rank has as many in every step.
        num_targets: targets of the global batch, over all ranks and micro-batches. The gradient of
            (sum of losses over targets) / num_targets, summed over ranks and micro-batches, is
            that of the global batch, however it is divided.
    """

    index: int
    epoch: int
    micro_batches: list[Batch]
    num_targets: int


@lru_cache(maxsize=4)
def epoch_order(num_rows: int, *, seed: int, epoch: int) -> RowNumbers:
    """The order of the rows in one epoch.

    Rows sorted by the raw 64-bit output of Philox 4x64-10 (Salmon et al. 2011) with key
    (seed, epoch): a published function, so the order is the same in every numpy. Read-only.
    """
    keys = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(num_rows)
    order = np.argsort(keys, kind="stable").astype(np.int64)
    order.flags.writeable = False
    return order


class TrainLoader:
    """Endless optimizer steps over one split, from any step on.

    Epoch e runs through ``epoch_order(..., epoch=e)``; a global batch is its next ``batch_size``
    rows, the last of an epoch may be smaller, and none reaches into the next epoch. A global batch
    is cut into world_size x num_micro_batches nearly equal pieces; where it has fewer rows than
    pieces, a piece is one filler, because under ZeRO-3 every rank runs every forward.

    Args:
        encoded: the rows, at least one, with labels.
        batch_size: rows of a global batch, over all ranks.
        micro_batch_size: the most rows of one forward of one rank.
        rank: this rank, 0 .. world_size-1.
        world_size: number of ranks.
        seed: of the order, 0 .. 2**64-1; alone decides which rows form a global batch.
        pad_id: the tokenizer's padding token.
        pad_to_multiple_of: widths are rounded up to it.
    """

    def __init__(
        self,
        encoded: Encoded,
        *,
        batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        pad_id: int,
        pad_to_multiple_of: int = 1,
    ) -> None:
        assert min(batch_size, micro_batch_size) > 0
        assert 0 <= rank < world_size
        self._encoded = encoded
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._seed = seed
        self._pad_id = pad_id
        self._pad_to_multiple_of = pad_to_multiple_of
        self._num_targets = np.array(
            [np.count_nonzero(target != IGNORED) for target in encoded.targets], dtype=np.int64
        )
        assert self._num_targets.all(), "rows to train on, each with a target"
        self.num_micro_batches = _divide_up(batch_size, micro_batch_size * world_size)
        self.steps_per_epoch = _divide_up(encoded.num_rows, batch_size)

    def global_rows(self, index: int) -> RowNumbers:
        """The rows of the global batch of one optimizer step, over all ranks."""
        epoch, place = divmod(index, self.steps_per_epoch)
        order = epoch_order(self._encoded.num_rows, seed=self._seed, epoch=epoch)
        return order[place * self._batch_size : (place + 1) * self._batch_size]

    def step(self, index: int) -> Step:
        """Optimizer step ``index``, found by arithmetic."""
        rows = self.global_rows(index)
        pieces = np.array_split(rows, self.num_micro_batches * self._world_size)
        return Step(
            index=index,
            epoch=index // self.steps_per_epoch,
            micro_batches=[
                make_batch(
                    self._encoded,
                    piece,
                    pad_id=self._pad_id,
                    pad_to_multiple_of=self._pad_to_multiple_of,
                )
                for piece in pieces[self._rank :: self._world_size]
            ],
            num_targets=int(self._num_targets[rows].sum()),
        )

    def steps(self, start: int = 0) -> Iterator[Step]:
        """Steps start, start + 1, ... without end; no epoch is replayed to find the first."""
        return map(self.step, count(start))


class EvalLoader:
    """Every row exactly once over all ranks, in as many batches on every rank.

    Rows are sorted by source length, longest first (what does not fit fails at once), and dealt to
    the ranks in turn; a rank without a row for its last batch gets one filler.

    Args:
        encoded: the rows, at least one.
        micro_batch_size: the most rows of one batch of one rank.
        rank: this rank, 0 .. world_size-1.
        world_size: number of ranks.
        pad_id: the tokenizer's padding token.
        pad_to_multiple_of: widths are rounded up to it.
    """

    def __init__(
        self,
        encoded: Encoded,
        *,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        pad_id: int,
        pad_to_multiple_of: int = 1,
    ) -> None:
        assert min(micro_batch_size, encoded.num_rows) > 0
        assert 0 <= rank < world_size
        self._encoded = encoded
        self._micro_batch_size = micro_batch_size
        self._pad_id = pad_id
        self._pad_to_multiple_of = pad_to_multiple_of
        lengths = np.array([len(ids) for ids in encoded.input_ids])
        self._rows = np.argsort(-lengths, kind="stable").astype(np.int64)[rank::world_size]
        self._num_batches = _divide_up(encoded.num_rows, micro_batch_size * world_size)

    def __len__(self) -> int:
        """Batches of each rank."""
        return self._num_batches

    def __iter__(self) -> Iterator[Batch]:
        """The batches of this rank, the same at every call."""
        size = self._micro_batch_size
        for start in range(0, len(self) * size, size):
            yield make_batch(
                self._encoded,
                self._rows[start : start + size],
                pad_id=self._pad_id,
                pad_to_multiple_of=self._pad_to_multiple_of,
            )


def _divide_up(amount: int, size: int) -> int:
    return -(-amount // size)
