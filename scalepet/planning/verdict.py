"""Which layouts fit, the simplest and the fastest of them, and what would help where none does."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from scalepet.planning.hardware import GIB, GPUS, Machines
from scalepet.planning.layouts import LAYOUTS, Layout, layouts_for
from scalepet.planning.memory import Line, gpu_lines, host_lines
from scalepet.planning.traffic import Traffic, count_traffic
from scalepet.planning.work import Work

_MAX_GPUS = 4096
"""No larger machine is proposed."""

_TIE = 0.01
"""By how much estimated times have to differ to be different."""


@dataclass(frozen=True)
class Verdict:
    """One layout, with or without activation checkpointing.

    Attributes:
        name: of the file in ``ds_configs/``.
        gpu, host: what one GPU and the fullest host hold.
        spare_bytes, host_spare_bytes: left over; negative is what is missing. None for a host whose
            memory nobody has said.
        most_rows: of the largest micro-batch that fits; 0 where not even one row does.
        tokens_to_hide: of a GPU and micro-batch, above which arithmetic takes longer than gathers;
            0 where nothing is gathered.
    """

    name: str
    is_checkpointed: bool
    gpu: tuple[Line, ...]
    host: tuple[Line, ...]
    gpu_bytes: int
    host_bytes: int
    spare_bytes: int
    host_spare_bytes: int | None
    most_rows: int
    traffic: Traffic
    tokens_to_hide: int

    @property
    def fits(self) -> bool:
        return self.spare_bytes >= 0 and (self.host_spare_bytes or 0) >= 0


@dataclass(frozen=True)
class Outlook:
    """The plan of a run.

    Attributes:
        verdicts: of every layout that differs here, each without and with activation checkpointing.
        simplest: the first that fits; None where none does.
        fastest: of those that fit; the simplest of them where there are several.
        warnings: what is worth a change.
        ways_out: what would fit, where nothing does.
    """

    verdicts: tuple[Verdict, ...]
    simplest: Verdict | None
    fastest: Verdict | None
    warnings: tuple[str, ...]
    ways_out: tuple[str, ...]


def judge_all(work: Work, machines: Machines, *, is_checkpointed: bool) -> Outlook:
    """Everything about a run on these machines.

    Args:
        is_checkpointed: what the run asks for; the simplest that fits has it if it can.
    """
    verdicts = tuple(
        judge(work, layout, machines, is_checkpointed=is_checkpointed)
        for layout, is_checkpointed in product(layouts_for(machines), (False, True))
    )
    fitting = [verdict for verdict in verdicts if verdict.fits]
    # What the run asks for comes first; the sort keeps the order of the layouts.
    preferred = sorted(fitting, key=lambda verdict: verdict.is_checkpointed != is_checkpointed)
    simplest = preferred[0] if preferred else None
    by_time = sorted(fitting, key=lambda verdict: verdict.traffic.step_seconds)
    fastest = next((v for v in fitting if _is_as_fast(v, by_time[0])), None)
    return Outlook(
        verdicts,
        simplest,
        fastest,
        tuple(_warnings(work, verdicts, simplest, is_checkpointed=is_checkpointed)),
        () if fitting else tuple(_ways_out(work, machines, verdicts)),
    )


def judge(work: Work, layout: Layout, machines: Machines, *, is_checkpointed: bool) -> Verdict:
    """One layout on these machines."""
    gpu = gpu_lines(work, layout, machines, is_checkpointed=is_checkpointed)
    host = host_lines(work, layout, machines)
    gpu_bytes, host_bytes = _total(gpu), _total(host)
    host_spare = None
    if machines.host_gib is not None:
        host_spare = round(machines.host_gib * GIB) - host_bytes
    traffic = count_traffic(work, layout, machines, is_checkpointed=is_checkpointed)
    slower = traffic.micro_link_seconds / traffic.micro_compute_seconds
    return Verdict(
        name=layout.name,
        is_checkpointed=is_checkpointed,
        gpu=gpu,
        host=host,
        gpu_bytes=gpu_bytes,
        host_bytes=host_bytes,
        spare_bytes=machines.usable_bytes - gpu_bytes,
        host_spare_bytes=host_spare,
        most_rows=_most_rows(work, layout, machines, is_checkpointed=is_checkpointed),
        traffic=traffic,
        tokens_to_hide=math.ceil(work.tokens(work.rows) * slower),
    )


def _is_as_fast(verdict: Verdict, other: Verdict) -> bool:
    """Of two that can hardly be told apart, none is the slower one."""
    return verdict.traffic.step_seconds <= (1 + _TIE) * other.traffic.step_seconds


def _total(lines: Sequence[Line]) -> int:
    return sum(line.num_bytes for line in lines)


def _most_rows(work: Work, layout: Layout, machines: Machines, *, is_checkpointed: bool) -> int:
    """Bytes grow with the rows, the faster the more of them there are: of two things the larger
    one counts.
    """

    def needed(rows: int) -> int:
        lines = gpu_lines(work.with_rows(rows), layout, machines, is_checkpointed=is_checkpointed)
        return _total(lines)

    one = needed(1)
    a_row = (needed(1025) - one) / 1024
    bound = max(1025, 1 + math.floor((machines.usable_bytes - one) / a_row))
    return bisect.bisect_right(range(1, bound + 1), machines.usable_bytes, key=needed)


def _warnings(
    work: Work,
    verdicts: Sequence[Verdict],
    simplest: Verdict | None,
    *,
    is_checkpointed: bool,
) -> Iterator[str]:
    by_name = {v.name: v for v in verdicts if v.is_checkpointed == is_checkpointed}
    whole, sharded = by_name["zero0"], by_name.get("zero3")
    if sharded and whole.fits and _is_as_fast(whole, sharded):
        yield (
            "the backbone fits whole on every GPU: zero0 gathers no frozen weight, zero3 would"
            f" gather {_gb(sharded.traffic.step_gathered_bytes)} a step"
            f" ({sharded.traffic.step_seconds:.3g} to {sharded.traffic.step_seconds_exposed:.3g} s"
            f" instead of {whole.traffic.step_seconds:.3g} s)"
        )
    looked_at = simplest if simplest and simplest.tokens_to_hide else sharded
    if looked_at is None:
        return
    tokens, needed = work.tokens(work.rows), looked_at.tokens_to_hide
    if needed > tokens:
        rows = math.ceil(needed / work.tokens(1))
        most = looked_at.most_rows
        fits = f"at most {most} fit" if rows > most else "which fit"
        yield (
            f"{looked_at.name}: gathers take longer than arithmetic"
            f" ({looked_at.traffic.micro_link_seconds:.3g} s against"
            f" {looked_at.traffic.micro_compute_seconds:.3g} s a micro-batch); to hide them needs"
            f" {needed:,} tokens a GPU and micro-batch ({rows:,} rows, {fits}), there are"
            f" {tokens:,}"
        )
    local = by_name.get("zero3_hpz")
    if (
        sharded
        and local
        and simplest is sharded
        and local.fits
        and local.traffic.step_seconds < sharded.traffic.step_seconds
    ):
        yield (
            f"zero3_hpz fits too and gathers inside a node: {local.traffic.step_seconds:.3g} s a"
            f" step instead of {sharded.traffic.step_seconds:.3g} s"
        )


def _ways_out(work: Work, machines: Machines, verdicts: Sequence[Verdict]) -> Iterator[str]:
    closest = max(verdicts, key=lambda verdict: verdict.spare_bytes)
    if closest.spare_bytes < 0:
        with_it = " with activation checkpointing" if closest.is_checkpointed else ""
        yield (
            f"Nothing fits: {closest.name}{with_it} comes closest and lacks"
            f" {-closest.spare_bytes / GIB:.1f} GiB a GPU"
        )
    short_of_host = {  # with and without activation checkpointing a host holds the same
        verdict.name: verdict
        for verdict in verdicts
        if verdict.spare_bytes >= 0 and (verdict.host_spare_bytes or 0) < 0
    }
    for name, verdict in short_of_host.items():
        missing = -(verdict.host_spare_bytes or 0)
        yield f"{name}: the host lacks {missing / GIB:.0f} GiB of {verdict.host_bytes / GIB:.0f}"
    held = [verdict for verdict in verdicts if (verdict.host_spare_bytes or 0) >= 0]
    most = max((verdict.most_rows for verdict in held), default=0)
    if most:
        yield f"With train.micro_batch_size={most} it would fit"
    more = _enough_gpus(work, machines)
    if more is not None:
        yield f"{more} GPUs of this kind would hold it"
    kinds = [name for name in GPUS if _any_fits(work, replace(machines, kind=name))]
    if kinds:
        yield f"As many GPUs of these kinds would hold it: {', '.join(kinds)}"


def _enough_gpus(work: Work, machines: Machines) -> int | None:
    """The first of twice, four times ... as many, in nodes of the same size, each with a row."""
    factor = 2
    while machines.num_gpus * factor <= min(_MAX_GPUS, work.batch_size):
        larger = replace(
            machines,
            num_gpus=machines.num_gpus * factor,
            num_nodes=machines.num_nodes * (factor if machines.num_nodes > 1 else 1),
        )
        if _any_fits(work, larger):
            return larger.num_gpus
        factor *= 2
    return None


def _any_fits(work: Work, machines: Machines) -> bool:
    """With activation checkpointing, which needs least."""
    return any(
        judge(work, layout, machines, is_checkpointed=True).fits
        for layout in LAYOUTS
        if layout in layouts_for(machines)
    )


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.1f} GB"
