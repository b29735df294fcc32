"""Continual learning over a stream of experiences: learning, accumulation, ensemble."""

from scalepet.lae.accumulation import Accumulation, alpha_of_travel, equal_shards
from scalepet.lae.ensemble import VOTES, Vote, experts, vote, voted
from scalepet.lae.learning import GrowingHead, Phase, loss_over_classes, phases_of

__all__ = [
    "VOTES",
    "Accumulation",
    "GrowingHead",
    "Phase",
    "Vote",
    "alpha_of_travel",
    "equal_shards",
    "experts",
    "loss_over_classes",
    "phases_of",
    "vote",
    "voted",
]
