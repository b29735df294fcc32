"""From a stream's description to its rows: each experience gets those of its classes, by number.

Rows are chosen by their numbers; texts and pictures stay where they are until they are encoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scalepet.data.benchmarks import folder_of
from scalepet.data.draws import at, draw, first_filled
from scalepet.data.forms import RowNumbers
from scalepet.data.labels import class_table, discover_labels, read_classes
from scalepet.data.rows import BadRows, Rows, class_names, listed
from scalepet.data.sources import load_splits
from scalepet.data.stream import (
    Experience,
    Member,
    Stream,
    StreamSpec,
    division_faults,
    overlap_faults,
    placed,
    unique,
)
from scalepet.data.task import Task
from scalepet.errors import ConfigError, DataError, Faults

SPLITS = ("train", "eval")
MAX_NAME_LENGTH = 60


@dataclass(frozen=True)
class DataSet:
    """One data set of a stream.

    Args:
        member: its name and its task, whose labels are known by now.
        rows: of "train" and "eval".
        classes: class of each of these rows, as a place in the task's labels.
    """

    member: Member
    rows: Mapping[str, Rows]
    classes: Mapping[str, RowNumbers]


@dataclass(frozen=True)
class Part:
    """An experience before its rows are chosen: some labels of a data set, or all."""

    name: str
    task: Task
    data_set: DataSet


def load_stream(
    spec: StreamSpec, *, undivided: bool = False
) -> tuple[Stream, list[dict[str, Rows]]]:
    """The stream and, for each experience, the rows of "train" and "eval" with its classes.

    Rows keep the order of their split. Which of them a limit keeps depends on the seed, the split,
    the label words and a row's place among the rows of its class alone.

    Args:
        undivided: all classes of the one data set at once, in their order, instead of in portions.

    Raises:
        ConfigError: everything wrong with the description and with its data sets: they cannot be
            found or read, have labels that are not allowed, share label words, cannot be divided
            like this, or have not the classes of the published stream.
        DataError: a class without rows in a split of its experience.
    """
    faults = spec.faults() or _missing_folders(spec)
    if faults:
        raise ConfigError(faults)
    data_sets = _load_all(spec)
    num_portions = 1 if undivided else spec.num_portions
    if spec.num_portions:
        parts = _portions(spec, data_sets[0], num_portions)
    else:
        parts = _sequence(data_sets)
    chosen = [{split: _choose(spec, part, split) for split in SPLITS} for part in parts]
    faults = [
        fault
        for part, numbers in zip(parts, chosen, strict=True)
        for fault in _empty_classes(spec, part, numbers)
    ]
    if faults:
        raise DataError(faults)
    return _stream_of(parts), [
        {split: at(part.data_set.rows[split], numbers[split]) for split in SPLITS}
        for part, numbers in zip(parts, chosen, strict=True)
    ]


def _missing_folders(spec: StreamSpec) -> list[str]:
    if spec.root is None:
        return []
    folders = [Path(member.task.source.path) for member in spec.members()]
    return [
        f"stream.root {spec.root!r} has no folder {folder.name!r}; "
        "allowed: one made by save_to_disk, or with data files in it"
        for folder in folders
        if not folder.is_dir()
    ]


def _load_all(spec: StreamSpec) -> list[DataSet]:
    """Every data set, and all of their faults together."""
    faults, data_sets = Faults(), []
    for member in spec.members():
        own = Faults()
        with own.noted():
            data_sets.append(_load(member, skip_blank=spec.skips_blank))
        faults += [placed(member.where, fault) for fault in dict.fromkeys(own)]  # of both splits
    if faults and spec.benchmark and not spec.root:
        folders = ", ".join(folder_of(task.source) for task in spec.benchmark.tasks.values())
        faults.append(
            f"stream.root is not given; allowed, without the hub: a folder with {folders}"
        )
    faults.raise_any()
    members = [data_set.member for data_set in data_sets]
    if spec.num_portions:
        faults += division_faults(spec, members[0].task.labels)
    elif not spec.shares_labels:
        faults += overlap_faults(members)
    faults += _wrong_number_of_classes(spec, members)
    faults.raise_any()
    return data_sets


def _load(member: Member, *, skip_blank: bool) -> DataSet:
    faults, classes = Faults(), dict[str, RowNumbers]()
    task = member.task
    rows = load_splits(task, SPLITS).rows
    if skip_blank:  # rows without a label are of no class; of the others, the classes choose
        rows = {split: _with_labels(task, found) for split, found in rows.items()}
    if not task.labels:
        task = replace(task, labels=discover_labels(rows["train"], task.target))
    for split in SPLITS:
        with faults.noted(f"split {split!r}: "):
            classes[split] = _read_classes(task, rows[split])
    faults.raise_any()
    return DataSet(replace(member, task=task), rows, classes)


def _with_labels(task: Task, rows: Rows) -> Rows:
    every = np.arange(len(rows))
    filled = first_filled(rows, every, None, [task.target])
    return rows if len(filled) == len(every) else at(rows, filled)


def _read_classes(task: Task, rows: Rows) -> RowNumbers:
    bad = BadRows()
    classes = read_classes(task, rows, bad)
    bad.refuse(num_rows=len(rows))
    return np.array(classes, dtype=np.int64)


def _wrong_number_of_classes(spec: StreamSpec, members: Sequence[Member]) -> Iterator[str]:
    num_classes = len({word for member in members for word in member.task.labels})
    if spec.benchmark and num_classes != spec.benchmark.num_classes:
        yield (
            f"stream.name {spec.name!r} has {spec.benchmark.num_classes} classes, its data has "
            f"{num_classes}; allowed: the published data sets"
        )


def _sequence(data_sets: Sequence[DataSet]) -> list[Part]:
    return [Part(data_set.member.name, data_set.member.task, data_set) for data_set in data_sets]


def _portions(spec: StreamSpec, data_set: DataSet, num_portions: int | None) -> list[Part]:
    """The classes of one data set, divided like ``np.array_split``."""
    labels = data_set.member.task.labels
    keys = draw(len(labels), seed=spec.seed, purpose="order of classes")
    drawn = tuple(labels[place] for place in np.argsort(keys, kind="stable"))
    words = spec.class_order or drawn
    assert num_portions is not None
    parts = []
    for number, places in enumerate(np.array_split(np.arange(len(words)), num_portions)):
        portion = tuple(words[place] for place in places)
        name = f"{number + 1} {portion[0]}+{len(portion) - 1} more"
        parts.append(Part(name, _portion_task(data_set, portion), data_set))
    return parts


def _portion_task(data_set: DataSet, words: tuple[str, ...]) -> Task:
    """The task with these label words only. Their raw values are spelled out, because numbers mean
    places among all labels.
    """
    task = data_set.member.task
    values: dict[bool | int | str, str] = {}
    for rows in data_set.rows.values():
        names = class_names(rows, task.target)
        table = class_table(task, names)
        if names is not None:  # by name, since a label_values entry cannot mean a position
            table = {
                name: table[str(position)]
                for position, name in enumerate(names)
                if str(position) in table
            }
        values.update((raw, task.labels[index]) for raw, index in table.items())
    return replace(
        task,
        labels=words,
        label_values={raw: word for raw, word in values.items() if word in words},
    )


def _choose(spec: StreamSpec, part: Part, split: str) -> RowNumbers:
    """The rows of an experience, sorted: those of its classes, within the limits."""
    rows, classes = part.data_set.rows[split], part.data_set.classes[split]
    places = map(part.data_set.member.task.labels.index, part.task.labels)
    numbers = [np.flatnonzero(classes == place) for place in places]
    keys = [
        draw(len(of_class), seed=spec.seed, purpose=f"{split} rows of {word}")
        for of_class, word in zip(numbers, part.task.labels, strict=True)
    ]
    limit, total = spec.row_limits(split)
    if total is not None:
        numbers, keys, limit = [np.concatenate(numbers)], [np.concatenate(keys)], total
    columns = part.task.source_columns if spec.skips_blank else ()
    kept = [
        first_filled(rows, candidates[np.lexsort((candidates, drawn))], limit, columns)
        for candidates, drawn in zip(numbers, keys, strict=True)
    ]
    return np.sort(np.concatenate(kept))


def _empty_classes(spec: StreamSpec, part: Part, chosen: Mapping[str, RowNumbers]) -> Iterator[str]:
    member = part.data_set.member
    for split, numbers in chosen.items():
        places = np.unique(part.data_set.classes[split][numbers])
        there = {member.task.labels[place] for place in places}
        empty = [word for word in part.task.labels if word not in there]
        if empty:
            limit = spec.row_limits(split)[1]
            within = f" within stream.{split}_rows {limit}" if limit else ""
            yield (
                f"{member.where}: split {split!r} has no row of {listed(empty)}{within}; "
                "allowed: rows of every class in both splits"
            )


def _stream_of(parts: Sequence[Part]) -> Stream:
    classes = tuple(dict.fromkeys(word for part in parts for word in part.task.labels))
    place = {word: index for index, word in enumerate(classes)}
    names = unique([_file_name(part.name) for part in parts])
    return Stream(
        classes=classes,
        experiences=tuple(
            Experience(name, part.task, tuple(place[word] for word in part.task.labels))
            for name, part in zip(names, parts, strict=True)
        ),
    )


def _file_name(name: str) -> str:
    return re.sub(r"[^\w .+-]+", "-", name)[:MAX_NAME_LENGTH].strip()
