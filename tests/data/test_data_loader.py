"""Batches: the same rows and the same loss at any world size, every row once in evaluation."""

import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from scalepet.data import FILLER, IGNORED, Batch, Encoded, EvalLoader, Step, TrainLoader
from scalepet.data.batch import make_batch
from scalepet.data.loader import epoch_order

Make = Callable[..., Encoded]
PAD = 0
LAYOUTS = [(1, 16), (1, 3), (2, 4), (2, 1), (3, 2), (5, 1), (5, 7)]
"""World size and micro-batch size."""


def loaders(encoded: Encoded, *, world: int, micro: int, batch: int = 10) -> list[TrainLoader]:
    return [
        TrainLoader(
            encoded,
            batch_size=batch,
            micro_batch_size=micro,
            rank=rank,
            world_size=world,
            seed=7,
            pad_id=PAD,
        )
        for rank in range(world)
    ]


def take(loader: TrainLoader, num_steps: int, start: int = 0) -> list[Step]:
    return list(islice(loader.steps(start), num_steps))


def rows_of(batches: list[Batch]) -> list[int]:
    return [int(row) for batch in batches for row in batch.rows if row != FILLER]


def same(left: Batch, right: Batch) -> bool:
    return left.rows.tolist() == right.rows.tolist() and all(
        torch.equal(left.tensors[name], right.tensors[name]) for name in left.tensors
    )


@pytest.mark.parametrize(("world", "micro"), LAYOUTS)
@pytest.mark.parametrize("form", ["text", "head"])
def test_global_batches_are_the_same_at_any_world_size(
    make_encoded: Make, world: int, micro: int, form: str
) -> None:
    encoded = make_encoded(23, form=form)
    (alone,) = loaders(encoded, world=1, micro=16)
    ranks = loaders(encoded, world=world, micro=micro)
    for index, expected in enumerate(take(alone, 8)):
        steps = [loader.step(index) for loader in ranks]
        batches = [batch for step in steps for batch in step.micro_batches]
        assert sorted(rows_of(batches)) == sorted(expected.micro_batches[0].rows.tolist())
        assert {step.num_targets for step in steps} == {expected.num_targets}
        assert sum(batch.num_targets for batch in batches) == expected.num_targets
        assert {step.epoch for step in steps} == {index // 3}
        assert {len(step.micro_batches) for step in steps} == {math.ceil(10 / (world * micro))}
        sizes = [len(batch.rows) for batch in batches]
        assert max(sizes) <= micro
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("world", "micro"), LAYOUTS)
def test_a_loss_over_num_targets_is_the_same_at_any_world_size(
    make_encoded: Make, world: int, micro: int
) -> None:
    encoded = make_encoded(23)
    expected = np.mean(
        np.concatenate([encoded.targets[row] for row in epoch_order(23, seed=7, epoch=0)[:10]])
    )
    total = 0.0
    for loader in loaders(encoded, world=world, micro=micro):
        step = loader.step(0)
        for batch in step.micro_batches:
            labels = batch.tensors["labels"]
            total += float(labels[labels != IGNORED].sum()) / step.num_targets
    assert total == pytest.approx(float(expected))


def test_an_epoch_holds_every_row_once_and_ends_with_the_rest(make_encoded: Make) -> None:
    (loader,) = loaders(make_encoded(23), world=1, micro=10)
    assert loader.steps_per_epoch == 3
    steps = take(loader, 6)
    assert [step.index for step in steps] == list(range(6))
    assert [step.epoch for step in steps] == [0, 0, 0, 1, 1, 1]
    assert [len(rows_of(step.micro_batches)) for step in steps] == [10, 10, 3] * 2
    epochs = [
        [row for step in part for row in rows_of(step.micro_batches)]
        for part in (steps[:3], steps[3:])
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(23))
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(("world", "micro"), [(1, 4), (3, 1)])
def test_starting_at_a_step_equals_skipping_to_it(
    make_encoded: Make, world: int, micro: int
) -> None:
    for loader in loaders(make_encoded(23), world=world, micro=micro):
        whole = take(loader, 10)
        for start in range(10):
            for step, expected in zip(take(loader, 10 - start, start), whole[start:], strict=True):
                assert (step.index, step.epoch) == (expected.index, expected.epoch)
                assert step.num_targets == expected.num_targets
                assert all(map(same, step.micro_batches, expected.micro_batches))


def test_starting_far_on_reads_nothing_before(make_encoded: Make) -> None:
    (loader,) = loaders(make_encoded(23), world=1, micro=10)
    step = next(loader.steps(3 * 10**9 + 1))
    assert (step.epoch, step.index) == (10**9, 3 * 10**9 + 1)
    assert len(step.micro_batches[0].rows) == 10


def philox(num_words: int, *, key: tuple[int, int]) -> list[int]:
    """Philox 4x64-10 in whole numbers, from the paper; numpy counts blocks from 1."""
    mask = 2**64 - 1
    words: list[int] = []
    for block in range(1, num_words // 4 + 2):
        c0, c1, c2, c3 = block, 0, 0, 0
        k0, k1 = key
        for _ in range(10):
            low, high = c0 * 0xD2E7470EE14C6C93, c2 * 0xCA5A826395121157
            c0, c1, c2, c3 = (high >> 64) ^ c1 ^ k0, high & mask, (low >> 64) ^ c3 ^ k1, low & mask
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
        words += [c0, c1, c2, c3]
    return words[:num_words]


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (1, 0), (0, 1), (2**64 - 1, 12)])
def test_orders_follow_the_published_generator(seed: int, epoch: int) -> None:
    words = philox(101, key=(seed, epoch))
    expected = sorted(range(101), key=words.__getitem__)
    assert epoch_order(101, seed=seed, epoch=epoch).tolist() == expected


def test_orders_depend_on_seed_and_epoch() -> None:
    orders = {
        tuple(epoch_order(50, seed=s, epoch=e))
        for s, e in [(0, 0), (0, 1), (1, 0), (1, 1), (2**64 - 1, 0)]
    }
    assert len(orders) == 5


def test_orders_are_uniform() -> None:
    first = [epoch_order(4, seed=3, epoch=epoch)[0] for epoch in range(4000)]
    assert np.abs(np.bincount(first) - 1000).max() < 5 * math.sqrt(4000 * 3 / 16)


@pytest.mark.parametrize("form", ["text", "head"])
def test_fillers_keep_ranks_in_step(make_encoded: Make, form: str) -> None:
    encoded = make_encoded(7, form=form)
    steps = [loader.step(0) for loader in loaders(encoded, world=5, micro=1, batch=6)]
    pieces = [batch for step in steps for batch in step.micro_batches]
    fillers = [batch for batch in pieces if batch.rows.tolist() == [FILLER]]
    assert (len(pieces), len(fillers)) == (10, 4)
    for filler in fillers:
        assert (filler.num_targets, filler.num_tokens) == (0, 0)
        assert filler.tensors["input_ids"].shape == (1, 1)
        assert filler.tensors["attention_mask"].tolist() == [[1]]
        assert filler.tensors["labels"].tolist() == ([IGNORED] if form == "head" else [[IGNORED]])


def test_more_ranks_than_rows(make_encoded: Make) -> None:
    ranks = loaders(make_encoded(2), world=5, micro=1, batch=3)
    rows = [rows_of(loader.step(0).micro_batches) for loader in ranks]
    assert sorted(map(len, rows)) == [0, 0, 0, 1, 1]
    assert {loader.steps_per_epoch for loader in ranks} == {1}


def test_rows_without_targets_cannot_train(make_encoded: Make) -> None:
    encoded = make_encoded(3)
    encoded.targets[1] = np.array([IGNORED], np.int32)
    with pytest.raises(AssertionError, match="each with a target"):
        loaders(encoded, world=1, micro=1)


EVAL_CASES = [
    (rows, world, micro)
    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 25, 31)
    for world in (1, 2, 3, 4, 5, 8)
    for micro in (1, 2, 3, 5, 16)
]


def eval_loaders(encoded: Encoded, *, world: int, micro: int) -> Iterator[EvalLoader]:
    for rank in range(world):
        yield EvalLoader(encoded, micro_batch_size=micro, rank=rank, world_size=world, pad_id=PAD)


def test_evaluation_sees_every_row_once(make_encoded: Make) -> None:
    assert len(EVAL_CASES) == 360
    for num_rows, world, micro in EVAL_CASES:
        ranks = list(eval_loaders(make_encoded(num_rows), world=world, micro=micro))
        batches = [list(loader) for loader in ranks]
        expected = math.ceil(math.ceil(num_rows / world) / micro)
        assert {len(loader) for loader in ranks} == {expected}
        assert {len(part) for part in batches} == {expected}
        flat = [batch for part in batches for batch in part]
        assert sorted(rows_of(flat)) == list(range(num_rows))
        assert all(1 <= len(batch.rows) <= micro for batch in flat)
        assert all(FILLER not in batch.rows or len(batch.rows) == 1 for batch in flat)


def test_evaluation_is_sorted_by_length_and_repeats(make_encoded: Make) -> None:
    encoded = make_encoded(31)
    for loader in eval_loaders(encoded, world=2, micro=4):
        batches = list(loader)
        lengths = [len(encoded.input_ids[row]) for row in rows_of(batches)]
        assert lengths == sorted(lengths, reverse=True)
        assert all(map(same, batches, loader))


def ids(*rows: list[int]) -> list[Any]:
    return [np.array(row, np.int32) for row in rows]


def test_a_batch_is_padded_on_the_right() -> None:
    encoded = Encoded(
        form="text", input_ids=ids([5, 6], [7], [8, 9, 4]), targets=ids([3, 1], [2, 3, 1], [1])
    )
    batch = make_batch(encoded, np.array([1, 0]), pad_id=99)
    assert batch.tensors["input_ids"].tolist() == [[7, 99], [5, 6]]
    assert batch.tensors["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert batch.tensors["labels"].tolist() == [[2, 3, 1], [3, 1, IGNORED]]
    assert {tensor.dtype for tensor in batch.tensors.values()} == {torch.int64}
    assert (batch.num_targets, batch.num_tokens) == (5, 8)
    assert batch.rows.tolist() == [1, 0]


def test_a_batch_for_a_head() -> None:
    encoded = Encoded(form="head", input_ids=ids([5, 6], [7]), targets=ids([2], [0]))
    batch = make_batch(encoded, np.array([0, 1]), pad_id=PAD)
    assert batch.tensors["labels"].tolist() == [2, 0]
    assert (batch.num_targets, batch.num_tokens) == (2, 3)


def test_a_token_that_equals_the_padding_is_attended_to() -> None:
    encoded = Encoded(form="head", input_ids=ids([PAD, 5, PAD]), targets=ids([0]))
    batch = make_batch(encoded, np.array([0]), pad_id=PAD, pad_to_multiple_of=4)
    assert batch.tensors["attention_mask"].tolist() == [[1, 1, 1, 0]]


@pytest.mark.parametrize("form", ["text", "head"])
def test_wider_padding_adds_only_padding(make_encoded: Make, form: str) -> None:
    encoded = make_encoded(9, form=form)
    rows = np.arange(9)
    plain = make_batch(encoded, rows, pad_id=PAD)
    wide = make_batch(encoded, rows, pad_id=PAD, pad_to_multiple_of=8)
    assert (plain.num_targets, plain.num_tokens) == (wide.num_targets, wide.num_tokens)
    for name, fill in (("input_ids", PAD), ("attention_mask", 0), ("labels", IGNORED)):
        narrow, padded = plain.tensors[name], wide.tensors[name]
        if narrow.dim() == 1:
            assert torch.equal(narrow, padded)
            continue
        assert padded.shape[1] % 8 == 0
        assert torch.equal(padded[:, : narrow.shape[1]], narrow)
        assert (padded[:, narrow.shape[1] :] == fill).all()
