"""Answers for every row of a split, over all ranks, each row exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from scalepet import dist
from scalepet.backbones import write_text
from scalepet.data import FILLER, Batch, EvalLoader, Examples
from scalepet.engine.loop import LossSum, on_device

T = TypeVar("T")
Track = Callable[[Iterable[Batch], int], Iterable[Batch]]
"""``(batches, how many) -> the same batches``: a progress bar."""


@dataclass(frozen=True)
class Answerer:
    """How a model answers.

    Attributes:
        labels: label words in class order (classification).
        loss_sum: the family's loss.
        class_scores: as ``backbones.class_scores``, of the backbone.
        decode: token ids of some rows -> their texts.
        max_new_tokens: the longest text that is written.
        num_beams: beams of the search; 1 is greedy.
        all_ranks_together: the backbone is sharded, so no rank may stop writing before the others.
    """

    labels: tuple[str, ...]
    loss_sum: LossSum
    class_scores: Callable[..., Tensor]
    decode: Callable[[Tensor], list[str]]
    max_new_tokens: int
    num_beams: int = 1
    all_ranks_together: bool = False


@dataclass(frozen=True)
class Answers:
    """What a model said.

    Attributes:
        texts: one answer a row, in the order of the split, the same on every rank.
        loss: mean cross-entropy over all targets, in nats; None where the rows have no targets.
    """

    texts: list[str]
    loss: float | None


@torch.no_grad()
def answer_all(
    model: nn.Module,
    encoded: Examples,
    answerer: Answerer,
    *,
    micro_batch_size: int,
    pad_id: int | None,
    device: torch.device,
    track: Track = lambda batches, total: batches,
) -> Answers:
    """The answers to all rows. All ranks together; dropout is off.

    Args:
        model: a bare module or ``Engine.module``.
        micro_batch_size: rows a rank and forward.
        track: wraps the batches in a progress bar.
    """
    answer = _write_texts if encoded.form == "text" else _choose_labels
    loss, num_targets = torch.zeros((), dtype=torch.float64, device=device), 0

    def texts_of(batch: Batch, tensors: Mapping[str, Tensor]) -> list[str]:
        nonlocal num_targets
        texts, batch_loss = answer(model, batch, encoded, answerer, tensors)
        loss.add_(batch_loss)
        num_targets += batch.num_targets
        return texts

    texts = each_row(
        model,
        encoded,
        texts_of,
        micro_batch_size=micro_batch_size,
        pad_id=pad_id,
        device=device,
        track=track,
    )
    total_targets = dist.sum_over_ranks(num_targets)
    total_loss = float(dist.sum_over_ranks(loss))
    return Answers(texts=texts, loss=total_loss / total_targets if total_targets else None)


@torch.no_grad()
def each_row(
    model: nn.Module,
    encoded: Examples,
    of_batch: Callable[[Batch, Mapping[str, Tensor]], list[T]],
    *,
    micro_batch_size: int,
    pad_id: int | None,
    device: torch.device,
    track: Track = lambda batches, total: batches,
) -> list[T]:
    """What ``of_batch`` says of every row, in their order, the same on every rank. All ranks
    together; dropout is off.

    Args:
        of_batch: ``(batch, its tensors on the device) -> one value a row``; values must pickle.
    """
    model.eval()
    loader = EvalLoader(
        encoded,
        micro_batch_size=micro_batch_size,
        rank=dist.rank(),
        world_size=dist.world_size(),
        pad_id=pad_id,
        together=dist.together,
    )
    mine: dict[int, T] = {}
    for batch in track(loader, len(loader)):
        values = of_batch(batch, on_device(batch, device))
        mine.update(zip(batch.rows.tolist(), values, strict=True))
    mine.pop(FILLER, None)
    by_row: dict[int, T] = {}
    for part in dist.all_gather_objects(mine):
        by_row.update(part)
    return [by_row[row] for row in range(encoded.num_rows)]


def _choose_labels(
    model: nn.Module,
    batch: Batch,
    encoded: Examples,
    answerer: Answerer,
    tensors: Mapping[str, Tensor],
) -> tuple[list[str], Tensor]:
    """The most probable label word of each row, and the summed loss of the right ones."""
    scores = answerer.class_scores(model, tensors, encoded.label_ids)
    texts = [answerer.labels[index] for index in scores.argmax(-1).tolist()]
    if encoded.classes is None:
        return texts, scores.new_zeros(())
    # A filler has row -1 and weight 0, whatever class it finds there.
    classes = torch.from_numpy(encoded.classes[batch.rows]).to(scores.device, torch.int64)
    counts = torch.from_numpy(batch.rows != FILLER).to(scores.device)
    losses = -scores.gather(1, classes[:, None]).squeeze(1)
    return texts, (losses * counts).sum()


def _write_texts(
    model: nn.Module,
    batch: Batch,
    encoded: Examples,
    answerer: Answerer,
    tensors: Mapping[str, Tensor],
) -> tuple[list[str], Tensor]:
    """The text that the model writes for each row, and the summed loss of the right texts."""
    ids = write_text(
        model,
        tensors,
        max_new_tokens=answerer.max_new_tokens,
        num_beams=answerer.num_beams,
        all_ranks_together=answerer.all_ranks_together,
    )
    return answerer.decode(ids), answerer.loss_sum(model, tensors)
