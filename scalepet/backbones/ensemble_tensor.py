"""One tensor that stands for several: a model that is called once computes for all of them.

Where some parameters of a model are ensembles, its output is one, too: every operation that meets
an ensemble is done once for each of its members, beside each other, while the weights that they
share are there. What no ensemble reaches (the layers below the first tuned one, masks, position
biases) is done once. So under ZeRO-3 several experts cost the gathers of one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten


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
        return apart(operation)(*args, **(kwargs or {}))


def apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, done for every member by itself where an argument is an ensemble.

    Its tensors then come back as ensembles; all else it returns must be the same for all members.
    """

    @functools.wraps(function)
    def for_each(*args: Any, **kwargs: Any) -> Any:
        sizes = {len(one.members) for one in tree_flatten((args, kwargs))[0] if _is_ensemble(one)}
        if not sizes:
            return function(*args, **kwargs)
        (size,) = sizes
        return _joined(
            [
                function(*member_of(args, number), **member_of(kwargs, number))
                for number in range(size)
            ]
        )

    return for_each


def member_of(tree: Any, number: int) -> Any:
    """Everything in nested containers, with one member in place of each ensemble."""
    return tree_map(lambda leaf: leaf.members[number] if _is_ensemble(leaf) else leaf, tree)


def members_of(tensor: Tensor) -> tuple[Tensor, ...]:
    """The members of an ensemble; any other tensor is its only one."""
    return tensor.members if isinstance(tensor, EnsembleTensor) else (tensor,)


def _is_ensemble(leaf: Any) -> bool:
    return isinstance(leaf, EnsembleTensor)


def _joined(results: Sequence[Any]) -> Any:
    flat, specs = zip(*(tree_flatten(result) for result in results), strict=True)
    assert all(spec == specs[0] for spec in specs)
    return tree_unflatten([_join(leaves) for leaves in zip(*flat, strict=True)], specs[0])


def _join(leaves: Sequence[Any]) -> Any:
    if isinstance(leaves[0], Tensor):
        return EnsembleTensor(leaves)
    assert all(leaf == leaves[0] for leaf in leaves), f"the members part ways at {leaves}"
    return leaves[0]
