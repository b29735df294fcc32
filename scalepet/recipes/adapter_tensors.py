"""Whether the tensors of an adapter are those of its plan, told before a weight is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor

from scalepet import backbones, engine
from scalepet.build import Plan
from scalepet.errors import CheckpointError
from scalepet.pet import Method


def check_tensors(
    where: str, plan: Plan, tensors: Mapping[str, Tensor], *, whole: Collection[str]
) -> None:
    """Hold what was trained to the method, the head and the tensors that are kept whole.

    Args:
        where: for people, where the tensors come from.
        whole: tensors of the backbone itself that the adapter has beside its method.

    Raises:
        CheckpointError: names, shapes or types differ, or a number is not finite; every fault.
    """
    faults = [*_name_faults(where, plan, tensors, whole)]
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            faults.append(
                f"{where}: {name} is {_short(tensor)}; allowed: float32, bfloat16, float16"
            )
        elif not tensor.isfinite().all():
            bad = int((~tensor.isfinite()).sum())
            faults.append(
                f"{where}: {name} has {bad:,} of {tensor.numel():,} numbers that are nan or inf;"
                " allowed: finite numbers"
            )
    if faults:
        raise CheckpointError(backbones.first_of(faults))


def _short(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _name_faults(
    where: str, plan: Plan, tensors: Mapping[str, Tensor], whole: Collection[str]
) -> Iterator[str]:
    may_lack = {name for name in tensors if backbones.matches(name, plan.family.may_lack)}
    odd = sorted({*whole} - set(own_tensors(plan)))
    yield from (f"{where}: {name} is no tensor of the backbone by itself" for name in odd)
    there = trained_shapes(plan, plan.method, {*whole, *may_lack} - {*odd})
    here = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted({*here, *there}):
        if here.get(name) != there.get(name):
            yield (
                f"{where}: {name} is {here.get(name)} in the adapter, {there.get(name)} in the"
                " model"
            )


def trained_shapes(
    plan: Plan, method: Method, whole: Collection[str]
) -> dict[str, tuple[int, ...]]:
    """Shapes of all that an adapter holds, from a model without numbers: the method's, the head's,
    and those of ``whole`` that the model has.
    """
    model: Any = backbones.sketch_model(plan.model_config).requires_grad_(False)
    method.attach(model)
    for name, parameter in model.named_parameters():
        if name in whole or backbones.matches(name, plan.family.head):
            parameter.requires_grad_(True)
    return {name: engine.full_shape(p) for name, p in engine.trained_parameters(model).items()}


def own_tensors(plan: Plan) -> list[str]:
    """The tensors of the bare model that are nothing but themselves: one that stands in several
    places at once cannot be replaced in one of them.
    """
    model: Any = backbones.sketch_model(plan.model_config)
    times = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    return [name for name, p in model.named_parameters() if times[id(p)] == 1]
