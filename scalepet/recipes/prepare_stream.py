"""All that can be wrong with a stream is found here, before a weight is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy.typing as npt

from scalepet import build, data, engine, pet
from scalepet.build import Plan
from scalepet.config import StreamConfig, plain
from scalepet.data import Examples, Form, Rows, Stream, Task, TrainLoader
from scalepet.errors import ConfigError, Faults
from scalepet.lae import loss_over_classes
from scalepet.recipes.going_on import name_of_rows
from scalepet.recipes.run_folder import OPTIMIZER_FIELDS, open_run_folder


@dataclass(frozen=True)
class Lesson:
    """One experience of a stream, ready to be learnt.

    Attributes:
        classes: the places of its labels among all classes of the stream.
    """

    name: str
    classes: tuple[int, ...]
    train: Examples
    eval: Examples
    loader: TrainLoader
    num_steps: int


@dataclass(frozen=True)
class PreparedStream:
    """A stream that is ready to be learnt.

    Attributes:
        plan: of the run that would learn all classes at once.
        label_ids: tokens of the label word of each class; None for a backbone with a head.
    """

    config: StreamConfig
    plan: Plan
    stream: Stream
    lessons: tuple[Lesson, ...]
    label_ids: Sequence[npt.ArrayLike] | None
    ds_config: dict[str, Any]

    acceptable: ClassVar = ("train rows", "eval rows", "optimizer", "precision", "metrics")
    """Parts of the fingerprint that may change where the user says so."""

    @property
    def warnings(self) -> list[str]:
        """What is allowed and may go wrong, each in a line."""
        unknown = [
            line
            for lesson in self.lessons
            for name, rows in (("train", lesson.train), ("eval", lesson.eval))
            for line in data.unknown_words(rows, f"{lesson.name}: {name}")
        ]
        return [*self.plan.warnings, *unknown]

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole stream."""
        return sum(lesson.num_steps for lesson in self.lessons)

    def steps_before(self, index: int) -> int:
        return sum(lesson.num_steps for lesson in self.lessons[:index])

    def num_seen(self, index: int) -> int:
        """Classes seen once experience ``index`` has come; none before the first."""
        seen = [place for lesson in self.lessons[: index + 1] for place in lesson.classes]
        return max(seen, default=-1) + 1

    def loss_sum(self, index: int) -> engine.LossSum:
        """The loss of one experience, over its own classes."""
        lesson = self.lessons[index]
        return partial(
            loss_over_classes,
            classes=lesson.classes,
            label_ids=lesson.train.label_ids,
            config=self.plan.model_config,
        )

    def alphas(self, index: int) -> list[float]:
        """Momentum of each offline copy in one experience."""
        num_steps = self.lessons[index].num_steps
        return [copy.alpha_in(num_steps) for copy in self.config.lae.offline]

    def plan_after(self, index: int) -> Plan:
        """The plan of a run over the classes seen by then, for what is saved."""
        seen = self.stream.classes[: self.num_seen(index)]
        task = _over(self.plan.task, seen)
        return dataclasses.replace(self.plan, config=self.config.run_over(task), task=task)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What may not change between the parts of one run. World size, sharding and output may."""
        config = plain(self.config)
        return {
            "backbone": self.plan.backbone_fingerprint,
            "tokenizer": self.plan.tokenizer_fingerprint,
            "method": self.plan.method.record(),
            "stream": self.stream.fingerprint,
            "train rows": [lesson.train.fingerprint for lesson in self.lessons],
            "eval rows": [name_of_rows(lesson.eval) for lesson in self.lessons],
            "seed": config["seed"],
            "precision": config["precision"],
            "lae": {name: config["lae"][name] for name in ("freeze_epochs", "offline", "joint")},
            "steps": {name: config["train"][name] for name in ("epochs", "batch_size")},
            "optimizer": {name: config["train"][name] for name in OPTIMIZER_FIELDS},
        }


def prepare_stream(config: StreamConfig, *, resume: bool) -> PreparedStream:
    """Everything that can be wrong is wrong here: before a weight is loaded."""
    faults = Faults()
    ds_file: dict[str, Any] = {}
    with faults.noted():
        ds_file = engine.read_ds_file(config.deepspeed)
        engine.check_ops(ds_file)
    with faults.noted():
        engine.check_precision(config.precision)
    stream, rows = data.load_stream(config.stream, undivided=config.lae.joint)
    task = _task_over_all(stream)
    plan = None
    with faults.noted():
        plan = build.plan_run(config.run_over(task), task)
    if plan is not None:
        faults.extend(_misfits(config, plan, ds_file))
    faults.raise_any()
    assert plan is not None
    lessons = _encode(config, plan, stream, rows)
    open_run_folder(config.output, resume=resume)
    return PreparedStream(
        config=config,
        plan=plan,
        stream=stream,
        lessons=lessons,
        label_ids=_words_of_classes(stream, lessons),
        ds_config=build.ds_config_of(plan, ds_file, lessons[0].loader),
    )


def _task_over_all(stream: Stream) -> Task:
    """A task with all classes: that of the first experience, whose source and template stand for
    all.
    """
    first = stream.experiences[0].task
    values: dict[bool | int | str, str] = {}
    for experience in stream.experiences:
        if experience.task.source == first.source:
            values.update(experience.task.label_values)
    return _over(dataclasses.replace(first, label_values=values), stream.classes)


def _over(task: Task, labels: tuple[str, ...]) -> Task:
    """The task with other classes."""
    values = {raw: word for raw, word in task.label_values.items() if word in labels}
    return dataclasses.replace(task, labels=labels, label_values=values, metrics=("accuracy",))


def _misfits(config: StreamConfig, plan: Plan, ds_file: Mapping[str, Any]) -> list[str]:
    """What a stream cannot do with this method, backbone or offloading."""
    lae, method, names = config.lae, plan.method, config.method.names
    faults = []
    offload = ds_file.get("zero_optimization", {}).get("offload_optimizer") or {}
    if lae.offline and offload.get("device") == "nvme":
        faults.append(
            f"deepspeed: {config.deepspeed} has offload_optimizer on nvme with"
            f" {len(lae.offline)} offline copies; allowed: cpu or none, since the copies follow"
            " every step in host memory"
        )
    if lae.offline and not method.num_parameters:
        faults.append(
            f"lae.offline: {len(lae.offline)} copies of method {names}, which trains nothing;"
            " allowed: []"
        )
    if lae.offline and not method.keeps_backbone:
        faults.append(
            f"lae.offline: {len(lae.offline)} copies of method {names}, which trains the backbone"
            " itself; allowed: [], or a method that leaves it as it is"
        )
    if lae.freeze_epochs and not plan.family.head:
        faults.append(
            f"lae.freeze_epochs: {lae.freeze_epochs}; allowed: 0, since a"
            f" {plan.model_config.model_type} backbone has no head that could learn alone"
        )
    apet = pet.apet_of(method)
    if apet is not None and apet.moves is not None:
        faults.append(
            f"method.move_every: {apet.moves.every}; allowed: null, since an offline copy stands"
            " at the same positions"
        )
    return faults


def _encode(
    config: StreamConfig, plan: Plan, stream: Stream, rows: Sequence[dict[str, Rows]]
) -> tuple[Lesson, ...]:
    """Every experience as token ids (or pictures); raises with the faults of all of them."""
    form: Form = "head" if plan.family.head else "choice"
    faults, encoded = Faults(), []
    for experience, splits in zip(stream.experiences, rows, strict=True):
        with faults.noted(f"{experience.name}: "):
            encoded.append(
                {
                    split: data.encode(
                        experience.task, splits[split], tokenizer=plan.tokenizer, form=form
                    )
                    for split in ("train", "eval")
                }
            )
    faults.raise_any()
    if config.lae.joint and len(encoded) > 1:
        classes = [experience.classes for experience in stream.experiences]
        joint = {
            split: data.joined([parts[split] for parts in encoded], classes)
            for split in ("train", "eval")
        }
        return (_lesson(config, plan, "joint", tuple(range(len(stream.classes))), joint),)
    most_rows = max(parts["train"].num_rows for parts in encoded)
    return tuple(
        _lesson(config, plan, experience.name, experience.classes, parts, most_rows=most_rows)
        for experience, parts in zip(stream.experiences, encoded, strict=True)
    )


def _lesson(
    config: StreamConfig,
    plan: Plan,
    name: str,
    classes: tuple[int, ...],
    parts: Mapping[str, Examples],
    *,
    most_rows: int | None = None,
) -> Lesson:
    loader = build.train_loader(plan, parts["train"], most_rows=most_rows)
    num_steps = config.train.epochs * loader.steps_per_epoch
    return Lesson(name, classes, parts["train"], parts["eval"], loader, num_steps)


def _words_of_classes(stream: Stream, lessons: Sequence[Lesson]) -> Sequence[npt.ArrayLike] | None:
    """The tokens of the label word of every class.

    Raises:
        ConfigError: two of them have the same.
    """
    if lessons[0].train.label_ids is None:
        return None
    words: dict[int, Any] = {}
    for lesson in lessons:
        assert lesson.train.label_ids is not None
        words.update(zip(lesson.classes, lesson.train.label_ids, strict=True))
    first: dict[bytes, str] = {}
    faults = []
    for place, ids in sorted(words.items()):
        word = stream.classes[place]
        other = first.setdefault(ids.tobytes(), word)
        if other != word:
            faults.append(
                f"stream: the label words {other!r} and {word!r} have the same tokens;"
                " allowed: words that this tokenizer tells apart"
            )
    if faults:
        raise ConfigError(faults)
    return [words[place] for place in sorted(words)]
