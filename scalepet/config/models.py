"""The sections of a config and their fields."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from annotated_types import Ge, Gt, Lt, MinLen
from pydantic import BaseModel, ConfigDict, Field, Strict

from scalepet.config.words import listed
from scalepet.data import TASKS, StreamSpec, Task
from scalepet.engine import Precision, Schedule
from scalepet.lae import Vote, alpha_of_travel
from scalepet.paths import expanded
from scalepet.pet import METHODS
from scalepet.tracking import WandbMode

# Strict, because true is 1 and "3" is 3 otherwise, and a slip trains for one step.
Count = Annotated[int, Strict(), Gt(0)]
Whole = Annotated[int, Strict(), Ge(0)]
Seed = Whole
Positive = Annotated[float, Strict(), Gt(0), Lt(1e12)]
NotNegative = Annotated[float, Strict(), Ge(0), Lt(1e12)]
Share = Annotated[float, Strict(), Ge(0), Lt(1)]
Text = Annotated[str, MinLen(1)]

OnNonFinite = Literal["stop", "skip"]

_WEIGHT_DECAY = (
    "of AdamW, decoupled: pulls all that is trained to zero, which are changes of the backbone;"
    " under full and in a head they are the weights themselves"
)
DEFAULT_METHOD = "apet"
DEFAULT_EPOCHS = 3.0


class Section(BaseModel):
    """Fields of which none is unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BackboneConfig(Section):
    """The frozen model."""

    path: Text = Field(
        description="hub name, folder with config.json and weights, or (with random_start) the"
        " config.json of a model"
    )
    revision: Text | None = Field(None, description="branch, tag or commit on the hub")
    tokenizer: Text | None = Field(None, description="hub name or folder; null: the backbone's own")
    random_start: bool = Field(
        False, description="random weights from the config alone, for tests and sizing"
    )
    dropout: Share | None = Field(
        None, description="every dropout rate of the model; null: as in its config.json"
    )
    checkpoint_activations: bool = Field(
        False,
        description="keep one activation a layer and run the layer again in backward: less memory,"
        " a third more time",
    )


class FurtherMethod(BaseModel):
    """The name of a method, and beside it that method's options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = Field(DEFAULT_METHOD, description=f"the method: {listed(list(METHODS))}")

    @property
    def options(self) -> dict[str, Any]:
        """The fields that belong to the method, as they stand in the file."""
        return dict(self.model_extra or {})


class MethodConfig(FurtherMethod):
    """What is tuned: a method and its options, and further ones."""

    also: tuple[FurtherMethod, ...] = Field(
        (), description="further methods at the same time, each as in {name: prompt, length: 20}"
    )

    @property
    def all(self) -> tuple[FurtherMethod, ...]:
        """This method and the further ones."""
        return (self, *self.also)

    @property
    def names(self) -> str:
        """Of all methods, for people: apet + prompt."""
        return " + ".join(method.name for method in self.all)


class TrainConfig(Section):
    """How long and how fast."""

    epochs: Positive | None = Field(
        None,
        description=f"passes over the training rows; {DEFAULT_EPOCHS:g} where steps is not given",
    )
    steps: Count | None = Field(None, description="optimizer steps, instead of epochs")
    batch_size: Count = Field(32, description="rows of an optimizer step, over all devices")
    micro_batch_size: Count = Field(8, description="the most rows of one forward of one device")
    learning_rate: Positive = Field(1e-2, description="peak rate of what the method tunes")
    head_learning_rate: Positive = Field(1e-3, description="peak rate of a classification head")
    weight_decay: NotNegative = Field(0.0, description=_WEIGHT_DECAY)
    schedule: Schedule = Field("linear", description="the rate after the warm-up; falls to zero")
    warmup: Share = Field(0.06, description="part of the steps in which the rate rises")
    clip: Positive | None = Field(1.0, description="largest gradient norm; null: no clipping")
    evaluate_every: Count | None = Field(
        None, description="steps between two evaluations; null: once an epoch"
    )
    patience: Count | None = Field(
        None, description="stop after so many evaluations without a better score; null: never"
    )
    save_every: Count | None = Field(
        None, description="steps between two saved states; null: at every evaluation"
    )
    keep_states: Count = Field(2, description="how many of the last saved states stay")
    log_every: Count = Field(10, description="steps between two lines of metrics.jsonl")
    on_non_finite: OnNonFinite = Field(
        "stop",
        description="a step whose loss or gradient is not finite changes nothing; then the run"
        " stops, or skips that step and goes on",
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _last_some_time(cls, content: Any) -> Any:
        if isinstance(content, Mapping) and not {"epochs", "steps"} & content.keys():
            return {**content, "epochs": DEFAULT_EPOCHS}
        return content


class EvaluateConfig(Section):
    """How answers are made."""

    micro_batch_size: Count = Field(32, description="rows of one forward of one device")
    num_beams: Count = Field(1, description="beams of the search for texts; 1 is greedy")


class WandbConfig(Section):
    """Where the run is shown besides; metrics.jsonl is always written."""

    mode: Literal["off"] | WandbMode = Field(
        "off", description="without a wandb key, online becomes offline"
    )
    project: Text = Field("scalepet", description="the project that the run is filed under")


class Setup(Section):
    """What every kind of run has."""

    output: Path = Field(description="the run folder: config, metrics, adapters, state")
    seed: Seed = Field(0, description="of the order of rows, the head's start and dropout")
    precision: Precision = Field(
        "bf16", description="of weights and activations; what is trained has fp32 masters"
    )
    deepspeed: Text | dict[str, Any] = Field(
        "zero3", description="name of a shipped DeepSpeed file, path of another, or its content"
    )
    backbone: BackboneConfig = Field(description="the frozen model")

    @pydantic.field_validator("output", mode="before")
    @classmethod
    def _is_a_folder(cls, output: Any) -> Any:
        if output == "":  # which pathlib takes for the current folder
            raise ValueError("it is empty")
        return expanded(output) if isinstance(output, str) else output


class RunConfig(Setup):
    """One run."""

    task: Task = Field(
        description="what is learnt, from which rows; or the name of a task as in task: sst2, where"
        " fields beside the name, as in {name: sst2, source: {path: FOLDER}}, take the place of"
        f" its own: {listed(list(TASKS))}"
    )
    method: MethodConfig = Field(MethodConfig(), description="what is tuned")
    train: TrainConfig = Field(TrainConfig(), description="how long and how fast")
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="how answers are made")
    wandb: WandbConfig = Field(WandbConfig(), description="weights & biases")


class LearnConfig(Section):
    """How long and how fast every experience of a stream is learnt."""

    epochs: Count = Field(5, description="passes over the training rows of each experience")
    batch_size: Count = Field(24, description="rows of an optimizer step, over all devices")
    micro_batch_size: Count = Field(8, description="the most rows of one forward of one device")
    learning_rate: Positive = Field(1e-3, description="peak rate of what the method tunes")
    head_learning_rate: Positive = Field(1e-2, description="peak rate of the growing head")
    weight_decay: NotNegative = Field(0.0, description=_WEIGHT_DECAY)
    schedule: Schedule = Field("constant", description="the rate in each experience")
    warmup: Share = Field(0.0, description="part of the steps in which the rate rises")
    clip: Positive | None = Field(1.0, description="largest gradient norm; null: no clipping")
    save_every: Count | None = Field(
        None, description="steps between two saved states; null: once an epoch"
    )
    keep_states: Count = Field(2, description="how many of the last saved states stay")
    log_every: Count = Field(10, description="steps between two lines of metrics.jsonl")
    on_non_finite: OnNonFinite = Field(
        "stop",
        description="a step whose loss or gradient is not finite changes nothing; then the run"
        " stops, or skips that step and goes on",
    )


class OfflineConfig(Section):
    """How slowly an offline copy follows."""

    alpha: Share | None = Field(
        None, description="momentum of a step: offline = alpha offline + (1 - alpha) online"
    )
    travel: Annotated[float, Strict(), Gt(0), Lt(1)] | None = Field(
        None,
        description="instead, the part of the way to the online numbers that it goes in an"
        " experience, however many steps that has",
    )

    def alpha_in(self, num_steps: int) -> float:
        """The momentum in an experience of so many optimizer steps."""
        if self.alpha is not None:
            return self.alpha
        assert self.travel is not None, "the config check has found one of them"
        return alpha_of_travel(self.travel, num_steps)


class LaeConfig(Section):
    """Learning, accumulation and ensemble (arXiv 2303.10070)."""

    freeze_epochs: Whole = Field(
        0, description="epochs in which the head learns alone, in every experience but the first"
    )
    offline: tuple[OfflineConfig, ...] = Field(
        (OfflineConfig(alpha=None, travel=0.1),),
        description="the offline copies, with an alpha or a travel each; published: alpha 0.9999;"
        " none: the online expert answers alone",
    )
    vote: Vote = Field("max", description="max of the experts' probabilities, or their mean")
    joint: bool = Field(
        False, description="all experiences at once: what a stream cannot do better than"
    )


class StreamConfig(Setup):
    """A run over a stream of experiences."""

    stream: StreamSpec = Field(description="what is learnt, one after the other")
    method: MethodConfig = Field(MethodConfig(), description="what is tuned")
    train: LearnConfig = Field(LearnConfig(), description="how long and how fast")
    lae: LaeConfig = Field(LaeConfig(), description="learning, accumulation, ensemble")
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="how answers are made")
    wandb: WandbConfig = Field(WandbConfig(), description="weights & biases")

    def run_over(self, task: Task) -> RunConfig:
        """The config of the run that would train the same on one task."""
        shared = {name: getattr(self, name) for name in RunConfig.model_fields if name in _SHARED}
        train = {name: value for name, value in self.train if name in TrainConfig.model_fields}
        return RunConfig(**shared, task=task, train=TrainConfig(**train))


_SHARED = {*Setup.model_fields, "method", "evaluate", "wandb"}

Config = TypeVar("Config", bound=Setup)


def plain(config: Setup) -> dict[str, Any]:
    """As values that YAML and JSON can hold; ``check_config`` makes the same run of them."""
    return config.model_dump(mode="json")
