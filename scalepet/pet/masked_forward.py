"""The sparse heart: modules that compute with W + scatter(values) and never hold a second W.

``mask_module`` gives a module, for each masked parameter ``weight``, the parameter
``weight_values`` (k trainable numbers, zero at the start) and the buffer ``weight_positions`` (k
sorted flat indices). The module keeps its class, its name and its frozen weight, so DeepSpeed's
gather and release hooks and the names in a state dict stay those of the bare model.

- Matrices of linear layers and look-up tables: the k entries are added into the weight's own
  (gathered) storage, the one product runs, and the k old numbers are put back bit for bit; backward
  does the same. O(k) extra bytes; neither a dense copy nor a dense gradient exists.
- Everything else (norm scales, biases, and matrices in modules of other classes): the module runs
  with a transient sum in place of the parameter. For a vector that is as large as one token's
  activation.

The values may have a scale, ``weight_values_scale``: what is added then is their product, O(k)
numbers that live until backward.

Whoever wants to know the gradients of whole tensors (masks that are chosen by a score, masks that
move) leaves a ``Sink`` on their values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scalepet.backbones import apart, override, shadowed
from scalepet.pet.calibration import scaled
from scalepet.pet.value_gradients import (
    embedding_value_gradients,
    linear_value_gradients,
    plan_of,
)


class Sink(Protocol):
    """Takes in the gradient of a whole masked tensor while its layer is in backward."""

    def add_linear(self, x: Tensor, grad_y: Tensor) -> None:
        """x (tokens, columns), grad_y (tokens, rows) of a linear layer."""

    def add_rows(self, ids: Tensor, grad_y: Tensor) -> None:
        """ids (tokens,), grad_y (tokens, columns) of a look-up table."""

    def add_whole(self, grad: Tensor) -> None:
        """Of a parameter of any other kind, in its shape."""


def leave_sink(values: Tensor, sink: Sink | None) -> None:
    """Let ``sink`` take in the gradients of the whole tensor behind ``values``; None ends it."""
    vars(values)["scalepet_sink"] = sink


def _sink_of(values: Tensor) -> Sink | None:
    return vars(values).get("scalepet_sink")


def mask_module(
    module: nn.Module, parameter_name: str, values: nn.Parameter, positions: Tensor
) -> None:
    """Let ``module`` compute with ``values`` added to its parameter at ``positions``.

    Args:
        parameter_name: of a parameter that the module itself owns, e.g. ``weight``.
        values: (entries,); one Parameter may serve several modules that share one tied weight.
        positions: (entries,) sorted flat indices into the parameter, int32 or int64.
    """
    module.register_parameter(f"{parameter_name}_values", values)
    module.register_buffer(f"{parameter_name}_positions", positions, persistent=False)
    compute_masked(module)


def compute_masked(module: nn.Module) -> None:
    """Let ``module`` look for values of its parameters, beside them."""
    if len(masked_names(module)) > 1:
        return  # it does already
    assert "forward" not in vars(module), "masks are put on before anything else"
    forwards: dict[Any, Callable[..., Tensor]] = {
        nn.Linear.forward: _linear_forward,
        nn.Embedding.forward: _embedding_forward,
    }
    forward = forwards.get(type(module).forward, _forward_with_sums)
    override(module, lambda inner, *args, **kwargs: forward(module, *args, **kwargs))


@contextlib.contextmanager
def merged(weight: Tensor, positions: Tensor, values: Tensor) -> Iterator[Tensor]:
    """``weight`` with ``values`` added at ``positions`` inside its own storage; the old numbers
    come back at the end.

    Restoring, not subtracting: floating-point sums do not undo. Writes go through ``.data`` since
    they are invisible to autograd by design. Safe for weights that stay resident (ZeRO-3's
    persistent parameters) and for tied ones.
    """
    flat = weight.data.view(-1)
    old = flat[positions]
    flat[positions] = old + values.data.to(flat.dtype)
    try:
        yield weight.data
    finally:
        flat[positions] = old


class _MaskedLinear(torch.autograd.Function):
    """y = x (W + scatter(values))^T + b."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor, positions: Tensor
    ) -> Tensor:
        # The Parameters are kept as objects, not as saved tensors: under ZeRO-3 their storage is
        # released after this forward and another one is there in backward. Inputs are kept only for
        # the gradient of the values, and only those columns that a sparse mask touches.
        ctx.parameters = (weight, values, positions)
        if ctx.needs_input_grad[3]:
            ctx.plan = plan_of(positions, (weight.shape[0], weight.shape[1]), x.dtype)
            columns = None if _sink_of(values) else ctx.plan.kept_columns
            ctx.save_for_backward(x if columns is None else x.index_select(-1, columns))
        with merged(weight, positions, values) as patched:
            return F.linear(x, patched, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        weight, values, positions = ctx.parameters
        flat_grad = grad_y.flatten(0, -2)  # a copy where heads were split; all share the one
        grad_x = grad_bias = grad_values = None
        if ctx.needs_input_grad[0]:
            with merged(weight, positions, values) as patched:
                grad_x = (flat_grad @ patched).unflatten(0, grad_y.shape[:-1])
        if ctx.needs_input_grad[2]:
            grad_bias = flat_grad.sum(0)
        if ctx.needs_input_grad[3]:
            flat_x = ctx.saved_tensors[0].flatten(0, -2)
            found = linear_value_gradients(flat_x, flat_grad, positions, plan=ctx.plan)
            grad_values = found.to(values.dtype)
            if sink := _sink_of(values):
                assert flat_x.shape[1] == ctx.plan.shape[1], "a sink is left before the forward"
                sink.add_linear(flat_x, flat_grad)
        return grad_x, None, grad_bias, grad_values, None


class _MaskedEmbedding(torch.autograd.Function):
    """y = (W + scatter(values))[ids]."""

    @staticmethod
    def forward(
        ctx: Any,
        ids: Tensor,
        weight: Tensor,
        values: Tensor,
        positions: Tensor,
        padding_id: int | None,
    ) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.constants = (values, positions, weight.shape[1], padding_id)
        with merged(weight, positions, values) as patched:
            return F.embedding(ids, patched)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        values, positions, num_columns, padding_id = ctx.constants
        if padding_id is not None:  # which gets no gradient, as torch.nn.Embedding has it
            grad_y = grad_y.masked_fill((ids == padding_id)[..., None], 0)
        flat_ids, flat_grad = ids.flatten(), grad_y.flatten(0, -2)
        found = embedding_value_gradients(flat_ids, flat_grad, positions, num_columns=num_columns)
        if sink := _sink_of(values):
            sink.add_rows(flat_ids, flat_grad)
        return None, None, found.to(values.dtype), None, None


class _MaskedVector(torch.autograd.Function):
    """The sum itself, for parameters that are small: p + scatter(values)."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, values: Tensor, positions: Tensor) -> Tensor:
        ctx.values, ctx.positions = values, positions
        total = parameter.detach().clone()
        flat = total.view(-1)
        flat[positions] += values.to(flat.dtype)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if sink := _sink_of(ctx.values):
            sink.add_whole(grad)
        return None, grad.reshape(-1)[ctx.positions].to(ctx.values.dtype), None


# These write into storage, of which an ensemble of values has none; each member is put in by turns.
_masked_linear = apart(_MaskedLinear.apply)
_masked_embedding = apart(_MaskedEmbedding.apply)
_masked_vector = apart(_MaskedVector.apply)


def _linear_forward(module: nn.Linear, x: Tensor) -> Tensor:
    bias = _summed(module, "bias")
    if not hasattr(module, "weight_values"):
        return F.linear(x, module.weight, bias)
    values = _values_of(module, "weight")
    y: Tensor = _masked_linear(x, module.weight, bias, values, module.weight_positions)
    return y


def _embedding_forward(module: nn.Embedding, ids: Tensor) -> Tensor:
    values = _values_of(module, "weight")
    y: Tensor = _masked_embedding(
        ids, module.weight, values, module.weight_positions, module.padding_idx
    )
    return y


def _forward_with_sums(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The module's own forward, its masked parameters shadowed by their sums for this call."""
    with shadowed(module, {name: _summed(module, name) for name in masked_names(module)}):
        return type(module).forward(module, *args, **kwargs)


def _summed(module: nn.Module, name: str) -> Tensor | None:
    """The parameter with its values added, or as it is where nothing of it is masked."""
    parameter: Tensor | None = getattr(module, name)
    if parameter is None or not hasattr(module, f"{name}_values"):
        return parameter
    total: Tensor = _masked_vector(
        parameter, _values_of(module, name), getattr(module, f"{name}_positions")
    )
    return total


def _values_of(module: nn.Module, name: str) -> Tensor:
    """What is added at the positions: the values, or their product with a scale, which leads to the
    same sink.
    """
    values: Tensor = getattr(module, f"{name}_values")
    added = scaled(module, f"{name}_values")
    if added is not values:
        leave_sink(added, _sink_of(values))
    return added


def masked_names(module: nn.Module) -> list[str]:
    """The parameters of this very module that have values beside them."""
    own = [name for name, _ in module.named_parameters(recurse=False)]
    return [name for name in own if hasattr(module, f"{name}_values")]


def users_of(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """The modules that own a parameter, by its id: more than one where weights are tied."""
    users: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for own_name, parameter in module.named_parameters(recurse=False):
            users.setdefault(id(parameter), []).append((module, own_name))
    return users
