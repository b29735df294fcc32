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
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scalepet.pet.value_gradients import embedding_value_gradients, linear_value_gradients


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
    plain = type(module).forward
    forwards: dict[Any, Callable[..., Tensor]] = {
        nn.Linear.forward: _linear_forward,
        nn.Embedding.forward: _embedding_forward,
    }
    # Set on the instance: the class, and with it every isinstance check elsewhere, stays as it is.
    module.forward = MethodType(forwards.get(plain, _forward_with_sums), module)


@contextlib.contextmanager
def merged(weight: Tensor, positions: Tensor, values: Tensor) -> Iterator[Tensor]:
    """``weight`` with ``values`` added at ``positions`` inside its own storage; the old numbers
    come back at the end.

    Restoring, not subtracting: floating-point sums do not undo. Writes go through ``.data`` since
        they are invisible to
    autograd by design. Safe for weights that stay resident (ZeRO-3's persistent parameters) and for
    tied ones.
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
        # the gradient of the values.
        ctx.parameters = (weight, values, positions)
        ctx.save_for_backward(*([x] if ctx.needs_input_grad[3] else []))
        with merged(weight, positions, values) as patched:
            return F.linear(x, patched, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        weight, values, positions = ctx.parameters
        flat_grad = grad_y.flatten(0, -2)
        grad_x = grad_bias = grad_values = None
        if ctx.needs_input_grad[0]:
            with merged(weight, positions, values) as patched:
                grad_x = grad_y @ patched
        if ctx.needs_input_grad[2]:
            grad_bias = flat_grad.sum(0)
        if ctx.needs_input_grad[3]:
            (x,) = ctx.saved_tensors
            found = linear_value_gradients(x.flatten(0, -2), flat_grad, positions)
            grad_values = found.to(values.dtype)
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
        ctx.constants = (positions, weight.shape[1], values.dtype, padding_id)
        with merged(weight, positions, values) as patched:
            return F.embedding(ids, patched)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        positions, num_columns, dtype, padding_id = ctx.constants
        found = embedding_value_gradients(
            ids.flatten(),
            grad_y.flatten(0, -2),
            positions,
            num_columns=num_columns,
            padding_id=padding_id,
        )
        return None, None, found.to(dtype), None, None


class _MaskedVector(torch.autograd.Function):
    """The sum itself, for parameters that are small: p + scatter(values)."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, values: Tensor, positions: Tensor) -> Tensor:
        ctx.positions, ctx.dtype = positions, values.dtype
        total = parameter.detach().clone()
        flat = total.view(-1)
        flat[positions] += values.to(flat.dtype)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, grad.reshape(-1)[ctx.positions].to(ctx.dtype), None


def _linear_forward(module: nn.Linear, x: Tensor) -> Tensor:
    bias = _summed(module, "bias")
    if not hasattr(module, "weight_values"):
        return F.linear(x, module.weight, bias)
    y: Tensor = _MaskedLinear.apply(
        x, module.weight, bias, module.weight_values, module.weight_positions
    )
    return y


def _embedding_forward(module: nn.Embedding, ids: Tensor) -> Tensor:
    y: Tensor = _MaskedEmbedding.apply(
        ids, module.weight, module.weight_values, module.weight_positions, module.padding_idx
    )
    return y


def _forward_with_sums(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The module's own forward, its masked parameters shadowed by their sums for this call."""
    shadows = {name: _summed(module, name) for name in masked_parameters(module)}
    # An entry of the instance's dict comes before the registered parameter of that name.
    vars(module).update(shadows)
    try:
        return type(module).forward(module, *args, **kwargs)
    finally:
        for name in shadows:
            del vars(module)[name]


def _summed(module: nn.Module, name: str) -> Tensor | None:
    """The parameter with its values added, or as it is where nothing of it is masked."""
    parameter: Tensor | None = getattr(module, name)
    if parameter is None or not hasattr(module, f"{name}_values"):
        return parameter
    total: Tensor = _MaskedVector.apply(
        parameter, getattr(module, f"{name}_values"), getattr(module, f"{name}_positions")
    )
    return total


def masked_parameters(module: nn.Module) -> Mapping[str, nn.Parameter]:
    """The values that ``mask_module`` put on this very module, by the masked parameter's name."""
    own = dict(module.named_parameters(recurse=False))
    return {
        name.removesuffix("_values"): parameter
        for name, parameter in own.items()
        if name.endswith("_values") and name.removesuffix("_values") in own
    }
