"""What a training step asks of the device: how many launches, and how much of the time it works."""

from __future__ import annotations

import time
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, supported_activities

from scalepet.bench.contenders import Contender
from scalepet.bench.measure import step_of, wait
from scalepet.bench.shapes import Work


def profiled(work: Work, entrant: Contender, *, num_steps: int) -> dict[str, Any]:
    """Launches a step and the busy share of the device, kernels and copies together; None where
    torch sees none of them, as on a CPU. The profiler itself takes time between them, so the share
    is a lower bound.
    """
    activities = {ProfilerActivity.CPU, ProfilerActivity.CUDA} & supported_activities()
    with entrant.enter(work) as entered:
        step = step_of(work, entered.model)
        step()
        wait(work)
        with profile(activities=activities) as profiler:
            started = time.perf_counter()
            for _ in range(num_steps):
                step()
            wait(work)
            seconds = time.perf_counter() - started
    on_device = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
    busy = sum(event.time_range.elapsed_us() for event in on_device) / 1e6
    return {
        "name": entrant.name,
        "step_seconds": seconds / num_steps,
        "launches": len(on_device) / num_steps if on_device else None,
        "busy_share": busy / seconds if on_device else None,
    }
