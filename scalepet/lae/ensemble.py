"""Ensemble: online and offline experts answer together, in one walk over the backbone.

Source: "A Unified Continual Learning Framework with General Parameter-Efficient Tuning"
(arXiv 2303.10070), section 3.4: the largest of the experts' probabilities decides.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from scalepet.backbones import EnsembleTensor, members_of, shadowed

Vote = Literal["max", "mean"]
VOTES: tuple[Vote, ...] = get_args(Vote)


@contextlib.contextmanager
def experts(
    model: nn.Module, numbers: Sequence[Mapping[str, Tensor]], *, device: torch.device
) -> Iterator[None]:
    """The model computes for several experts at once: its outputs are ensembles, a member each.

    Weights that the experts share are used, and under ZeRO-3 gathered, once; layers below the first
    one that differs run once for all.

    Args:
        numbers: for each expert, the whole parameters in which it differs, by name.
        device: of the model; the numbers lie there meanwhile.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    with contextlib.ExitStack() as shadows:
        for module in model.modules():
            own = dict(module.named_parameters(recurse=False))
            ours = {
                own_name: _together(
                    [expert[names[id(parameter)]] for expert in numbers], parameter, device
                )
                for own_name, parameter in own.items()
                if names[id(parameter)] in numbers[0]
            }
            shadows.enter_context(shadowed(module, ours))
        yield


def _together(wholes: Sequence[Tensor], parameter: Tensor, device: torch.device) -> Tensor:
    return EnsembleTensor([whole.to(device, parameter.dtype) for whole in wholes])


def vote(log_probabilities: Sequence[Tensor], how: Vote) -> Tensor:
    """(rows, classes), what the experts think together of every class.

    Args:
        log_probabilities: of each expert, (rows, classes); those of label words do not add up to
            one and are normalised over the classes.
        how: the largest of the experts' probabilities, as published, or their mean.
    """
    probabilities = torch.stack([one.softmax(-1) for one in log_probabilities])
    return probabilities.amax(0) if how == "max" else probabilities.mean(0)


def voted(class_scores: Callable[..., Tensor], how: Vote) -> Callable[..., Tensor]:
    """The same scores, but of all experts together: log-probabilities, (rows, classes)."""

    def together(*args: Any, **kwargs: Any) -> Tensor:
        votes = vote(members_of(class_scores(*args, **kwargs)), how)
        return (votes / votes.sum(-1, keepdim=True)).log()

    return together
