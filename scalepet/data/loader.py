"""Which rows go through which forward of which rank: arithmetic, and the same at any world size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count
from typing import Any

import numpy as np

from scalepet.data.batch import Batch, Epoch
from scalepet.data.examples import Examples
from scalepet.data.forms import RowNumbers

Together = Callable[[Callable[[], Any]], Any]
"""``(make) -> what it makes``; raises on every rank what it raises on one."""


def alone(make: Callable[[], Any]) -> Any:
    """What ``make`` makes, with no other rank to wait for."""
    return make()


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
        examples: the rows, at least one, with labels.
        batch_size: rows of a global batch, over all ranks.
        micro_batch_size: the most rows of one forward of one rank.
        rank: this rank, 0 .. world_size-1.
        world_size: number of ranks.
        seed: of all chance, 0 .. 2**64-1; alone decides which rows form a global batch, and with
            the epoch and the row what is seen of a picture.
        pad_id: the tokenizer's padding token; None for pictures.
        pad_to_multiple_of: widths are rounded up to it.
        together: calls what makes batches of rows that are read late, so that no rank goes on
            alone where another one cannot read a row.

    Attributes:
        batch_size: as given.
        num_micro_batches: forwards of a rank in every step.
        steps_per_epoch: the last one may have fewer rows.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        pad_id: int | None,
        pad_to_multiple_of: int = 1,
        together: Together = alone,
    ) -> None:
        assert min(batch_size, micro_batch_size) > 0
        assert 0 <= rank < world_size
        self._examples = examples
        self.batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._seed = seed
        self._pad_id = pad_id
        self._pad_to_multiple_of = pad_to_multiple_of
        self._together = together if examples.is_read_late else alone
        self._num_targets = examples.num_targets
        assert self._num_targets.all(), "rows to train on, each with a target"
        self.num_micro_batches = _divide_up(batch_size, micro_batch_size * world_size)
        self.steps_per_epoch = _divide_up(examples.num_rows, batch_size)

    def global_rows(self, index: int) -> RowNumbers:
        """The rows of the global batch of one optimizer step, over all ranks."""
        epoch, place = divmod(index, self.steps_per_epoch)
        order = epoch_order(self._examples.num_rows, seed=self._seed, epoch=epoch)
        return order[place * self.batch_size : (place + 1) * self.batch_size]

    def step(self, index: int) -> Step:
        """Optimizer step ``index``, found by arithmetic.

        All ranks together where rows are read late.

        Raises:
            DataError: a row that is read late cannot be read.
        """
        return self._together(partial(self._step, index))

    def _step(self, index: int) -> Step:
        rows, epoch = self.global_rows(index), index // self.steps_per_epoch
        pieces = np.array_split(rows, self.num_micro_batches * self._world_size)
        return Step(
            index=index,
            epoch=epoch,
            micro_batches=[
                self._examples.batch(
                    piece,
                    epoch=Epoch(self._seed, epoch),
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

    Rows are sorted by length, longest first (what does not fit fails at once), and dealt to
    the ranks in turn; a rank without a row for its last batch gets one filler.

    Args:
        examples: the rows, at least one.
        micro_batch_size: the most rows of one batch of one rank.
        rank: this rank, 0 .. world_size-1.
        world_size: number of ranks.
        pad_id: the tokenizer's padding token; None for pictures.
        pad_to_multiple_of: widths are rounded up to it.
        together: calls what makes batches of rows that are read late, so that no rank goes on
            alone where another one cannot read a row.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        pad_id: int | None,
        pad_to_multiple_of: int = 1,
        together: Together = alone,
    ) -> None:
        assert min(micro_batch_size, examples.num_rows) > 0
        assert 0 <= rank < world_size
        self._examples = examples
        self._micro_batch_size = micro_batch_size
        self._pad_id = pad_id
        self._pad_to_multiple_of = pad_to_multiple_of
        self._together = together if examples.is_read_late else alone
        self._rows = np.argsort(-examples.lengths, kind="stable").astype(np.int64)[rank::world_size]
        self._num_batches = _divide_up(examples.num_rows, micro_batch_size * world_size)

    def __len__(self) -> int:
        """Batches of each rank."""
        return self._num_batches

    def __iter__(self) -> Iterator[Batch]:
        """The batches of this rank, the same at every call. All ranks together where rows are read
        late.

        Raises:
            DataError: a row that is read late cannot be read.
        """
        size = self._micro_batch_size
        for start in range(0, len(self) * size, size):
            yield self._together(partial(self._batch, self._rows[start : start + size]))

    def _batch(self, rows: RowNumbers) -> Batch:
        return self._examples.batch(
            rows, pad_id=self._pad_id, pad_to_multiple_of=self._pad_to_multiple_of
        )


def _divide_up(amount: int, size: int) -> int:
    return -(-amount // size)
