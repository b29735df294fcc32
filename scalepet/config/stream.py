"""What only a stream can have wrong."""

from __future__ import annotations

from collections.abc import Iterator

from scalepet.config.models import StreamConfig
from scalepet.config.words import shown


def stream_faults(config: StreamConfig) -> list[str]:
    """Every fault of a config whose fields can all be read."""
    return [*config.stream.faults(), *_offline_faults(config), *_lae_faults(config)]


def _offline_faults(config: StreamConfig) -> Iterator[str]:
    for index, copy in enumerate(config.lae.offline):
        if (copy.alpha is None) == (copy.travel is None):
            yield (
                f"lae.offline[{index}]: alpha: {shown(copy.alpha)} with travel:"
                f" {shown(copy.travel)}; allowed: one of them"
            )


def _lae_faults(config: StreamConfig) -> Iterator[str]:
    lae, epochs = config.lae, config.train.epochs
    if lae.freeze_epochs >= epochs:
        yield (
            f"lae.freeze_epochs: {lae.freeze_epochs}; allowed: less than train.epochs, {epochs},"
            " since the method would never learn"
        )
    if lae.joint and (lae.offline or lae.freeze_epochs):
        yield (
            f"lae.joint: true with {len(lae.offline)} offline copies and freeze_epochs:"
            f" {lae.freeze_epochs}; allowed: offline: [] and freeze_epochs: 0, since there is one"
            " experience"
        )
