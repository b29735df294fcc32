"""From a config to objects: the one place that knows both."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch

from scalepet import backbones, data, dist, engine
from scalepet.backbones import Backbone, Family, Loaded, Site
from scalepet.config import (
    FurtherMethod,
    LearnConfig,
    RunConfig,
    TrainConfig,
    method_options,
    same_as,
)
from scalepet.data import Examples, Form, Rows, Task
from scalepet.engine import AdamW, Answerer
from scalepet.errors import ConfigError, Faults, some_ranks
from scalepet.exact import exactly
from scalepet.pet import METHODS, Method, together

OptionsOf = Callable[[FurtherMethod], dict[str, Any]]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Plan:
    """A run that is known to be possible; not one weight is loaded yet.

    Attributes:
        config: as given.
        task: with its labels.
        form: what an example is for this backbone.
        family: how the backbone is used.
        model_config: of transformers.
        backbone: what to load.
        method: what is tuned, counted.
        tokenizer: the backbone's; None where it reads pictures.
    """

    config: RunConfig
    task: Task
    form: Form
    family: Family
    model_config: Any
    backbone: Backbone
    method: Method
    tokenizer: Any

    @cached_property
    def backbone_fingerprint(self) -> str:
        """The name of the backbone's weights; its files are read once."""
        return backbones.fingerprint(self.backbone, self.model_config)

    @cached_property
    def tokenizer_fingerprint(self) -> str | None:
        """The name of what the tokenizer does; None where there are only pictures."""
        return None if self.tokenizer is None else backbones.tokenizer_fingerprint(self.tokenizer)

    @property
    def pad_id(self) -> int | None:
        """What fills the short rows of a batch; None where there are only pictures."""
        return None if self.tokenizer is None else self.tokenizer.pad_token_id

    @property
    def warnings(self) -> list[str]:
        """What is allowed and may go wrong, each in a line."""
        return [*self._risks(), *self._ignored()]

    def _risks(self) -> Iterator[str]:
        risk = self.family.fp16_risk
        if self.config.precision == "fp16" and risk is not None:
            yield f"precision: fp16: {risk}; bf16 and fp32 hold them"

    def _ignored(self) -> Iterator[str]:
        ignored = backbones.ignored_generation(self.backbone) if self.form == "text" else {}
        if ignored:
            fields = ", ".join(f"{name}: {value}" for name, value in ignored.items())
            yield (
                f"the backbone's own way to write texts ({fields}) is not followed: answers are as"
                " evaluate.num_beams and task.max_target_length say"
            )

    @property
    def loss_sum(self) -> engine.LossSum:
        return partial(self.family.loss_sum, config=self.model_config)


def plan_run(config: RunConfig, task: Task) -> Plan:
    """Everything about a run that is known without its weights.

    Args:
        task: the config's, with its labels filled in.

    Raises:
        ConfigError: every fault of backbone, tokenizer, task form and method together.
    """
    faults = Faults()
    backbone = backbone_of(config, num_classes=len(task.labels) or None)
    model_config = tokenizer = None
    with faults.noted():
        model_config = backbones.read_model_config(backbone)
    if not _has_pictures(task, model_config):
        with faults.noted():
            tokenizer = backbones.load_tokenizer(
                backbone,
                path=config.backbone.tokenizer,
                vocab_size=getattr(model_config, "vocab_size", None),
            )
    if model_config is None:
        faults.raise_any()
    family = backbones.family_of(model_config)
    with faults.noted():
        form, method = form_and_method(
            config, task, model_config, find_sites=lambda: backbones.sketch_sites(model_config)
        )
    faults.raise_any()
    return Plan(config, task, form, family, model_config, backbone, method, tokenizer)


def form_and_method(
    config: RunConfig,
    task: Task,
    model_config: Any,
    *,
    find_sites: Callable[[], Sequence[Site]],
    options_of: OptionsOf = method_options,
) -> tuple[Form, Method]:
    """What an example of the task is for the backbone, and what is tuned.

    Args:
        find_sites: the backbone's own.
        options_of: as ``plan_method`` takes it.

    Raises:
        ConfigError: every fault of both, examples that are too large for the backbone included.
    """
    faults = Faults()
    with faults.noted():
        _check_size(task, model_config)
    with faults.noted():
        form = form_of(task, model_config.model_type)
    with faults.noted("method: "):
        method = plan_method(config, find_sites(), options_of=options_of)
        _check_trains(method, model_config.model_type)
    faults.raise_any()
    return form, method


def plan_method(
    config: RunConfig, sites: Sequence[Site], *, options_of: OptionsOf = method_options
) -> Method:
    """All methods of the config as one.

    Args:
        options_of: section -> the options that its method is planned with.

    Raises:
        ConfigError: every fault of all of them; or together they train more than the backbone has.
    """
    faults, methods = Faults(), []
    for section in config.method.all:
        with faults.noted(f"{section.name}: " if config.method.also else ""):
            methods.append(_plan_section(section, sites, options_of))
    faults.raise_any()
    method, most = together(methods), sum(math.prod(site.shape) for site in sites)
    if method.num_parameters > most:
        raise ConfigError(
            f"{config.method.names} trains {method.num_parameters:,} numbers; allowed: at most"
            f" {most:,}, as many as the backbone has"
        )
    return method


def _check_trains(method: Method, model_type: str) -> None:
    """Raises ConfigError where neither the method nor a head has anything to train."""
    if not method.num_parameters and not backbones.FAMILIES[model_type].head:
        raise ConfigError(
            f"name: head trains nothing on a {model_type} backbone, which has no head;"
            f" allowed: {', '.join(name for name in METHODS if name != 'head')}"
        )


def _plan_section(section: FurtherMethod, sites: Sequence[Site], options_of: OptionsOf) -> Method:
    options = options_of(section)
    other = same_as(options.get("budget"))
    if other is not None:
        faults = Faults()
        with faults.noted(f"budget: {options['budget']}: "):
            counted = _plan_section(FurtherMethod(**other), sites, options_of)
            options["budget"] = counted.num_parameters
        faults.raise_any()
    return METHODS[section.name](sites, **options)


def backbone_of(config: RunConfig, *, num_classes: int | None) -> Backbone:
    """What to load for a run with a head for so many classes."""
    return Backbone(
        path=config.backbone.path,
        random_start=config.backbone.random_start,
        revision=config.backbone.revision,
        num_classes=num_classes,
        dropout=config.backbone.dropout,
        seed=config.seed,
        checkpoint_activations=config.backbone.checkpoint_activations,
    )


def form_of(task: Task, model_type: str) -> Form:
    """What an example of the task is for a backbone of this family.

    Raises:
        ConfigError: it cannot do such tasks.
    """
    forms = backbones.FAMILIES[model_type].forms
    if task.kind not in forms:
        raise ConfigError(
            f"task.kind: a {model_type} backbone cannot do {task.kind!r};"
            f" allowed: {', '.join(forms) or 'none yet'}"
        )
    return forms[task.kind]


def _has_pictures(task: Task, model_config: Any | None) -> bool:
    """Whether the task or the backbone is one of pictures, so that there is nothing to tokenize."""
    if task.picture_column is not None:
        return True
    return model_config is not None and backbones.family_of(model_config).reads_pictures


def _check_size(task: Task, model_config: Any) -> None:
    """Raises ConfigError where the backbone cannot read examples as large as the task makes them;
    whether it can read such examples at all, ``form_of`` finds.
    """
    if task.picture_column is None:
        _check_lengths(task, model_config)
    elif backbones.family_of(model_config).reads_pictures:
        _check_pixels(task, model_config)


def _check_pixels(task: Task, model_config: Any) -> None:
    shape, size = backbones.picture_shape(model_config), task.picture.size
    if shape != (data.NUM_CHANNELS, size, size):
        channels, height, width = shape
        raise ConfigError(
            f"task.picture.size: {size}, with {data.NUM_CHANNELS} channels; allowed: what the"
            f" backbone reads, which is {height} x {width} pixels of {channels} channels"
        )


def _check_lengths(task: Task, model_config: Any) -> None:
    most = backbones.longest_input(model_config)
    if most is not None and task.max_source_length > most:
        raise ConfigError(
            f"task.max_source_length: {task.max_source_length}; allowed: at most {most},"
            " which is how many positions the backbone has"
        )


def load_rows(config: RunConfig) -> tuple[Task, data.Splits]:
    """The raw rows of every split of the task, and the task with its labels.

    Raises:
        ConfigError: every fault of all splits together.
    """
    splits = data.load_splits(config.task)
    return with_labels(config.task, splits.rows["train"]), splits


def with_labels(task: Task, rows: Rows) -> Task:
    """The task with the classes of the rows where the config names none."""
    if not task.has_classes or task.labels:
        return task
    return dataclasses.replace(task, labels=data.discover_labels(rows, task.target))


def encode_splits(plan: Plan, rows: dict[str, Rows]) -> dict[str, Examples]:
    """All splits as what the backbone reads; raises with the faults of all rows of all."""
    faults, encoded = Faults(), {}
    for split, split_rows in rows.items():
        with faults.noted():
            encoded[split] = data.encode(
                plan.task, split_rows, tokenizer=plan.tokenizer, form=plan.form
            )
    faults.raise_any()
    return encoded


def load_backbone(
    plan: Plan, ds_config: dict[str, Any] | None = None, *, on_host: bool = False
) -> Loaded:
    """The frozen backbone with nothing on it. All ranks together.

    Args:
        ds_config: where its stage is 3, the model is built into shards, and each rank reads its
            own part of the files; else each has the whole model on its device.
        on_host: weights that are read stay in host memory.

    Raises:
        ConfigError: also where the files of two machines are not the same; on all ranks alike, as
            is all that fails on one of them.
    """
    _check_alike(plan)
    fill = engine.shard_filler(ds_config or {})
    if fill is not None or dist.world_size() > 1:
        dist.together(lambda: _convert_once(plan, in_parts=fill is not None))
    is_sharded = engine.zero_stage(ds_config or {}) == 3

    def load() -> Loaded:
        is_kept = on_host and not plan.backbone.random_start
        return backbones.load_model(
            plan.backbone,
            plan.model_config,
            dtype=DTYPES[plan.config.precision],
            device=torch.device("cpu") if is_kept else engine.pick_device(),
            fill=fill,
            together=dist.together,
        )

    with engine.building_into_shards(ds_config or {}):
        return dist.together(load, has_collectives=is_sharded)


def _check_alike(plan: Plan) -> None:
    """Shards of two checkpoints would make a model that is neither, without a word."""
    names = dist.all_gather_objects(dist.together(lambda: plan.backbone_fingerprint))
    if len(set(names)) > 1:
        found = ", ".join(
            f"{name} on {some_ranks([rank for rank, own in enumerate(names) if own == name])}"
            for name in dict.fromkeys(names)
        )
        raise ConfigError(
            f"backbone.path: {plan.config.backbone.path!r} is not the same on all machines: weights"
            f" {found}; allowed: the same files everywhere"
        )


def _convert_once(plan: Plan, *, in_parts: bool) -> None:
    """On one rank of every machine, for the others to read from."""
    if dist.local_rank() == 0 and backbones.needs_conversion(plan.backbone, in_parts=in_parts):
        backbones.convert(plan.backbone, plan.model_config)


def attach(method: Method, loaded: Loaded) -> None:
    """Put the method on the backbone; it and the head then ask for gradients, and nothing else."""
    method.attach(loaded.model)
    for name in loaded.head_names:
        loaded.model.get_parameter(name).requires_grad_(True)


def optimizer_of(config: RunConfig) -> AdamW:
    return AdamW(
        learning_rate=config.train.learning_rate,
        head_learning_rate=config.train.head_learning_rate,
        weight_decay=config.train.weight_decay,
    )


def learning_rate_factor(train: TrainConfig | LearnConfig, step: int, *, num_steps: int) -> float:
    """As ``engine.learning_rate_factor``, by the schedule and warm-up of a config."""
    num_warmup_steps = round(exactly(train.warmup) * num_steps)
    return engine.learning_rate_factor(
        train.schedule, step, num_steps=num_steps, num_warmup_steps=num_warmup_steps
    )


def num_steps_of(train: TrainConfig, steps_per_epoch: int) -> int:
    """The optimizer steps of a run; what is left of a part of an epoch is a step, too."""
    if train.steps is not None:
        return train.steps
    assert train.epochs is not None, "the config check sees to it"
    return math.ceil(exactly(train.epochs) * steps_per_epoch)


def train_loader(plan: Plan, train: Examples, *, most_rows: int | None = None) -> data.TrainLoader:
    """The loader of a run, or of one experience of a stream.

    Args:
        most_rows: of the largest of several splits that are trained on with equally many forwards
            a step; None where this is the only one. A step has no more rows than that.
    """
    return data.TrainLoader(
        train,
        batch_size=min(plan.config.train.batch_size, most_rows or train.num_rows),
        micro_batch_size=plan.config.train.micro_batch_size,
        rank=dist.rank(),
        world_size=dist.world_size(),
        seed=plan.config.seed,
        pad_id=plan.pad_id,
        together=dist.together,
    )


def ds_config_of(
    plan: Plan, ds_file: Mapping[str, Any], loader: data.TrainLoader
) -> dict[str, Any]:
    return engine.compose_ds_config(
        ds_file,
        precision=plan.config.precision,
        micro_batch_size=plan.config.train.micro_batch_size,
        num_micro_batches=loader.num_micro_batches,
        clip=plan.config.train.clip,
    )


def ds_config_for_answers(plan: Plan) -> dict[str, Any]:
    """For a model that is sharded but not trained.

    Raises:
        ConfigError: as ``read_ds_file`` and ``check_ops``.
    """
    ds_file = engine.read_ds_file(plan.config.deepspeed)
    engine.check_ops(ds_file)
    return engine.compose_ds_config(
        ds_file,
        precision=plan.config.precision,
        micro_batch_size=plan.config.evaluate.micro_batch_size,
        num_micro_batches=1,
        clip=None,
    )


def answerer_of(plan: Plan, *, all_ranks_together: bool) -> Answerer:
    return Answerer(
        labels=plan.task.labels,
        loss_sum=plan.loss_sum,
        class_scores=partial(backbones.class_scores, config=plan.model_config),
        decode=lambda ids: plan.tokenizer.batch_decode(ids, skip_special_tokens=True),
        max_new_tokens=plan.task.max_target_length,
        num_beams=plan.config.evaluate.num_beams,
        all_ranks_together=all_ranks_together,
    )
