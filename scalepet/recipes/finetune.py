"""Fine-tune: the whole story of one run, from a config to an adapter."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch
from rich.console import Console

from scalepet import build, dist, engine
from scalepet.backbones import Loaded
from scalepet.config import RunConfig
from scalepet.config.models import Whole
from scalepet.data import Examples
from scalepet.engine import Engine, RunState, States, StepReport
from scalepet.errors import CheckpointError
from scalepet.pet import Method
from scalepet.recipes import screen
from scalepet.recipes.adapter import save_adapter
from scalepet.recipes.answer import Ready
from scalepet.recipes.going_on import Accepted, check_names, progress_of
from scalepet.recipes.lock import Hold
from scalepet.recipes.masks import (
    MaskMover,
    chosen,
    kernel_warnings,
    saved_positions,
    with_saved_positions,
)
from scalepet.recipes.non_finite import NonFinite, num_skipped
from scalepet.recipes.prepare import Prepared, majority, prepare
from scalepet.recipes.proof import proof_of
from scalepet.recipes.run_folder import (
    ADAPTER,
    alone_in,
    describe_run,
    fingerprint_of,
    has_ended,
    load_state,
    log_accepted,
    open_logs,
    say,
    show_result,
    states_of,
    write_result,
)
from scalepet.recipes.stop import stopped, stopping_together, until_asked
from scalepet.signals import Stopped, StopRequest
from scalepet.tracking import Trackers, track_steps


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        num_steps: optimizer steps done.
        best_step: the evaluated step with the best score, 0 if none yet.
        best_score: its score.
        num_bad_evaluations: evaluations since then, for early stopping.
        awaits_evaluation: an evaluation is due after these steps and was not made.
    """

    num_steps: Whole = 0
    best_step: Whole = 0
    best_score: float | None = None
    num_bad_evaluations: Whole = 0
    awaits_evaluation: bool = False


def finetune(
    config: RunConfig,
    *,
    resume: bool,
    console: Console,
    stop: StopRequest | None = None,
    accept: Sequence[str] = (),
) -> None:
    """Train, evaluate, keep the best adapter and the state of the run, and score the best adapter
    on the rows that nothing was chosen by, where the task names some. Called on every rank, which
    are joined by then; one process may train one run after another.

    Args:
        resume: go on where the run in the folder stopped; start where there is none.
        stop: where others ask this run to stop.
        accept: what may have changed since then, as in "train-rows".

    Raises:
        ScalepetError: on all ranks alike.
        Stopped: on all ranks, with the state saved; while the run loads, on those that were asked.
    """
    stop = stop or StopRequest()
    check_names(accept, Prepared.acceptable, resume=resume)
    engine.forget_peak_memory()
    prepared = dist.together(lambda: prepare(config, resume=resume))
    with contextlib.ExitStack() as stack:  # what it has entered is closed on every way out
        hold = stack.enter_context(alone_in(config.output, resume=resume, console=console))
        if has_ended(config, resume=resume, console=console):
            return
        state, accepted = load_state(
            prepared, config.output, resume=resume, accept=accept, console=console
        )
        loaded, method = _load(prepared, state)
        runner = stack.enter_context(_start(prepared, loaded))
        progress = _progress(prepared, runner, state, accepted)
        progress = _with_whole_best(progress, config.output / ADAPTER, console)
        started = time.perf_counter()
        stack.enter_context(stopping_together(stop))
        trackers = stack.enter_context(
            dist.together(
                lambda: _open_run(prepared, runner, progress, console, hold, how=loaded.how)
            )
        )
        states = stack.enter_context(states_of(config, hold))
        log_accepted(trackers, progress.num_steps, accepted)
        mover = MaskMover(method, runner, num_steps=prepared.num_steps)
        non_finite = NonFinite(prepared.plan, trackers, console)
        story = _Story(prepared, mover, trackers, states, non_finite, console, stop, hold)
        progress = story.train(progress)
        story.conclude(progress, seconds=time.perf_counter() - started)


@dataclass(frozen=True)
class _Story:
    """What goes through a run from its first step to its last one."""

    prepared: Prepared
    mover: MaskMover
    trackers: Trackers
    states: States
    non_finite: NonFinite
    console: Console
    stop: StopRequest
    hold: Hold

    def train(self, progress: Progress) -> Progress:
        """The steps that are left, and the evaluations between them."""
        prepared, config, proof = self.prepared, self.prepared.plan.config, None
        if progress.num_steps == 0:
            self.trackers.log(0, self._evaluate(), kind="eval")
            proof = proof_of(
                self.mover.method,
                self.mover.runner,
                prepared.loader,
                loss_sum=prepared.plan.loss_sum,
                precision=config.precision,
            )
        elif progress.awaits_evaluation:
            progress = self._examine(progress)
        for report in self._steps(progress):
            self.non_finite.look(report, save=partial(self._save_before_the_end, progress))
            is_made = report.skipped is None
            if proof is not None and is_made:
                proof.look(report.num_steps - self.non_finite.num_skipped)
            if is_made and report.num_steps % config.train.log_every == 0:
                self.trackers.log(report.num_steps, _train_values(report), kind="train")
            is_due = _is_evaluated(prepared, report.num_steps)
            progress = dataclasses.replace(progress, num_steps=report.num_steps)
            if report.is_stop_asked:
                self._stop(dataclasses.replace(progress, awaits_evaluation=is_due))
            if is_due:
                progress = self._examine(progress)
                if _has_stalled(config, progress):
                    break
            elif _is_saved(config, report.num_steps):
                self._save(progress)
        return progress

    def _examine(self, progress: Progress) -> Progress:
        """Evaluate, keep the adapter if it is the best so far, and the state of the run where one
        is due.
        """
        self.states.check()
        dist.together(self.trackers.check)
        try:
            scores = self._evaluate()
        except Stopped:
            self._stop(dataclasses.replace(progress, awaits_evaluation=True))
        self.trackers.log(progress.num_steps, scores, kind="eval")
        # The adapter is on the disk before a state is that calls it the best.
        progress = _judge(self.prepared, self.mover, progress, scores, self.hold)
        config, is_last = self.prepared.plan.config, progress.num_steps >= self.prepared.num_steps
        if (
            config.train.save_every is None
            or _is_saved(config, progress.num_steps)
            or is_last
            or _has_stalled(config, progress)
        ):
            self._save(progress)
        return progress

    def _evaluate(self) -> dict[str, float]:
        """Scores of the evaluation split as ``eval/accuracy`` and so on, the same on every rank."""
        return {f"eval/{name}": value for name, value in self._score(self.prepared.eval).items()}

    def _score(self, rows: Examples) -> dict[str, float]:
        runner = self.mover.runner
        track = until_asked(screen.bar(self.console), self.stop)
        ready = Ready(self.prepared.plan, runner.module, runner.device, runner.is_sharded, track)
        return ready.score(rows)

    def _test(self, progress: Progress) -> dict[str, float]:
        """Scores of the best adapter on the rows that nothing was chosen by; empty without any."""
        prepared, mover = self.prepared, self.mover
        if prepared.test is None:
            return {}
        if progress.best_step != progress.num_steps:
            tensors, _ = dist.together(
                lambda: engine.read_folder(prepared.plan.config.output / ADAPTER)
            )
            mover.put_back(tensors)
        try:
            scores = self._score(prepared.test)
        except Stopped:  # the state after the last step is saved by now
            raise stopped(num_steps=progress.num_steps, total=prepared.num_steps) from None
        scores = {f"test/{name}": value for name, value in scores.items()}
        self.trackers.log(progress.num_steps, scores, kind="test")
        return scores

    def _stop(self, progress: Progress) -> NoReturn:
        self._save(progress)
        self.states.finish()
        raise stopped(num_steps=progress.num_steps, total=self.prepared.num_steps)

    def _save(self, progress: Progress) -> None:
        report = self.states.save(
            progress.num_steps,
            self.mover.runner,
            progress=dataclasses.asdict(progress),
            fingerprint=fingerprint_of(self.prepared, self.trackers),
            fixed=lambda: saved_positions(self.mover.method),
        )
        self.trackers.log(progress.num_steps, dataclasses.asdict(report), kind="save")

    def _save_before_the_end(self, progress: Progress) -> None:
        """The state before a step at which the run ends, where that is not saved yet."""
        if progress.num_steps not in (0, self.states.last_saved):
            self._save(progress)
        self.states.finish()

    def _steps(self, progress: Progress) -> Iterator[StepReport]:
        """The optimizer steps that are left, under a progress bar."""
        return track_steps(
            self._each_step(progress),
            total=self.prepared.num_steps,
            start=progress.num_steps,
            describe=lambda report: {
                "loss": report.loss,
                "lr": report.learning_rate,
                **report.speed,
            },
            shown=dist.is_main(),
            console=self.console,
        )

    def _each_step(self, progress: Progress) -> Iterator[StepReport]:
        """Step by step, with the moves of the mask that are due."""
        prepared, config, mover = self.prepared, self.prepared.plan.config, self.mover
        if _has_stalled(config, progress):
            return
        num_left = max(0, prepared.num_steps - progress.num_steps)
        for step in itertools.islice(prepared.loader.steps(progress.num_steps), num_left):
            factor = build.learning_rate_factor(
                config.train, step.index, num_steps=prepared.num_steps
            )
            with mover.watching(step.index + 1):
                report = engine.train_step(
                    mover.runner,
                    step,
                    loss_sum=prepared.plan.loss_sum,
                    learning_rate_factor=factor,
                    is_stop_asked=lambda: self.stop.is_made,
                )
            if report.skipped is None:
                mover.move(report.num_steps)
            yield report

    def conclude(self, progress: Progress, *, seconds: float) -> None:
        """Write result.json and say what came out. All ranks together."""
        self.states.finish()
        tested = self._test(progress)
        dist.together(self.trackers.check)
        peak_bytes = max(dist.all_gather_objects(engine.peak_memory_bytes()))
        engine.on_main(lambda: self._say_result(progress, tested, peak_bytes, seconds=seconds))

    def _say_result(
        self, progress: Progress, tested: dict[str, float], peak_bytes: int, *, seconds: float
    ) -> None:
        prepared = self.prepared
        folder, metric = prepared.plan.config.output, prepared.plan.task.metrics[0]
        _, record = engine.read_folder(folder / ADAPTER)
        result = {
            # A run that went on from an earlier state may not have made its best step again.
            "best_step": record["num_steps"],
            "metrics": {**record["metrics"], **tested},
            "num_steps": progress.num_steps,
            "num_skipped": num_skipped(folder),
            "seconds": round(seconds, 3),
            "peak_memory_bytes": peak_bytes,
        }
        write_result(folder, result, workplace=self.hold.workplace)
        show_result(self.trackers, result, adapters=[folder / ADAPTER])
        screen.conclude(
            self.console, prepared, result, metric=metric, majority=majority(prepared.eval)
        )


def _load(prepared: Prepared, state: RunState | None) -> tuple[Loaded, Method]:
    """The backbone with the method on it, as it was where the run was stopped; and the method with
    its mask, where a score chose it or it has moved.
    """
    plan = prepared.plan
    loaded = build.load_backbone(plan, prepared.ds_config)
    if state is None:
        method = chosen(
            plan.method,
            loaded.model,
            ds_config=prepared.ds_config,
            loader=prepared.loader,
            loss_sum=plan.loss_sum,
        )
    else:
        method = dist.together(lambda: with_saved_positions(plan.method, state.fixed))
    build.attach(method, loaded)
    if state is not None:
        engine.load_trained(loaded.model, state.trained)
    return loaded, method


def _start(prepared: Prepared, loaded: Loaded) -> Engine:
    config = prepared.plan.config
    runner = Engine(
        loaded.model,
        head_names=loaded.head_names,
        optimizer=build.optimizer_of(config),
        ds_config=prepared.ds_config,
    )
    # Dropout is a rank's own; what ranks share (the start of the head) is drawn by now, the order
    # of rows apart.
    torch.manual_seed(config.seed + 1 + dist.rank())
    return runner


def _progress(
    prepared: Prepared, runner: Engine, state: RunState | None, accepted: Accepted
) -> Progress:
    """How far the run is, with the optimizer where it was then."""
    if state is None:
        return Progress()
    loss_sum = prepared.plan.loss_sum
    batch = engine.on_device(prepared.loader.step(0).micro_batches[0], runner.device)
    engine.resume(runner, state, any_loss=lambda: loss_sum(runner.in_training, batch))
    progress = progress_of(Progress, state, dict(state.progress))
    if "eval rows" in accepted:  # a score on other rows is beaten by none
        return Progress(num_steps=progress.num_steps, awaits_evaluation=True)
    return progress


def _with_whole_best(progress: Progress, folder: Path, console: Console) -> Progress:
    """The same, where the best adapter is as it was saved; else a progress without one, so that an
    evaluation is made at once and keeps what there is. All ranks together.
    """
    if progress.best_step == 0:
        return progress
    fault = dist.broadcast_object(_fault_of(folder) if dist.is_main() else None)
    if fault is None:
        return progress
    if dist.is_main():
        say(console, f"{fault}; the best adapter is chosen anew from here on")
    return Progress(num_steps=progress.num_steps, awaits_evaluation=True)


def _fault_of(folder: Path) -> str | None:
    try:
        engine.read_folder(folder)
    except CheckpointError as error:
        return str(error)
    return None


def _open_run(
    prepared: Prepared,
    runner: Engine,
    progress: Progress,
    console: Console,
    hold: Hold,
    *,
    how: str,
) -> Trackers:
    """On rank 0: write what the run is, show it, and open its logs."""
    num_trained = runner.num_trained
    warnings = [*prepared.warnings, *kernel_warnings(prepared.plan)]
    if not dist.is_main():
        return Trackers()
    plan, config = prepared.plan, prepared.plan.config
    counts = {
        "trained": num_trained,
        "masked": plan.method.num_parameters,
        "head": num_trained - plan.method.num_parameters,
        "backbone": runner.num_frozen,
    }
    splits = {"train": prepared.train, "eval": prepared.eval, "test": prepared.test}
    rows = {name: split.num_rows for name, split in splits.items() if split is not None}
    record = describe_run(
        config,
        counts=counts,
        workplace=hold.workplace,
        rows=rows,
        warnings=warnings,
        majority=majority(prepared.eval),
        test_majority=None if prepared.test is None else majority(prepared.test),
    )
    screen.introduce(
        console,
        prepared,
        counts=counts,
        device=runner.device,
        resumed_at=progress.num_steps,
        how=how,
        warnings=warnings,
    )
    return open_logs(config, record, last_step=progress.num_steps or -1, workplace=hold.workplace)


def _train_values(report: StepReport) -> dict[str, float]:
    values = {
        "loss": report.loss,
        "lr": report.learning_rate,
        "epoch": report.epoch,
        **report.speed,
        "step_seconds": report.seconds,
    }
    if report.gradient_norm is not None:
        values["gradient_norm"] = report.gradient_norm
    return values


def _is_evaluated(prepared: Prepared, num_steps: int) -> bool:
    every = prepared.plan.config.train.evaluate_every or prepared.loader.steps_per_epoch
    return num_steps % every == 0 or num_steps == prepared.num_steps


def _is_saved(config: RunConfig, num_steps: int) -> bool:
    every = config.train.save_every
    return every is not None and num_steps % every == 0


def _judge(
    prepared: Prepared,
    mover: MaskMover,
    progress: Progress,
    scores: dict[str, float],
    hold: Hold,
) -> Progress:
    """Keep the adapter if its first metric is the best so far."""
    plan, num_steps = prepared.plan, progress.num_steps
    score = scores[f"eval/{plan.task.metrics[0]}"]
    if progress.best_score is not None and score <= progress.best_score:
        return dataclasses.replace(
            progress,
            num_bad_evaluations=progress.num_bad_evaluations + 1,
            awaits_evaluation=False,
        )
    tensors, fixed = mover.runner.read_trained(), saved_positions(mover.method)
    folder = plan.config.output / ADAPTER
    engine.on_main(
        lambda: save_adapter(
            folder,
            plan,
            tensors,
            fixed=fixed,
            num_steps=num_steps,
            metrics=scores,
            workplace=hold.workplace,
        )
    )
    return Progress(num_steps=num_steps, best_step=num_steps, best_score=score)


def _has_stalled(config: RunConfig, progress: Progress) -> bool:
    patience = config.train.patience
    return patience is not None and progress.num_bad_evaluations >= patience
