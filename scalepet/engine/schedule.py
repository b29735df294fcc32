"""Learning rates over a run."""

from __future__ import annotations

import math
from typing import Literal, get_args

Schedule = Literal["constant", "linear", "cosine"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


def learning_rate_factor(
    schedule: Schedule, step: int, *, num_steps: int, num_warmup_steps: int = 0
) -> float:
    """What the peak learning rate is multiplied with at optimizer step ``step`` (0 is the first),
    in [0, 1].

    Warm-up rises linearly and reaches 1 at step ``num_warmup_steps``; linear and cosine then fall
    to 0 at ``num_steps``, which is one step past the last.
    """
    if step < num_warmup_steps:
        return (step + 1) / (num_warmup_steps + 1)
    done = (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)
    if schedule == "linear":
        return max(0.0, 1 - done)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return 1.0
