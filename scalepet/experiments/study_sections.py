"""The parts of a study report: what is shown, in which words, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count

from scalepet.experiments import claim_figures, curve_figures
from scalepet.experiments import study_tables as tables
from scalepet.experiments.cells import CellScores
from scalepet.experiments.claims import MIN_POSITION_SEEDS, Gap, Spread, by_setting
from scalepet.experiments.costs import Cost, loss_lines, shown_in_convergence
from scalepet.experiments.logistic import NoFit
from scalepet.experiments.marks import size_of
from scalepet.experiments.overlap import MaskOverlap, Placed
from scalepet.experiments.score_curves import Curve
from scalepet.experiments.study_page import Picture, Section
from scalepet.experiments.study_runs import LeftOut

INTERVALS = (
    "Intervals are 95 % of 1,000 bootstrap draws (200 for the midpoint): the seeds of each size are"
    " drawn with replacement, and at the score of each drawn seed the right rows from a binomial"
    " distribution (where rows score between 0 and 1, its variance is at least theirs). They do not"
    " contain what another draw of the training rows would change."
)


@dataclass(frozen=True)
class Findings:
    """All numbers of a report.

    Attributes:
        missing_masks: why some masks could not be compared.
    """

    cells: Sequence[CellScores]
    spreads: Sequence[Spread]
    gaps: Sequence[Gap]
    curves: Sequence[Curve]
    placed: Sequence[Placed]
    overlaps: Sequence[MaskOverlap]
    missing_masks: Sequence[str]
    costs: Sequence[Cost]
    left_out: Sequence[LeftOut]

    @property
    def looks(self) -> dict[str, tuple[str, str]]:
        return claim_figures.looks_of(self.cells)


def sections_of(found: Findings, *, origin: str) -> list[Section]:
    """The report from top to bottom; a part that has nothing to show says so. No two figures have
    one name.
    """
    sections = [
        _overview(found),
        _methods(found, origin),
        _gaps(found, origin),
        _curves(found, origin),
        _positions(found, origin),
        _convergence(found, origin),
        _costs(found, origin),
        _everything(found),
    ]
    taken: set[str] = set()
    return [replace(s, pictures=[_named_once(p, taken) for p in s.pictures]) for s in sections]


def _named_once(picture: Picture, taken: set[str]) -> Picture:
    """With a number where another figure is called so; a and A are one file on some systems."""
    numbered = (f"{picture.name}-{number}" for number in count(2))
    name = next(n for n in chain([picture.name], numbered) if n.casefold() not in taken)
    taken.add(name.casefold())
    return replace(picture, name=name)


def _overview(found: Findings) -> Section:
    settings = by_setting(found.cells)
    backbones = list(found.looks)
    tasks = sorted({task for _, task in settings})
    num_runs = sum(len(cell.tries) + len(cell.runs) - 1 for cell in found.cells)
    heads = [cell.head for cell in found.cells if cell.head]
    sentences = [
        f"{_counted(len(found.cells), 'cell')} of {_counted(len(backbones), 'backbone')}"
        f" ({', '.join(backbones)}) and {_counted(len(tasks), 'task')} ({', '.join(tasks)}),"
        f" out of {num_runs:,} finished runs.",
        "In every cell the learning rate is the one with the best score on the eval rows at the"
        " first seeds; what is reported is the score on the test rows, which nothing was chosen by,"
        " over all seeds.",
        "N counts the parameters that a method tunes in or beside the backbone."
        + (
            f" A head trains beside every method, and is not in N: {_range(heads)}."
            if heads
            else ""
        ),
    ]
    if found.left_out:
        sentences.append(
            f"{_counted(len(found.left_out), 'run folder')} left out; the last part says which and"
            " why."
        )
    return Section("Overview", "What was run", sentences)


def _range(sizes: Sequence[int]) -> str:
    ends = dict.fromkeys((min(sizes), max(sizes)))
    return " to ".join(f"{size:,}" for size in ends) + " parameters"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _methods(found: Findings, origin: str) -> Section:
    sentences = [
        "Claim C1: on small models methods differ visibly, and the differences shrink with scale."
        " The spread is the sample standard deviation over the mean scores of prompt, BitFit, LoRA"
        " and adapter, of those that the study has."
    ]
    table = tables.method_table(found.cells, found.spreads)
    pictures = []
    if table.rows:
        names = {cell.key.method for cell in found.cells if cell.key.budget is None}
        num_tasks = len({cell.key.task for cell in found.cells})
        height = 1.5 + 0.42 * len(names)
        pictures.append(
            Picture(
                "c1_methods",
                "Test score by method. Whiskers: sample standard deviation over seeds; hollow: one"
                " seed, so none is known.",
                _with_room(num_tasks, width=4.6, height=height),
                partial(
                    claim_figures.draw_methods, cells=found.cells, looks=found.looks, origin=origin
                ),
            )
        )
    else:
        sentences.append("No method with a size of its own was run.")
    scaled = [spread for spread in found.spreads if _has_scale(spread, found.spreads)]
    if scaled:
        pictures.append(
            Picture(
                "c1_spread",
                "Spread over methods against the size of the backbone, a line for each task.",
                (7.6, 4.6),
                partial(claim_figures.draw_spreads, spreads=scaled, origin=origin),
            )
        )
    else:
        sentences.append(
            "No task was run with at least two methods on two backbones of different size: how the"
            " spread changes with scale is not shown."
        )
    return Section("Methods", "C1: do methods differ?", sentences, pictures, [table])


def _has_scale(spread: Spread, spreads: Sequence[Spread]) -> bool:
    own = {s.backbone_size for s in spreads if s.task == spread.task and s.value is not None}
    return spread.value is not None and len(own) > 1


def _gaps(found: Findings, origin: str) -> Section:
    sentences = [
        "Claim C2: scale removes the effect of where the trained parameters are: APET at exactly"
        " the count of a method is about as good. The gap is the score of the method less the mean"
        " of APET over position seeds."
    ]
    if not found.gaps:
        sentences.append("No cell of this study matches the count of another method.")
        return Section("Same count", "C2: does the place matter?", sentences)
    few = [gap for gap in found.gaps if gap.deviation is None]
    if few:
        sentences.append(
            f"{len(few)} of {len(found.gaps)} gaps have fewer than {MIN_POSITION_SEEDS} position"
            " seeds: they are shown hollow, without a deviation."
        )
    num_tasks = len({gap.task for gap in found.gaps})
    num_rows = len({(gap.matched, gap.apet) for gap in found.gaps})
    picture = Picture(
        "c2_gaps",
        "Score of a method less that of APET at exactly its count; right of zero the method is"
        " better. Whiskers: sample standard deviation of APET over position seeds; ticks: the gap"
        " to each of them.",
        _with_room(num_tasks, width=4.6, height=1.6 + 0.5 * num_rows),
        partial(claim_figures.draw_gaps, gaps=found.gaps, looks=found.looks, origin=origin),
    )
    table = tables.gap_table(found.gaps)
    return Section("Same count", "C2: does the place matter?", sentences, [picture], [table])


def _curves(found: Findings, origin: str) -> Section:
    title = "C3, C4: how few are enough?"
    sentences = [
        "Claim C3: with scale, fewer parameters reach full tuning (high threshold). Claim C4: on"
        " one model, methods need similarly many to beat a guess (low threshold), whatever the"
        " task. A logistic curve in log N is fitted to the mean scores, its ends free within the"
        " range of the scores."
    ]
    if not found.curves:
        sentences.append("No method was run at two or more sizes.")
        return Section("Curves", title, sentences)
    sentences.append(
        "Low: the smallest N at which every seed beats the guess, each by its own one-sided exact"
        " test at 5 %. All seeds have to pass, since they share their test rows and are not"
        " independent evidence. High: the smallest N whose mean score is at least the mean of full"
        " tuning less one sample standard deviation over its repeats."
    )
    sentences.append(INTERVALS)
    sentences += _about_curves(found.curves)
    pictures = [_curve_picture(found, *key, origin) for key in _curve_groups(found.curves)]
    num_rows = len({(curve.task, curve.method) for curve in found.curves})
    pictures.append(
        Picture(
            "c3_c4_thresholds",
            "Thresholds of every task. Whiskers: 95 % by the bootstrap. Hollow, at the left edge:"
            " the head alone is enough; at the right edge: not reached by the largest size.",
            (14.0, 2.4 + 0.5 * num_rows),
            partial(curve_figures.draw_thresholds, curves=found.curves, origin=origin),
        )
    )
    own = [tables.threshold_table(found.curves), tables.point_table(found.curves)]
    return Section("Curves", title, sentences, pictures, own)


def _curve_groups(curves: Sequence[Curve]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((curve.backbone, curve.method) for curve in curves))


def _curve_picture(found: Findings, backbone: str, method: str, origin: str) -> Picture:
    own = [curve for curve in found.curves if (curve.backbone, curve.method) == (backbone, method)]
    return Picture(
        f"c3_curve_{_file_name(backbone)}_{_file_name(method)}",
        f"{method} on {backbone}: test score against the number of tuned parameters. Faint points:"
        " seeds; points with whiskers: their mean and sample standard deviation; line: logistic"
        " fit; diamonds: other methods at their size; band: full tuning ± its standard deviation;"
        " triangles: low (hollow) and high threshold with their intervals.",
        _with_room(len(own), width=6.2, height=4.7),
        partial(curve_figures.draw_curves_of, curves=own, origin=origin),
    )


def _about_curves(curves: Sequence[Curve]) -> list[str]:
    """What is not there, and where: a sentence for each reason."""
    places: dict[str, list[str]] = {}
    for curve in curves:
        reasons = []
        if isinstance(curve.fit, NoFit):
            reasons.append(f"No curve is fitted ({curve.fit.reason})")
        if curve.low.value == 0:
            reasons.append("The head alone beats the guess, so the low threshold is 0")
        for word, threshold in (("low", curve.low), ("high", curve.high)):
            if threshold.value is None and threshold.interval is None:
                reasons.append(f"No {word} threshold ({threshold.reason})")
        for reason in reasons:
            places.setdefault(reason, []).append(
                f"{curve.method} on {curve.backbone}, {curve.task}"
            )
    return [f"{reason}: {'; '.join(names)}." for reason, names in places.items()]


def _positions(found: Findings, origin: str) -> Section:
    title = "The same number in different places"
    sentences = [
        "The position study: equally many entries of the backbone, chosen at random, by rule, by"
        " score, or in one place."
    ]
    own = []
    pictures = []
    if found.placed:
        groups = {(group.task, group.budget) for group in found.placed}
        names = {cell.key.method for group in found.placed for cell in group.cells}
        picture = Picture(
            "positions",
            "Test score of equally many tuned entries in different places. Whiskers: sample"
            " standard deviation over seeds; ticks: seeds; hollow: one seed.",
            _with_room(len(groups), width=4.8, height=1.6 + 0.45 * len(names)),
            partial(
                claim_figures.draw_positions, placed=found.placed, looks=found.looks, origin=origin
            ),
        )
        pictures.append(picture)
        own.append(tables.position_table(found.placed))
    else:
        sentences.append("No budget of this study was given to two ways to choose positions.")
    if found.overlaps:
        own.append(tables.overlap_table(found.overlaps))
    sentences += [f"Masks that are not compared: {reason}." for reason in found.missing_masks]
    return Section("Positions", title, sentences, pictures, own)


def _convergence(found: Findings, origin: str) -> Section:
    sentences = [
        "Training loss, the mean over seeds, against steps and against the seconds of training"
        " steps (evaluations left out; a logarithmic axis); faint lines are single records, strong"
        " ones their moving mean. Of methods with several sizes the smallest, the one nearest to"
        " LoRA's count and the largest are drawn."
    ]
    pictures = []
    for (backbone, task), group in by_setting(found.cells).items():
        shown = [cell for cell in shown_in_convergence(group) if loss_lines(cell) is not None]
        if shown:
            pictures.append(
                Picture(
                    f"convergence_{_file_name(backbone)}_{_file_name(task)}",
                    f"{backbone}, {task}.",
                    (12.0, 4.6),
                    partial(claim_figures.draw_convergence, cells=shown, origin=origin),
                )
            )
    if not pictures:
        sentences.append("No run has logged its loss.")
    return Section("Convergence", "How fast the loss falls", sentences, pictures)


def _costs(found: Findings, origin: str) -> Section:
    sentences = [
        "Seconds of one optimizer step (median over a run, mean over seeds) and peak memory of one"
        " rank. On a CPU the peak is the resident memory of the process, with its libraries and"
        " what a run before it has left there: an upper bound."
    ]
    measured = [cost for cost in found.costs if cost.is_measured]
    if not measured:
        sentences.append("No run has measured its cost.")
        return Section("Cost", "What it costs", sentences)
    sizes = {cost.cell.backbone_size for cost in measured}
    if len(sizes) == 1:
        sentences.append("One size of backbone: cost against its size is not shown.")
    picture = Picture(
        "costs",
        "Seconds a step and peak memory against the number of tuned parameters"
        + (" and the size of the backbone." if len(sizes) > 1 else "."),
        (5.4 * (2 if len(sizes) == 1 else 3), 4.8),
        partial(claim_figures.draw_costs, costs=measured, looks=found.looks, origin=origin),
    )
    table = tables.cost_table(measured)
    return Section("Cost", "What it costs", sentences, [picture], [table], is_folded=True)


def _everything(found: Findings) -> Section:
    own = [tables.cell_table(found.cells)]
    if found.left_out:
        own = [tables.left_out_table(found.left_out), *own]
    sentences = [] if found.left_out else ["No run folder was left out."]
    return Section("All cells", "Every cell, and what was left out", sentences, tables=own)


def _with_room(num_panels: int, *, width: float, height: float) -> tuple[float, float]:
    """Inches for panels with row names on the left and a legend above."""
    inner_width, inner_height = size_of(num_panels, width=width, height=height)
    return inner_width + 1.0, inner_height + 0.5


def _file_name(name: str) -> str:
    return "".join(char if char.isalnum() or char in "-." else "_" for char in name)
