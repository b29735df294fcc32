"""A stream of tasks: what stands in a config, what is wrong with it, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from scalepet.data.benchmarks import STREAMS, Benchmark, folder_of
from scalepet.data.rows import listed
from scalepet.data.task import KINDS, Source, Task
from scalepet.paths import expanded

MIN_PORTION = 2
"""Classes of a portion: a loss over one class alone is zero, whatever the backbone answers."""

COUNTS = ("train_rows_per_class", "eval_rows_per_class", "train_rows", "eval_rows")
NEEDED_WAYS = {
    "num_tasks": ("task",),
    "shared_labels": ("tasks",),
    "skip_blank": ("task", "tasks"),
    "root": ("name",),
}
"""Field -> the ways to describe a stream that it goes with."""


@dataclass(frozen=True)
class Experience:
    """One step of a stream.

    Args:
        name: for people and files, unique in the stream.
        task: with the label words of this experience only, in its own class order.
        classes: the place of each of these label words in ``Stream.classes``.
    """

    name: str
    task: Task
    classes: tuple[int, ...]


@dataclass(frozen=True)
class Stream:
    """Tasks that are learnt one after another.

    Args:
        classes: all label words in the order in which they arrive.
        experiences: the steps.
    """

    classes: tuple[str, ...]
    experiences: tuple[Experience, ...]

    def num_seen(self, index: int) -> int:
        """Classes seen once experience ``index`` is learnt: the first ones of ``classes``."""
        return 1 + max(
            place for experience in self.experiences[: index + 1] for place in experience.classes
        )

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What a run that goes on must find again; plain values."""
        return {
            "classes": list(self.classes),
            "experiences": [
                {"name": experience.name, "classes": list(experience.task.labels)}
                for experience in self.experiences
            ],
        }


@dataclass(frozen=True)
class Member:
    """One data set of a stream.

    Args:
        name: unique in the stream.
        where: its field in the config, for faults.
        task: its source as it will be loaded; labels may be unknown yet.
    """

    name: str
    where: str
    task: Task


@dataclass(frozen=True, kw_only=True)
class StreamSpec:
    """A stream as a plain value; nothing is read and nothing raised until it is loaded.

    As it stands in the file of a run: a published stream, the classes of one data set in portions,
    or data sets one after another::

        {name: standard-cl-1, root: /data/hub}
        {task: {...}, num_tasks: 10, seed: 1}
        {tasks: [{...}, {...}], train_rows_per_class: 1000}

    Args:
        name: a published stream, such as standard-cl-1, 15-tasks-1, mbpa-1 or cifar100-10x10.
        root: for a name, instead of the hub: a folder with a folder for each hub id (and
            subset), "/" replaced by "__", as in aps__super_glue__cb; each made by
            ``save_to_disk``, or with data files in it.
        task: one classification data set, whose classes come in portions; with the fields of a
            task that ``scalepet train --fields`` shows.
        num_tasks: number of portions; the first ones have a class more where it does not
            divide the classes.
        class_order: label words of the divided data set in the order in which they arrive;
            empty: drawn by the seed.
        tasks: classification data sets, one after another, each with the fields of a task.
        seed: of the order of classes in portions, and of the rows that are kept.
        shared_labels: with tasks: a label word that stands in several tasks is one class.
        skip_blank: leave out rows with an empty column of the template; else they are refused.
        train_rows_per_class: the most training rows of a class, drawn by the seed.
        eval_rows_per_class: the most evaluation rows of a class, drawn by the seed.
        train_rows: the most training rows of an experience, drawn by the seed from all classes.
        eval_rows: the most evaluation rows of an experience, drawn by the seed from all classes.
    """

    name: str | None = None
    root: str | None = None
    task: Task | None = None
    num_tasks: int | None = None
    class_order: tuple[str, ...] = ()
    tasks: tuple[Task, ...] = ()
    seed: int = 0
    shared_labels: bool = False
    skip_blank: bool = False
    train_rows_per_class: int | None = None
    eval_rows_per_class: int | None = None
    train_rows: int | None = None
    eval_rows: int | None = None

    @property
    def benchmark(self) -> Benchmark | None:
        """The published stream, if this is one."""
        return STREAMS.get(self.name or "")

    @property
    def num_portions(self) -> int | None:
        """Portions of the one data set; None for data sets one after another."""
        return self.benchmark.num_tasks if self.benchmark else self.num_tasks

    @property
    def shares_labels(self) -> bool:
        """Whether a label word of several tasks is one class."""
        return self.benchmark.shared_labels if self.benchmark else self.shared_labels

    @property
    def skips_blank(self) -> bool:
        """Whether rows with an empty column of the template are left out."""
        return self.benchmark.skip_blank if self.benchmark else self.skip_blank

    def row_limits(self, split: str) -> tuple[int | None, int | None]:
        """The most rows of a class and of an experience in "train" or "eval". What is given for a
        split takes the place of what is published.
        """
        fields = (f"{split}_rows_per_class", f"{split}_rows")
        given = [getattr(self, field) for field in fields]
        if self.benchmark and given == [None, None]:
            given = [getattr(self.benchmark, field, None) for field in fields]
        return given[0], given[1]

    def members(self) -> tuple[Member, ...]:
        """The data sets of the stream, with unique names."""
        if self.benchmark:
            return tuple(
                Member(name, f"stream.name {self.name}: {name}", _at(task, self.root))
                for name, task in self.benchmark.tasks.items()
            )
        tasks = {f"stream.tasks[{index}]": task for index, task in enumerate(self.tasks)}
        if self.task:
            tasks["stream.task"] = self.task
        names = unique([source_name(task.source) for task in tasks.values()])
        return tuple(
            Member(name, where, task)
            for name, (where, task) in zip(names, tasks.items(), strict=True)
        )

    def faults(self) -> list[str]:
        """Everything wrong without a look at the disk."""
        ways = [way for way in ("name", "task", "tasks") if getattr(self, way)]
        faults = list(self._number_faults())
        if len(ways) != 1:
            given = " and ".join(ways) or "none of them"
            return [f"stream has {given}; allowed: one of name, task and tasks", *faults]
        faults += self._misplaced(ways[0])
        if self.name:
            return faults + list(self._name_faults())
        for member in self.members():
            faults += _member_faults(member)
        if self.task:
            faults += division_faults(self, self.task.labels)
        elif not self.shared_labels:
            faults += overlap_faults(self.members())
        if self.skip_blank and any(member.task.picture_column for member in self.members()):
            faults.append("stream.skip_blank is True; it goes with tasks of texts")
        kinds = dict.fromkeys(member.task.kind for member in self.members())
        if len(kinds) > 1:
            faults.append(f"stream.tasks has the kinds {', '.join(kinds)}; allowed: one kind")
        return faults

    def _number_faults(self) -> Iterator[str]:
        if not 0 <= self.seed < 2**64:
            yield f"stream.seed is {self.seed}; allowed: 0 to 2**64 - 1"
        for name in COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"stream.{name} is {value}; allowed: at least 1, or null for all"
        for split in ("train", "eval"):
            per_class, total = f"{split}_rows_per_class", f"{split}_rows"
            if None not in (getattr(self, per_class), getattr(self, total)):
                yield f"stream.{per_class} and stream.{total} are given; allowed: one of them"

    def _misplaced(self, way: str) -> Iterator[str]:
        for name, ways in NEEDED_WAYS.items():
            if getattr(self, name) and way not in ways:
                allowed = " or ".join(f"stream.{other}" for other in ways)
                yield f"stream.{name} is {getattr(self, name)!r}; it goes with {allowed}"
        if self.class_order and (way == "tasks" or (self.benchmark and not self.num_portions)):
            yield "stream.class_order is given; it goes with one data set in portions"

    def _name_faults(self) -> Iterator[str]:
        if self.benchmark is None:
            yield f"stream.name is {self.name!r}; allowed: {', '.join(STREAMS)}"
        elif self.benchmark.to_bring and not self.root:
            yield (
                f"stream.root is missing; stream.name {self.name!r} needs a folder with: "
                f"{self.benchmark.to_bring}"
            )
        elif self.num_portions:
            yield from _order_faults(self.class_order)


def division_faults(spec: StreamSpec, labels: Sequence[str]) -> list[str]:
    """What keeps these labels (those known so far, if any) from coming in portions."""
    faults = list(_order_faults(spec.class_order))
    num_tasks = spec.num_portions
    if num_tasks is None:
        faults.append("stream.num_tasks is missing; allowed: the number of portions")
    elif num_tasks < 1:
        faults.append(f"stream.num_tasks is {num_tasks}; allowed: at least 1")
    elif labels and len(labels) < MIN_PORTION * num_tasks:
        faults.append(
            f"stream.num_tasks is {num_tasks}; allowed: 1 to {len(labels) // MIN_PORTION}, since "
            f"there are {len(labels)} classes and a portion needs {MIN_PORTION}"
        )
    if labels and spec.class_order:
        unknown = [word for word in spec.class_order if word not in labels]
        left_out = [word for word in labels if word not in spec.class_order]
        if unknown:
            faults.append(
                f"stream.class_order has {listed(unknown)}; allowed: {listed(list(labels))}"
            )
        if left_out:
            faults.append(f"stream.class_order lacks {listed(left_out)}; allowed: every class once")
    return faults


def _order_faults(class_order: Sequence[str]) -> Iterator[str]:
    twice = [word for word in dict.fromkeys(class_order) if class_order.count(word) > 1]
    if twice:
        yield f"stream.class_order has {listed(twice)} twice; allowed: every class once"


def overlap_faults(members: Sequence[Member]) -> list[str]:
    """Label words that stand in two data sets, by pair; labels not known yet are passed over."""
    first: dict[str, Member] = {}
    pairs: dict[tuple[str, str], list[str]] = {}
    for member in members:
        for word in dict.fromkeys(member.task.labels):
            other = first.setdefault(word, member)
            if other is not member:
                pairs.setdefault((other.where, member.where), []).append(word)
    return [
        f"{one} and {other} share the label words {listed(words)}; "
        "allowed: different words, or stream.shared_labels"
        for (one, other), words in pairs.items()
    ]


def placed(where: str, fault: str) -> str:
    """A fault of a task, with the field where this task stands."""
    return where + fault.removeprefix("task") if fault.startswith("task.") else f"{where}: {fault}"


def _member_faults(member: Member) -> list[str]:
    if member.task.kind in KINDS and not member.task.has_classes:
        return [f"{member.where}.kind is {member.task.kind!r}; allowed: tasks with classes"]
    return [placed(member.where, fault) for fault in member.task.faults()]


def _at(task: Task, root: str | None) -> Task:
    """The task with its source under ``root``."""
    if root is None:
        return task
    folder = Path(expanded(root)) / folder_of(task.source)
    return replace(task, source=replace(task.source, path=str(folder), subset=None))


def source_name(source: Source) -> str:
    """A data set's name: its subset, its folder, or its training file."""
    if not source.files:
        return source.subset or Path(source.path).name
    files = source.files.get("train") or next(iter(source.files.values()))
    first = Path(files if isinstance(files, str) else files[0])
    return first.stem.partition("train")[0].rstrip("-_. *") or first.parent.name or "rows"


def unique(names: Sequence[str]) -> list[str]:
    """The names, numbered where one has stood there before."""
    found: list[str] = []
    for name in names:
        numbered = (name if number == 1 else f"{name} {number}" for number in count(1))
        found.append(next(other for other in numbered if other not in found))
    return found
