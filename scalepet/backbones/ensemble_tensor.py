"""One tensor that stands for several: a model that is called once computes for all of them.

Where some parameters of a model are ensembles, its output is one, too: every operation that meets
an ensemble is done once for each of its members, beside each other, while the weights that they
share are there. What no ensemble reaches (the layers below the first tuned one, masks, position
biases) is done once. So under ZeRO-3 several experts cost the gathers of one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor


class EnsembleTensor(Tensor):
    """Tensors of one shape, type and device, as one of that shape, type and device.

    Without gradients: it is for inference.

    Attributes:
        members: the tensors.
    """

    members: tuple[Tensor, ...]

    @staticmethod
    def __new__(cls, members: Sequence[Tensor]) -> EnsembleTensor:
        first = members[0]
        assert all(
            (one.shape, one.dtype, one.device) == (first.shape, first.dtype, first.device)
            for one in members
        )
        made: EnsembleTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, first.shape, dtype=first.dtype, device=first.device, strides=first.stride()
        )
        made.members = tuple(members)
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"EnsembleTensor({len(self.members)} x {tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if operation._schema.is_mutable:
            _check_written(operation, args, kwargs or {})
        return _for_each(operation, args, kwargs or {})


def apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, done for every member by itself where an argument is an ensemble.

    Its tensors then come back as ensembles; all else it returns must be the same for all members.
    """

    @functools.wraps(function)
    def for_each(*args: Any, **kwargs: Any) -> Any:
        return _for_each(function, args, kwargs)

    return for_each


def member_of(tree: Any, number: int) -> Any:
    """Everything in nested tuples and lists, with one member in place of each ensemble."""
    if isinstance(tree, EnsembleTensor):
        return tree.members[number]
    if isinstance(tree, tuple | list):
        return type(tree)([member_of(one, number) for one in tree])
    return tree


def members_of(tensor: Tensor) -> tuple[Tensor, ...]:
    """The members of an ensemble; any other tensor is its only one."""
    return tensor.members if isinstance(tensor, EnsembleTensor) else (tensor,)


def _check_written(operation: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """A plain tensor that an ensemble is written into would keep what its last member wrote."""
    arguments = operation._schema.arguments
    given = {**{one.name: arg for one, arg in zip(arguments, args, strict=False)}, **kwargs}
    for one in arguments:
        if one.alias_info is not None and one.alias_info.is_write:
            assert isinstance(given[one.name], EnsembleTensor), (
                f"{operation} writes an ensemble into a plain tensor"
            )


def _for_each(function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    sizes: set[int] = set()
    _note_sizes(args, sizes)
    _note_sizes(kwargs.values(), sizes)
    if not sizes:
        return function(*args, **kwargs)
    size = sizes.pop()
    assert not sizes, f"ensembles of {size} and of {sizes.pop()} members meet"
    results = [
        function(
            *[member_of(one, number) for one in args],
            **{name: member_of(one, number) for name, one in kwargs.items()},
        )
        for number in range(size)
    ]
    return _joined(results)


def _note_sizes(trees: Iterable[Any], sizes: set[int]) -> None:
    for tree in trees:
        if isinstance(tree, EnsembleTensor):
            sizes.add(len(tree.members))
        elif isinstance(tree, tuple | list):
            _note_sizes(tree, sizes)


def _joined(results: Sequence[Any]) -> Any:
    first = results[0]
    if isinstance(first, Tensor):
        return EnsembleTensor(results)
    if isinstance(first, tuple | list):
        return type(first)([_joined(parts) for parts in zip(*results, strict=True)])
    assert all(one == first for one in results), f"the members part ways at {results}"
    return first
