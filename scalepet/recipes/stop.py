"""Where a run stops that is asked to: after an optimizer step or within an evaluation, on all ranks
together and with its state saved.

So the longest wait is that for one optimizer step or one batch of an evaluation, and the saving.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from scalepet import dist
from scalepet.data import Batch
from scalepet.engine import Track
from scalepet.signals import Stopped, StopRequest


@contextlib.contextmanager
def stopping_together(stop: StopRequest) -> Iterator[None]:
    """Inside, a request waits for a place where all ranks raise ``Stopped``; none leaves with it
    before all have come: a launcher kills the others as soon as one process has ended.
    """
    with stop.postponed():
        try:
            yield
        except Stopped:
            dist.barrier()
            raise


def until_asked(track: Track, stop: StopRequest) -> Track:
    """The batches of an evaluation, broken off before one once any rank is asked to stop.

    One number a batch goes through all ranks.
    """

    def checked(batches: Iterable[Batch], total: int) -> Iterator[Batch]:
        for batch in track(batches, total):
            if dist.sum_over_ranks(int(stop.is_made)):
                raise Stopped("stopped as asked; the same command with --resume goes on")
            yield batch

    return checked


def stopped(*, num_steps: int, total: int) -> Stopped:
    """What a run says that has saved its state."""
    return Stopped(
        f"stopped as asked after step {num_steps:,} of {total:,}, which is saved;"
        " the same command with --resume goes on"
    )
