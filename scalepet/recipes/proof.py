"""No silent failure: proof that what is to be trained is trained, and that it has an effect."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scalepet import backbones, dist, engine
from scalepet.data import TrainLoader
from scalepet.engine import Engine, LossSum, Precision
from scalepet.errors import ScalepetError
from scalepet.pet import Method

FIRST_LOOK = 2
"""Steps: in the first one, what stands behind a zero (LoRA's A behind B) gets no gradient."""

_LOOKS: dict[Precision, tuple[int, ...]] = {
    "fp32": (FIRST_LOOK,),
    "bf16": (2, 8, 32, 128),
    "fp16": (2, 8, 32, 128),
}
"""Steps after which the output is compared; it may take 16 bits some steps to show a change."""


def proof_of(
    method: Method,
    runner: Engine,
    loader: TrainLoader,
    *,
    loss_sum: LossSum,
    precision: Precision,
) -> Proof:
    """The proof of a run that starts; outputs are compared on its first micro-batch."""
    batch = engine.on_device(loader.step(0).micro_batches[0], runner.device)
    return Proof(method, runner, loss_sum, batch, precision)


@dataclass
class Proof:
    """Looks at the first steps of a run.

    Attributes:
        batch: what the outputs with and without the method are compared on.
    """

    method: Method
    runner: Engine
    loss_sum: LossSum
    batch: Mapping[str, Tensor]
    precision: Precision
    _start: dict[str, bytes] = field(init=False)
    _has_effect: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._start = self._digests()

    def look(self, num_steps: int) -> None:
        """After every step that was made. All ranks together.

        Args:
            num_steps: so many were made; those that were left out do not count.

        Raises:
            ScalepetError: tensors have not moved, or the output is still that of the bare backbone.
        """
        if num_steps == FIRST_LOOK:
            self._check_moved()
        looks = _LOOKS[self.precision]
        if num_steps in looks and not self._has_effect:
            self._has_effect = self._differs()
            if not self._has_effect and num_steps == looks[-1]:
                raise ScalepetError(
                    f"after {num_steps} steps the output is, bit for bit, that of the bare"
                    " backbone: the method has no effect. Try a larger train.learning_rate"
                )

    def _check_moved(self) -> None:
        now = self._digests()
        still = [name for name, digest in self._start.items() if now[name] == digest]
        if still and len(still) == len(now):
            raise ScalepetError(
                f"after {FIRST_LOOK} steps not one of {len(now)} trained tensors has moved."
                " Try a larger train.learning_rate"
            )
        dead = [name for name in still if not self.method.may_rest(name)]
        if dead:
            raise ScalepetError(
                f"after {FIRST_LOOK} steps {len(dead)} of {len(now)} trained tensors have not"
                f" moved, so they get no gradient: {', '.join(dead[:5])}"
            )

    def _digests(self) -> dict[str, bytes]:
        return {
            name: hashlib.blake2b(whole.numpy().tobytes(), digest_size=8).digest()
            for name, whole in self.runner.each_trained()
        }

    @torch.no_grad()
    def _differs(self) -> bool:
        """Whether the method changes the loss of the batch, on any rank; always true of one that
        trains the backbone's own weights, whose moves are the proof.
        """
        model = self.runner.module
        if not backbones.overridden_modules(model):
            return True
        model.eval()
        tuned = self.loss_sum(model, self.batch)
        with backbones.bare(model):
            plain = self.loss_sum(model, self.batch)
        return dist.sum_over_ranks(int((tuned != plain).item())) > 0
