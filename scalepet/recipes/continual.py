"""Continual learning: the whole story of a stream, from a config to a matrix of accuracies."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch
from rich.console import Console
from torch import Tensor

from scalepet import backbones, build, dist, engine
from scalepet.config import StreamConfig
from scalepet.config.models import Whole
from scalepet.data import Batch, Results
from scalepet.engine import Engine, RunState, States, StepReport
from scalepet.lae import Accumulation, Phase, phases_of, vote
from scalepet.recipes import screen
from scalepet.recipes.adapter import save_adapter
from scalepet.recipes.going_on import Accepted, check_names, progress_of
from scalepet.recipes.learner import Carried, Learner, start_learner
from scalepet.recipes.lock import Hold
from scalepet.recipes.masks import kernel_warnings, saved_positions
from scalepet.recipes.non_finite import NonFinite, num_skipped
from scalepet.recipes.prepare_stream import PreparedStream, prepare_stream
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
    show_result,
    states_of,
    write_result,
)
from scalepet.recipes.stop import stopped, stopping_together, until_asked
from scalepet.signals import Stopped, StopRequest
from scalepet.tracking import Trackers, track_steps

ONLINE, ENSEMBLE = "online", "ensemble"

Copies = Callable[[], Sequence[Mapping[str, Tensor]]]
"""Gives the offline copies, whole. All ranks together."""


@dataclass(frozen=True)
class Progress:
    """How far a stream is.

    Attributes:
        experience: the one that is being learnt, from 0.
        num_steps: optimizer steps done in it.
    """

    experience: Whole = 0
    num_steps: Whole = 0


@dataclass(frozen=True)
class Learnt:
    """One more experience is learnt.

    Attributes:
        folder: the run folder, whose matrix.json holds the results by now.
        num_steps: optimizer steps of the stream so far.
    """

    folder: Path
    results: Results
    num_steps: int
    trackers: Trackers = field(repr=False)


def learn_stream(
    config: StreamConfig,
    *,
    resume: bool,
    console: Console,
    stop: StopRequest | None = None,
    accept: Sequence[str] = (),
) -> Iterator[Learnt]:
    """Learn a stream, and say so after each experience. Called on every rank, which are joined by
    then, and gone through to its end.

    Args:
        resume: go on where the stream in the folder stopped; start where there is none.
        stop: where others ask the stream to stop.
        accept: what may have changed since then, as in "train-rows".

    Raises:
        ScalepetError: on all ranks alike.
        Stopped: on all ranks, with the state saved; while the stream loads, on those that were
            asked.
    """
    stop = stop or StopRequest()
    check_names(accept, PreparedStream.acceptable, resume=resume)
    prepared = dist.together(lambda: prepare_stream(config, resume=resume))
    with alone_in(config.output, resume=resume, console=console) as hold:
        if has_ended(config, resume=resume, console=console):
            return
        state, accepted = load_state(
            prepared, config.output, resume=resume, accept=accept, console=console
        )
        progress = Progress()
        if state:
            progress = progress_of(Progress, state, state.progress.get("stream"))
        results = _results_of(prepared, state)
        if progress.experience == len(prepared.lessons):
            if dist.is_main():
                console.print(f"{config.output}: the stream has been learnt to its end")
            yield Learnt(config.output, results, prepared.num_steps, Trackers())
            return
        learner = start_learner(prepared, state, index=progress.experience)
        torch.manual_seed(config.seed + 1 + dist.rank())  # dropout is a rank's own
        states = states_of(config, hold)
        story = _Story(prepared, learner, states, console, results, state, stop, hold)
        yield from _learn_all(story, progress, accepted)


def _learn_all(story: _Story, progress: Progress, accepted: Accepted) -> Iterator[Learnt]:
    """What is left of the stream."""
    prepared, learner = story.prepared, story.learner
    config = prepared.config
    with (
        stopping_together(story.stop),
        dist.together(lambda: _open_run(story, progress)) as story.trackers,
        story.states,
    ):
        done = prepared.steps_before(progress.experience) + progress.num_steps
        log_accepted(story.trackers, done, accepted)
        story.non_finite = NonFinite(prepared.plan, story.trackers, story.console)
        for index in range(progress.experience, len(prepared.lessons)):
            if index > progress.experience:
                learner.meet(index)
            story.learn(index, start=progress.num_steps if index == progress.experience else 0)
            num_steps = prepared.steps_before(index + 1)
            yield Learnt(config.output, story.results, num_steps, story.trackers)
    if dist.is_main():
        screen.conclude_stream(story.console, config.output)


@dataclass
class _Story:
    """What goes through a stream from one experience to the next."""

    prepared: PreparedStream
    learner: Learner
    states: States
    console: Console
    results: Results
    state: RunState | None
    stop: StopRequest
    hold: Hold
    trackers: Trackers = field(default_factory=Trackers)
    non_finite: NonFinite = field(init=False)
    started: float = field(default_factory=time.perf_counter)

    def learn(self, index: int, *, start: int) -> None:
        """One experience, from optimizer step ``start`` on, to its row of the matrix."""
        lesson = self.prepared.lessons[index]
        phases = phases_of(
            index,
            num_steps=lesson.num_steps,
            freeze_epochs=self.prepared.config.lae.freeze_epochs,
            steps_per_epoch=lesson.loader.steps_per_epoch,
        )
        carried = None
        if self.state is not None and start:
            carried = Carried(self.state.trained, self.state.moments, self.state.adam_steps)
        # The last one begins also where only the examination is left.
        for phase in (phase for phase in phases if phase.stop > start or phase is phases[-1]):
            with self.learner.begin(index, phase, carried) as runner:
                if self.state is not None:
                    engine.restore_random_states(self.state)
                    if start:  # else, as in every phase, fp16's loss scale starts anew
                        runner.write_loss_scaler(self.state.loss_scaler)
                    self.state = None
                rest = dataclasses.replace(phase, start=max(start, phase.start))
                with self.learner.accumulate(runner, index, phase) as copies:
                    self._train(runner, copies, index, rest)
                    self.learner.end(copies)
                if phase.is_frozen:
                    carried = _carry(runner)
                else:
                    self._end(runner, index)

    def _end(self, runner: Engine, index: int) -> None:
        """What follows the last phase of an experience, up to the state that says it is learnt."""
        lesson = self.prepared.lessons[index]
        try:
            self._examine(runner, index)
        except Stopped:
            self._stop(runner, self._rested, Progress(index, lesson.num_steps))
        is_last = index + 1 == len(self.prepared.lessons)
        if is_last:
            self.states.finish()
            self._conclude()
        # Metrics are sealed by the conclusion, which a state that says "learnt" must not precede.
        self._save(runner, self._rested, Progress(index + 1), is_logged=not is_last)

    def _train(self, runner: Engine, copies: Accumulation, index: int, phase: Phase) -> None:
        prepared, before = self.prepared, self.prepared.steps_before(index)
        lesson, every = prepared.lessons[index], prepared.config.train.save_every
        is_first = index == 0 and phase.start == 0
        proof = None
        if is_first:
            proof = proof_of(
                self.learner.method,
                runner,
                lesson.loader,
                loss_sum=prepared.loss_sum(index),
                precision=prepared.config.precision,
            )
        for report in self._steps(runner, index, phase):
            is_made = report.skipped is None
            if is_made:
                copies.follow()
            last = Progress(index, report.num_steps - 1)
            self.non_finite.look(
                report,
                before=before,
                save=partial(self._save_before_the_end, runner, copies, phase, last),
            )
            if proof is not None and is_made:
                proof.look(report.num_steps - self.non_finite.num_skipped)
            if is_made and report.num_steps % prepared.config.train.log_every == 0:
                self.trackers.log(
                    before + report.num_steps, _train_values(report, index), kind="train"
                )
            if report.is_stop_asked:
                self._stop(runner, copies.read, Progress(index, report.num_steps))
            is_due = report.num_steps % (every or lesson.loader.steps_per_epoch) == 0
            if is_due and report.num_steps < lesson.num_steps:
                self._save(runner, copies.read, Progress(index, report.num_steps))

    def _steps(self, runner: Engine, index: int, phase: Phase) -> Iterator[StepReport]:
        """The optimizer steps of a phase, under a progress bar."""
        return track_steps(
            self._each_step(runner, index, phase),
            total=phase.stop,
            start=phase.start,
            describe=lambda report: {"loss": report.loss, "lr": report.learning_rate},
            shown=dist.is_main(),
            console=self.console,
        )

    def _each_step(self, runner: Engine, index: int, phase: Phase) -> Iterator[StepReport]:
        lesson, train = self.prepared.lessons[index], self.prepared.config.train
        loss_sum = self.prepared.loss_sum(index)
        for step in itertools.islice(lesson.loader.steps(phase.start), phase.stop - phase.start):
            factor = build.learning_rate_factor(train, step.index, num_steps=lesson.num_steps)
            yield engine.train_step(
                runner,
                step,
                loss_sum=loss_sum,
                learning_rate_factor=factor,
                is_stop_asked=lambda: self.stop.is_made,
            )

    def _examine(self, runner: Engine, index: int) -> None:
        """The accuracy of every expert on every experience so far, and what follows from it."""
        self.states.check()
        dist.together(self.trackers.check)
        row: dict[str, list[float]] = {}
        with self.learner.as_experts(runner.device):
            for seen in range(index + 1):
                for expert, accuracy in self._accuracies(runner, seen, index).items():
                    row.setdefault(expert, []).append(accuracy)
        self.results = self.results.with_row(row)
        num_steps, folder = self.prepared.steps_before(index + 1), self.prepared.config.output
        summary = {f"eval/{name}": value for name, value in self.results.summary().items()}
        self.trackers.log(num_steps, {"experience": index + 1, **summary}, kind="eval")
        saved = self.learner.experts_to_save()
        engine.on_main(lambda: self.results.write(folder, workplace=self.hold.workplace))
        for expert, tensors in saved.items():
            engine.on_main(partial(self._save_adapter, expert, tensors, index))
        if dist.is_main():
            screen.show_row(self.console, self.prepared.lessons[index].name, self.results)

    def _accuracies(self, runner: Engine, seen: int, index: int) -> dict[str, float]:
        """Of every expert on one experience, among all classes up to ``index``."""
        lesson = self.prepared.lessons[seen]
        assert lesson.eval.classes is not None
        right = torch.tensor(lesson.classes)[torch.from_numpy(lesson.eval.classes).long()]
        found = engine.each_row(
            runner.module,
            lesson.eval,
            partial(self._choose, runner, self.prepared.num_seen(index)),
            micro_batch_size=self.prepared.config.evaluate.micro_batch_size,
            pad_id=self.prepared.plan.pad_id,
            device=runner.device,
            track=until_asked(screen.bar(self.console), self.stop),
        )
        answers = torch.tensor(found)
        shares = (answers == right[:, None]).double().mean(0).tolist()
        names = [*self.learner.experts, ENSEMBLE][: len(shares)]
        return dict(zip(names, shares, strict=True))

    def _choose(
        self, runner: Engine, num_seen: int, batch: Batch, tensors: Mapping[str, Tensor]
    ) -> list[list[int]]:
        """The class that each expert chooses and, where there are several, all of them together."""
        words = self.prepared.label_ids
        scores = backbones.class_scores(
            runner.module,
            tensors,
            None if words is None else words[:num_seen],
            config=self.prepared.plan.model_config,
        )
        experts = backbones.members_of(scores)
        chosen = [one.argmax(-1) for one in experts]
        if len(experts) > 1:
            chosen.append(vote(experts, self.prepared.config.lae.vote).argmax(-1))
        rows: list[list[int]] = torch.stack(chosen, dim=1).tolist()
        return rows

    def _save_adapter(self, expert: str, tensors: Mapping[str, Tensor], index: int) -> None:
        config = self.prepared.config
        name = ADAPTER if expert == ONLINE else f"{ADAPTER}-{expert.replace(' ', '-')}"
        save_adapter(
            config.output / name,
            self.prepared.plan_after(index),
            tensors,
            fixed=saved_positions(self.learner.method),
            num_steps=self.prepared.steps_before(index + 1),
            metrics=self.results.summary(),
            workplace=self.hold.workplace,
        )

    def _conclude(self) -> None:
        """Write result.json. All ranks together."""
        dist.together(self.trackers.check)
        peak_bytes = max(dist.all_gather_objects(engine.peak_memory_bytes()))
        folder = self.prepared.config.output
        result = {
            "metrics": self.results.summary(),
            "num_steps": self.prepared.num_steps,
            "num_skipped": num_skipped(folder),
            "seconds": round(time.perf_counter() - self.started, 3),
            "peak_memory_bytes": peak_bytes,
        }
        engine.on_main(lambda: write_result(folder, result, workplace=self.hold.workplace))
        if dist.is_main():
            self.trackers.table("accuracies", *self.results.as_table())
            adapters = [path for path in sorted(folder.glob(f"{ADAPTER}*")) if not path.suffix]
            show_result(self.trackers, result, adapters=adapters)

    def _rested(self) -> Sequence[Mapping[str, Tensor]]:
        """The offline copies between two phases."""
        return self.learner.offline

    def _stop(self, runner: Engine, copies: Copies, progress: Progress) -> NoReturn:
        self._save(runner, copies, progress)
        self.states.finish()
        num_steps = self.prepared.steps_before(progress.experience) + progress.num_steps
        raise stopped(num_steps=num_steps, total=self.prepared.num_steps)

    def _save_before_the_end(
        self, runner: Engine, copies: Accumulation, phase: Phase, progress: Progress
    ) -> None:
        """The state before a step at which the stream ends, where that is not saved yet. What a
        phase begins with was saved before it, or is made again.
        """
        num_steps = self.prepared.steps_before(progress.experience) + progress.num_steps
        if progress.num_steps > phase.start and num_steps != self.states.last_saved:
            self._save(runner, copies.read, progress)
        self.states.finish()

    def _save(
        self, runner: Engine, copies: Copies, progress: Progress, *, is_logged: bool = True
    ) -> None:
        names = engine.trained_parameters(runner.module)
        num_steps = self.prepared.steps_before(progress.experience) + progress.num_steps
        report = self.states.save(
            num_steps,
            runner,
            progress={"stream": dataclasses.asdict(progress), "results": self.results.to_json()},
            fingerprint=fingerprint_of(self.prepared, self.trackers),
            fixed=lambda: self.learner.fixed(copies(), names),
        )
        if is_logged:
            self.trackers.log(num_steps, dataclasses.asdict(report), kind="save")


def _carry(runner: Engine) -> Carried:
    """The head and its optimizer, which go on while the method starts anew."""
    return Carried(runner.read_trained(), runner.read_optimizer(), runner.read_adam_steps())


def _results_of(prepared: PreparedStream, state: RunState | None) -> Results:
    if state is None:
        return Results({lesson.name: lesson.eval.num_rows for lesson in prepared.lessons})
    return Results.from_json(state.progress["results"], where=str(state.folder))


def _open_run(story: _Story, progress: Progress) -> Trackers:
    """On rank 0: write what the run is, show it, and open its logs."""
    prepared, learner = story.prepared, story.learner
    warnings = [*prepared.warnings, *kernel_warnings(prepared.plan)]
    if not dist.is_main():
        return Trackers()
    config = prepared.config
    counts = learner.counts()
    workplace = story.hold.workplace
    record = describe_run(config, counts=counts, workplace=workplace, warnings=warnings)
    done = prepared.steps_before(progress.experience) + progress.num_steps
    screen.introduce_stream(
        story.console,
        prepared,
        counts=counts,
        how=learner.loaded.how,
        resumed_at=done,
        warnings=warnings,
    )
    return open_logs(config, record, last_step=done or -1, workplace=workplace)


def _train_values(report: StepReport, index: int) -> dict[str, float]:
    return {
        "loss": report.loss,
        "lr": report.learning_rate,
        "experience": index + 1,
        "epoch": report.epoch,
        **report.speed,
        "step_seconds": report.seconds,
    }
