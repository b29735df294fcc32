"""All that can be wrong with a run is found here, before a weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from scalepet import build, data, engine, pet
from scalepet.build import Plan
from scalepet.config import RunConfig, plain
from scalepet.data import Examples, Splits, TrainLoader
from scalepet.errors import Faults
from scalepet.recipes.going_on import name_of_rows
from scalepet.recipes.run_folder import OPTIMIZER_FIELDS, open_run_folder


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to load its weights.

    Attributes:
        eval: rows that choose the best step.
        test: rows that nothing is chosen by; None where the task names none.
        num_blank: blank rows that were left out of each split.
    """

    plan: Plan
    train: Examples
    eval: Examples
    test: Examples | None
    num_blank: Mapping[str, int]
    loader: TrainLoader
    ds_config: dict[str, Any]
    num_steps: int

    acceptable: ClassVar = (
        "train rows",
        "eval rows",
        "test rows",
        "optimizer",
        "precision",
        "steps",
        "metrics",
    )
    """Parts of the fingerprint that may change where the user says so."""

    @property
    def warnings(self) -> list[str]:
        """What is allowed and may go wrong, each in a line."""
        splits = {"train": self.train, "eval": self.eval, "test": self.test}
        unknown = [
            line
            for name, rows in splits.items()
            if rows is not None
            for line in data.unknown_words(rows, name)
        ]
        return [*self.plan.warnings, *unknown]

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What may not change between the parts of one run. World size, sharding and output may."""
        config = plain(self.plan.config)
        return {
            "backbone": self.plan.backbone_fingerprint,
            "tokenizer": self.plan.tokenizer_fingerprint,
            "method": self.plan.method.record(),
            "labels": list(self.plan.task.labels),
            "train rows": self.train.fingerprint,
            "eval rows": name_of_rows(self.eval),
            "test rows": None if self.test is None else name_of_rows(self.test),
            "seed": config["seed"],
            "precision": config["precision"],
            "optimizer": {
                name: config["train"][name] for name in ("batch_size", *OPTIMIZER_FIELDS)
            },
            "steps": self.num_steps,
        }


def prepare(config: RunConfig, *, resume: bool) -> Prepared:
    """Everything that can be wrong is wrong here: before a weight is loaded."""
    faults = Faults()
    ds_file: dict[str, Any] = {}
    with faults.noted():
        ds_file = engine.read_ds_file(config.deepspeed)
        engine.check_ops(ds_file)
    with faults.noted():
        engine.check_precision(config.precision)
    task = config.task
    splits = Splits({}, {})
    with faults.noted():
        task, splits = build.load_rows(config)
    plan = None
    with faults.noted():
        plan = build.plan_run(config, task)
    if plan is not None and _is_imported(plan):
        faults.append(
            "method.select: imported; allowed: random, magnitude, gradient or snip, since positions"
            " that were imported come with an adapter and not with a run"
        )
    faults.raise_any()
    assert plan is not None
    encoded = build.encode_splits(plan, splits.rows)
    open_run_folder(config.output, resume=resume)
    loader = build.train_loader(plan, encoded["train"])
    return Prepared(
        plan=plan,
        train=encoded["train"],
        eval=encoded["eval"],
        test=encoded.get("test"),
        num_blank=splits.num_blank,
        loader=loader,
        ds_config=build.ds_config_of(plan, ds_file, loader),
        num_steps=build.num_steps_of(config.train, loader.steps_per_epoch),
    )


def _is_imported(plan: Plan) -> bool:
    apet = pet.apet_of(plan.method)
    return apet is not None and apet.select == "imported"


def majority(rows: Examples) -> float | None:
    """The score of always saying the most frequent class; None where answers are texts."""
    if rows.classes is None:
        return None
    return data.majority_share([str(reference) for reference in rows.references])
