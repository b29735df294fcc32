"""Our splits: which rows of a source each has, and that no row stands in two of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from scalepet.data.draws import drawn, first_filled
from scalepet.data.forms import RowNumbers
from scalepet.data.rows import Rows, listed
from scalepet.data.task import Source
from scalepet.errors import ConfigError, DataError

SLICE_OF_ROWS = re.compile(r"([\w.]+)\[(-?\d*):(-?\d*)\]")
"""A split with row numbers; one with percentages cannot reach beyond its end."""

SEED_OF_TEST = 0
"""Reported rows are the same ones in every run that is compared."""


class Part(NamedTuple):
    """The rows ``start`` to ``stop - 1`` of a split of the data set."""

    name: str
    start: int
    stop: int


def parts_of(expression: str, sizes: Mapping[str, int], *, field: str) -> list[Part]:
    """What a split expression names.

    Args:
        sizes: split of the data set -> its rows.
        field: where the expression stands.

    Raises:
        ConfigError: it is none, or names a split or rows that do not exist.
    """
    from datasets import ReadInstruction

    try:
        slices = ReadInstruction.from_spec(expression).to_absolute(sizes)
    except Exception as error:
        raise ConfigError(
            f"{field} {expression!r}: {type(error).__name__}: {' '.join(str(error).split())}; "
            'allowed: splits and slices of them such as "name[:3000]"; '
            f"splits: {sizes_in_words(sizes)}"
        ) from error
    for name, *bounds in SLICE_OF_ROWS.findall(expression):
        if any(abs(int(bound)) > sizes[name] for bound in bounds if bound not in ("", "-")):
            raise ConfigError(
                f"{field} {expression!r} reaches beyond {name!r}; allowed: {sizes[name]} rows"
            )
    return [Part(one.splitname, one.from_, max(one.from_, one.to)) for one in slices]


def choose(
    source: Source, split: str, rows: Rows, columns: Sequence[str]
) -> tuple[RowNumbers, int]:
    """The numbers of the rows of our split, ascending, and how many more are blank.

    Args:
        rows: what the expression of the split names; of rows that are held out, that of "train".
        columns: those in which a blank row is blank.

    Raises:
        ConfigError: more rows are held out than there are to train on.
        DataError: there are none; or columns are missing.
    """
    expression = source.expression(split)
    every = np.arange(len(rows))
    filled = first_filled(rows, every, None, columns if source.skip_blank else ())
    if len(filled) == 0:
        raise DataError(
            f"task.source.splits.{split} {expression!r} of {source.path!r}: all {len(rows)} rows"
            f" are blank in {listed(columns)}; allowed: some that are not"
        )
    num_blank, numbers = len(every) - len(filled), filled
    if source.held_out is not None and split != "test":
        if source.held_out >= len(filled):
            raise ConfigError(
                f"task.source.held_out is {source.held_out}; allowed: 1 to {len(filled) - 1}, since"
                f" {expression!r} has {len(filled)} rows"
            )
        held_out = drawn(filled, source.held_out, seed=source.seed, purpose="held out rows")
        numbers = np.setdiff1d(filled, held_out) if split == "train" else held_out
    limit = {"train": source.train_rows, "eval": source.eval_rows, "test": source.test_rows}[split]
    seed = SEED_OF_TEST if split == "test" else source.seed
    return drawn(numbers, limit, seed=seed, purpose=f"{split} rows"), num_blank


def shared_row_faults(
    source: Source, parts: Mapping[str, Sequence[Part]], files: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Rows that stand in two of our splits, by pair of splits.

    Args:
        parts: our split -> what it names; with rows that are held out without "eval".
        files: split of the data set -> its files, by their one true name; empty where unknown.
    """
    for one, other in combinations(parts, 2):
        for name, start, stop in _common(parts[one], parts[other]):
            yield (
                f"task.source.splits.{one} {source.expression(one)!r} and {other}"
                f" {source.expression(other)!r} share the rows {start} to {stop - 1} of {name!r};"
                ' allowed: rows of their own, such as "train[:3000]" and "train[3000:]", or'
                " task.source.held_out for rows of eval"
            )
        yield from _shared_file_faults(one, other, parts, files)
    if source.held_out is not None and "train" in parts:
        yield from _twice_faults(source, parts["train"], files)


def _common(ours: Sequence[Part], theirs: Sequence[Part]) -> Iterator[Part]:
    for one in ours:
        for other in theirs:
            start, stop = max(one.start, other.start), min(one.stop, other.stop)
            if one.name == other.name and start < stop:
                yield Part(one.name, start, stop)


def _shared_file_faults(
    one: str,
    other: str,
    parts: Mapping[str, Sequence[Part]],
    files: Mapping[str, Sequence[str]],
) -> Iterator[str]:
    names = [dict.fromkeys(part.name for part in parts[split]) for split in (one, other)]
    for ours in names[0]:
        for theirs in names[1]:
            shared = sorted({*files.get(ours, ())} & {*files.get(theirs, ())})
            if ours != theirs and shared:
                yield (
                    f"task.source.files.{ours} and {theirs} both have {listed(shared)}, for {one}"
                    f" and {other}; allowed: one name for it, and slices of that such as"
                    f' "{ours}[:3000]" and "{ours}[3000:]" as splits'
                )


def _twice_faults(
    source: Source, parts: Sequence[Part], files: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """A row that stands twice among those to train on could be held out once."""
    names = dict.fromkeys(part.name for part in parts)
    paths = [path for name in names for path in files.get(name, ())]
    is_twice = any(list(_common([one], [other])) for one, other in combinations(parts, 2))
    if is_twice or len(set(paths)) < len(paths):
        yield (
            f"task.source.splits.train {source.expression('train')!r} has rows twice; allowed with"
            " task.source.held_out: every row once"
        )


def sizes_in_words(sizes: Mapping[str, int]) -> str:
    """The splits of a data set and their rows, for a message."""
    return listed([f"{name} ({size} rows)" for name, size in sizes.items()])
