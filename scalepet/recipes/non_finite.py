"""Steps whose loss or gradient is not finite: they change nothing; here they are told, kept for
inspection, and end the run where the config says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from scalepet import dist, engine
from scalepet.build import Plan
from scalepet.data import IGNORED, Batch
from scalepet.engine import Skipped, StepReport
from scalepet.errors import ScalepetError
from scalepet.tracking import METRICS_FILE, Trackers, Value, read_records

NON_FINITE = "non-finite"
"""The folder of the batches, in the run folder."""

MAX_IN_A_ROW = 10
"""Skipped steps, after which a run ends however it is configured. A bad row or a spike costs one
step or two; ten halvings bring fp16's loss scale from 65,536 to 128 or less, which holds gradients
that no healthy training has. What goes on longer is due to the numbers or the data.
"""

MAX_KEPT = 10
"""Batches that one process keeps: they tell the same soon, and a long run must not fill the disk.
"""


@dataclass
class NonFinite:
    """What a run does about skipped steps.

    Attributes:
        plan: its config says whether to go on; its tokenizer makes the batch readable.
        num_skipped: by this process.
    """

    plan: Plan
    trackers: Trackers
    console: Console
    num_skipped: int = field(default=0, init=False)
    _num_in_a_row: int = field(default=0, init=False)
    _num_kept: int = field(default=0, init=False)

    def look(self, report: StepReport, *, before: int = 0, save: Callable[[], None]) -> None:
        """After every step. All ranks together.

        Args:
            before: steps of the run before those that the report counts.
            save: saves the state before this step, where the run ends here.

        Raises:
            ScalepetError: the run ends here.
            CheckpointError: the batch or the state cannot be written.
        """
        if report.skipped is None:
            self._num_in_a_row = 0
            return
        self.num_skipped += 1
        self._num_in_a_row += 1
        num_steps = before + report.num_steps
        words = _words(report, report.skipped, num_steps)
        if not report.skipped.is_overflow and self._num_kept < MAX_KEPT:
            self._num_kept += 1
            words += f"; its batch is in {self._keep(report, report.skipped, num_steps)}"
        values: dict[str, Value] = {
            "what": report.skipped.what,
            "loss": report.loss,
            "in_a_row": self._num_in_a_row,
        }
        self.trackers.log(num_steps, values, kind="skipped")
        reason = self._reason_to_stop(report.skipped)
        if reason is not None:
            save()
            raise ScalepetError(f"{words}; {reason}")
        if dist.is_main():
            self.console.print(words, markup=False, highlight=False, soft_wrap=True)

    def _reason_to_stop(self, skipped: Skipped) -> str | None:
        config = self.plan.config
        others = {"fp32": "", "bf16": ", precision: fp32", "fp16": ", precision: bf16 or fp32"}
        hint = f"try a smaller train.learning_rate{others[config.precision]}"
        if self._num_in_a_row > MAX_IN_A_ROW:
            return f"that is {self._num_in_a_row} in a row, and {MAX_IN_A_ROW} are allowed; {hint}"
        if config.train.on_non_finite == "skip" or skipped.is_overflow:
            return None
        return f"{hint}, or train.on_non_finite: skip, with --resume"

    def _keep(self, report: StepReport, skipped: Skipped, num_steps: int) -> Path:
        """Write the rows of every rank that the numbers came from. All ranks together."""
        folder = self.plan.config.output / NON_FINITE / f"step-{num_steps:06}"
        if dist.rank() not in skipped.ranks:
            dist.together(lambda: None)
            return folder
        record = {
            "what": skipped.what,
            "step": num_steps,
            "epoch": report.epoch,
            "loss": report.loss,
            "learning_rate": report.learning_rate,
            "precision": self.plan.config.precision,
            "micro_batches": [
                {"rows": batch.rows.tolist(), "loss_sum": loss, "texts": self._texts(batch)}
                for batch, loss in zip(skipped.batches, skipped.losses, strict=True)
            ],
        }
        own = folder / f"rank-{dist.rank()}"
        dist.together(
            lambda: engine.write_folder(own, tensors=dict(_named(skipped.batches)), record=record)
        )
        return folder

    def _texts(self, batch: Batch) -> list[dict[str, str]]:
        """The rows as their tokens read, and their targets where these are tokens, too."""
        if self.plan.tokenizer is None:
            return []
        columns: dict[str, Any] = {"input_ids": batch.tensors["input_ids"]}
        if batch.tensors["labels"].dim() == 2:
            columns["labels"] = batch.tensors["labels"].masked_fill(
                batch.tensors["labels"] == IGNORED, self.plan.pad_id or 0
            )
        decode = self.plan.tokenizer.batch_decode
        read = {name: decode(ids, skip_special_tokens=True) for name, ids in columns.items()}
        return [dict(zip(read, row, strict=True)) for row in zip(*read.values(), strict=True)]


def num_skipped(folder: Path) -> int:
    """Skipped steps of the run in a folder, by whatever process; 0 on ranks that do not write."""
    if not dist.is_main():
        return 0
    records = read_records(folder / METRICS_FILE)
    return sum(record["kind"] == "skipped" for record in records)


def _named(batches: tuple[Batch, ...]) -> Iterator[tuple[str, Tensor]]:
    for number, batch in enumerate(batches):
        for name, tensor in batch.tensors.items():
            yield f"{number}/{name}", tensor


def _words(report: StepReport, skipped: Skipped, num_steps: int) -> str:
    """What happened, in one sentence."""
    value = str(report.loss) if skipped.what == "the loss" else "not finite"
    where = f" on rank {', '.join(map(str, skipped.ranks))}" if skipped.ranks else ""
    why = ": fp16's loss scale falls" if skipped.is_overflow else ""
    return f"{skipped.what} is {value} at step {num_steps:,}{where}, so nothing was changed{why}"
