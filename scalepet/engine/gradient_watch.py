"""Whether the gradients of what is trained are finite, known before the optimizer moves anything.

What DeepSpeed 0.19.8 does of itself depends on the stage: at stage 0 in fp32 a NaN goes into the
trained numbers and the moments; everywhere else the step is left out without a word.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn


class GradientWatch:
    """Looks at this rank's own gradients as they come out of a backward, one number for each tensor
    and micro-batch, which stays on the device.

    That number is the norm in fp32: it is not finite either where a square is too large for fp32,
    of which Adam's second moment would never recover.

    Args:
        trained: what asks for a gradient, by name.
    """

    def __init__(self, trained: Mapping[str, nn.Parameter]) -> None:
        self._norms: list[tuple[str, Tensor]] = []
        self._is_muted = False
        self._handles = [
            parameter.register_hook(partial(self._look, name))
            for name, parameter in trained.items()
        ]

    def are_finite(self) -> Tensor:
        """(): whether all gradients since ``forget`` are, on their device."""
        if not self._norms:
            return torch.tensor(True)
        return torch.stack([norm for _, norm in self._norms]).isfinite().all()

    def first_bad(self) -> str | None:
        """The tensor whose gradient was not finite first: backward goes from the loss to the input,
        so those that follow may have it from there.
        """
        return next((name for name, norm in self._norms if not norm.isfinite()), None)

    def forget(self) -> None:
        """A new step begins."""
        self._norms.clear()

    @contextlib.contextmanager
    def muted(self) -> Iterator[None]:
        """Whatever comes out of a backward inside, the gradients of what is trained are zeros."""
        self._is_muted = True
        try:
            yield
        finally:
            self._is_muted = False
            self.forget()

    def close(self) -> None:
        """Look no more."""
        for handle in self._handles:
            handle.remove()

    def _look(self, name: str, gradient: Tensor) -> Tensor | None:
        if self._is_muted:
            return torch.zeros_like(gradient)
        norm = torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32)
        self._norms.append((name, norm))
        return None
