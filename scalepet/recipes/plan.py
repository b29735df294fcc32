"""Plan a run from its config alone: no weights, no rows, no tokenizer, no DeepSpeed."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

from scalepet import backbones, build, engine, pet, planning
from scalepet.backbones import Site
from scalepet.config import FurtherMethod, RunConfig, method_options
from scalepet.errors import ConfigError, Faults
from scalepet.pet import Apet, Method
from scalepet.planning import GIB, Machines, Outlook, Shape, Work

ASSUMED_CLASSES = 2
TEMPORARY_BYTES = 128 * 2**20
"""Of value gradients: 2**24 products of an element in 16 bits twice and in fp32 once."""

WHOLE_GRADIENT_DENSITY = 0.002
"""Above it the gradient of a masked weight is formed tile by tile, as a dense one is."""


@dataclass(frozen=True)
class RunPlan:
    """What a run needs and where it fits.

    Attributes:
        assumptions: what was taken for granted, in plain words.
    """

    config: RunConfig
    work: Work
    machines: Machines
    outlook: Outlook
    assumptions: tuple[str, ...]

    def as_data(self) -> dict[str, Any]:
        """The plan as values that JSON can hold."""
        work, outlook = self.work, self.outlook
        machines = dataclasses.asdict(self.machines)
        return {
            "backbone": {
                "path": self.config.backbone.path,
                "num_parameters": work.shape.numel,
                "num_frozen": work.num_frozen,
                "num_trained": work.num_trained,
            },
            "machines": {**machines, "usable_bytes": self.machines.usable_bytes},
            "batch_size": work.batch_size,
            "micro_batch_size": work.rows,
            "tokens": {"source": work.source, "target": work.target, "prompt": work.prompt},
            "layouts": [
                {**dataclasses.asdict(verdict), "fits": verdict.fits}
                for verdict in outlook.verdicts
            ],
            "simplest": _name_of(outlook.simplest),
            "fastest": _name_of(outlook.fastest),
            "warnings": list(outlook.warnings),
            "ways_out": list(outlook.ways_out),
            "assumptions": list(self.assumptions),
        }


def _name_of(verdict: planning.Verdict | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    return {
        "name": verdict.name,
        "is_checkpointed": verdict.is_checkpointed,
        "most_rows": verdict.most_rows,
    }


def plan(config: RunConfig, machines: Machines, *, num_offline: int = 0) -> RunPlan:
    """Everything that is known about a run before it is queued.

    Args:
        num_offline: offline copies that LAE would keep.

    Raises:
        ConfigError: every fault of backbone, task and method, and a batch that leaves GPUs idle.
    """
    faults = Faults()
    with faults.noted():
        check_batch(config, num_gpus=machines.num_gpus)
    work = None
    with faults.noted():
        work = work_of(config, num_gpus=machines.num_gpus)
    faults.raise_any()
    assert work is not None
    work = dataclasses.replace(work, num_offline=num_offline)
    is_checkpointed = config.backbone.checkpoint_activations
    outlook = planning.judge_all(work, machines, is_checkpointed=is_checkpointed)
    return RunPlan(config, work, machines, outlook, tuple(_assumptions(config, work, machines)))


def check_batch(config: RunConfig, *, num_gpus: int) -> None:
    """Raises ConfigError where a step has fewer rows than there are GPUs."""
    size = config.train.batch_size
    if size < num_gpus:
        raise ConfigError(
            f"train.batch_size: {size} rows for --gpus {num_gpus}; allowed: at least {num_gpus},"
            " one for each"
        )


def work_of(config: RunConfig, *, num_gpus: int) -> Work:
    """The planner's numbers of a run.

    Raises:
        ConfigError: every fault of backbone, task form and method, and a DeepSpeed file that is not
            there; what stands in it is looked at by DeepSpeed alone, whose import takes too long.
    """
    faults = Faults()
    with faults.noted():
        engine.find_ds_file(config.deepspeed)
    model_config: Any = None
    with faults.noted():
        num_classes = len(config.task.labels) or ASSUMED_CLASSES
        model_config = backbones.read_model_config(
            build.backbone_of(config, num_classes=num_classes)
        )
    if model_config is None:
        faults.raise_any()
    shape = _shape(model_config)
    with faults.noted():
        _, method = build.form_and_method(
            config,
            config.task,
            model_config,
            find_sites=lambda: sites_of(shape),
            options_of=counted_options,
        )
    faults.raise_any()
    return _work(config, shape, pet.parts_of(method), num_gpus=num_gpus)


def _shape(model_config: Any) -> Shape:
    # Some fields are properties of the config's class, which its dictionary leaves out.
    extra = {
        name: getattr(model_config, name)
        for name in ("num_labels", "has_own_head")
        if hasattr(model_config, name)
    }
    return planning.shape_of({**model_config.to_dict(), **extra})


def sites_of(shape: Shape) -> tuple[Site, ...]:
    """What ``sketch_sites`` finds on the model itself, without the import of its code."""
    return tuple(
        Site(
            name=tensor.name,
            shape=tensor.shape,
            kind=tensor.kind,
            layer=tensor.layer,
            role=tensor.role,
            part=tensor.part,
            head_width=shape.head_width if tensor.part in backbones.ATTENTION_PARTS else None,
            is_cross=tensor.is_cross,
        )
        for tensor in shape.tensors
        if not tensor.is_of_task
    )


def counted_options(section: FurtherMethod) -> dict[str, Any]:
    """Options with which masks are counted and not drawn: to draw ten million takes half a second,
    and a mask that is chosen by a score has no positions until the weights are there.
    """
    options = method_options(section)
    if (
        section.name == "apet"
        and options["operation"] == "add"
        and options["unit"] == "element"
        and not options["calibrated"]  # then the mask says how many tensors get a scale
    ):
        options["select"] = "magnitude" if options["select"] == "random" else options["select"]
    return options


@dataclass(frozen=True)
class Tuned:
    """What methods add up to.

    Attributes:
        sizes: of the tensors that train, those of the head left out.
        in_place: names of the backbone's own tensors that train.
        beside, outputs, slots: as ``count_activations`` takes them.
        whole_gradients, index_bytes, temporary_bytes, prompt: see ``Work``.
    """

    sizes: tuple[int, ...] = ()
    beside: Mapping[str, int] = dataclasses.field(default_factory=dict)
    outputs: frozenset[str] = frozenset()
    slots: Mapping[str, int] = dataclasses.field(default_factory=dict)
    whole_gradients: frozenset[str] = frozenset()
    in_place: frozenset[str] = frozenset()
    index_bytes: int = 0
    temporary_bytes: int = 0
    prompt: int = 0


def tuned_by(methods: Sequence[Method]) -> Tuned:
    """How the numbers of methods lie on the backbone."""
    parts = [_tuned_by_one(method) for method in methods]
    beside: Counter[str] = Counter()
    slots: Counter[str] = Counter()
    inputs: set[str] = set()
    for part in parts:
        beside.update(part.beside)
        slots.update(part.slots)
        inputs |= part.beside.keys() - part.outputs
    return Tuned(
        sizes=tuple(size for part in parts for size in part.sizes),
        beside=dict(beside),
        outputs=frozenset(beside.keys() - inputs),
        slots=dict(slots),
        whole_gradients=frozenset[str]().union(*(part.whole_gradients for part in parts)),
        in_place=frozenset[str]().union(*(part.in_place for part in parts)),
        index_bytes=sum(part.index_bytes for part in parts),
        temporary_bytes=max(part.temporary_bytes for part in parts),
        prompt=sum(part.prompt for part in parts),
    )


def _tuned_by_one(method: Method) -> Tuned:
    if isinstance(method, Apet):
        return _tuned_by_mask(method)
    sites: tuple[Site, ...] | None = getattr(method, "sites", None)
    if not method.num_parameters:
        return Tuned()
    if sites is None:  # a prompt, which is no tensor's
        return Tuned((method.num_parameters,), prompt=method.num_positions)
    if not method.keeps_backbone:
        names = frozenset(site.name for site in sites)
        return Tuned(
            sizes=tuple(site.numel for site in sites),
            beside=dict.fromkeys(names, 0),
            whole_gradients=names,
            in_place=names,
        )
    # Two tensors a site (down and up, keys and values).
    size = method.num_parameters // (2 * len(sites))
    sizes = [size] * (2 * len(sites))
    sizes[-1] += method.num_parameters - sum(sizes)
    kept = {site.name: method.keeps_at(site) for site in sites}
    return Tuned(
        tuple(sizes),
        beside={name: keeps.numbers for name, keeps in kept.items()},
        outputs=frozenset(name for name, keeps in kept.items() if not keeps.input),
        slots={site.name: method.num_slots for site in sites if method.num_slots},
    )


def _tuned_by_mask(method: Apet) -> Tuned:
    """Entries in proportion to the size of each eligible tensor, as a uniform mask has them."""
    total = sum(site.numel for site in method.eligible)
    density = method.count / total
    bounds = [0]
    for site in method.eligible:
        bounds.append(bounds[-1] + site.numel)
    ends = [round(Fraction(method.count * bound, total)) for bound in bounds]
    counts = [end - start for start, end in pairwise(ends)]
    is_long = [site.numel > 2**31 for site in method.eligible]
    names = [site.name for site in method.eligible]
    dense = frozenset(names) if density >= WHOLE_GRADIENT_DENSITY else frozenset[str]()
    return Tuned(
        sizes=(*(count for count in counts if count), *[1] * method.num_scales),
        beside=dict.fromkeys(names, 0),
        whole_gradients=dense,
        index_bytes=sum(
            count * (8 if long else 4) for count, long in zip(counts, is_long, strict=True)
        ),
        temporary_bytes=TEMPORARY_BYTES,
    )


def _work(config: RunConfig, shape: Shape, methods: Sequence[Method], *, num_gpus: int) -> Work:
    tensors = {tensor.name: tensor for tensor in shape.tensors}
    tuned = tuned_by(methods)
    head = {tensor.name for tensor in shape.head}
    moving = head | tuned.in_place
    rows_a_gpu = -(-config.train.batch_size // num_gpus)
    return Work(
        shape=shape,
        frozen=tuple(t.numel for name, t in tensors.items() if name not in moving),
        trained=(
            *tuned.sizes,
            *(tensors[name].numel for name in sorted(head)),
        ),
        tuned=tuned.beside,
        outputs=tuned.outputs,
        slots=tuned.slots,
        prompt=tuned.prompt,
        whole_gradients=tuned.whole_gradients,
        index_bytes=tuned.index_bytes,
        temporary_bytes=tuned.temporary_bytes,
        num_tuned=sum(tuned.sizes),
        batch_size=config.train.batch_size,
        rows=min(config.train.micro_batch_size, rows_a_gpu),
        source=config.task.max_source_length,
        target=config.task.max_target_length if shape.family == "t5" else 0,
        num_bytes=build.DTYPES[config.precision].itemsize,
    )


def _assumptions(config: RunConfig, work: Work, machines: Machines) -> list[str]:
    reserved = machines.gpu.memory_gib - machines.usable_bytes / GIB
    found = [
        f"rows are as long as allowed: {work.source} source"
        + (f" and {work.target} target tokens" if work.target else " tokens")
        + (f", and {work.prompt} positions of a prompt" if work.prompt else ""),
        f"{machines.usable_bytes / GIB:.1f} of {machines.gpu.memory_gib:g} GiB are usable"
        f" ({reserved:.1f} GiB for CUDA, NCCL, workspaces and fragmentation)",
        f"matrix products reach {machines.mfu:.0%} of {machines.gpu.bf16_tflops:g} TFLOP/s (--mfu)",
        f"links reach 80% of what is published; {machines.ports} network port(s) a node (--ports)",
        "seconds are estimates, not measured: gathers hidden behind arithmetic, and (exposed) not",
    ]
    if work.shape.family == "t5" and config.task.kind == "classification":
        found.append(
            f"label words count {work.target} tokens (task.max_target_length), since there is no"
            " tokenizer here; set it to the length of the longest one"
        )
    if work.shape.family == "bert" and not config.task.labels:
        found.append(f"{ASSUMED_CLASSES} classes, since task.labels names none")
    layouts = {layout.name for layout in planning.layouts_for(machines)}
    if config.deepspeed not in layouts:
        found.append("the run's own deepspeed file is none of those that are planned")
    if "zero3_hpz" in layouts and machines.gpus_a_node != planning.HPZ_PARTITION:
        found.append(
            f"zero3_hpz has zero_hpz_partition_size: {machines.gpus_a_node}, the GPUs of a node;"
            f" the shipped file has {planning.HPZ_PARTITION}, which is yours to change"
        )
    if config.precision == "fp32":
        found.append("fp32 is timed as if it were bf16; it takes several times as long")
    return found
