"""Parameter-efficient tuning: HOW weights are tuned.

A method is planned from the sites of a backbone, counts its own parameters, and is attached to a
frozen model. To add one, write its file and one line in ``METHODS``.
"""

from scalepet.pet.apet import Apet, plan_apet
from scalepet.pet.head import HeadOnly, plan_head_only
from scalepet.pet.method import Method, MethodBuilder

METHODS: dict[str, MethodBuilder] = {
    "apet": plan_apet,
    "head": plan_head_only,
}
"""Name in a config -> builder, called with the sites and the options of the config as keywords."""

__all__ = ["METHODS", "Apet", "HeadOnly", "Method", "MethodBuilder", "plan_apet", "plan_head_only"]
