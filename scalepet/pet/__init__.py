"""Parameter-efficient tuning: HOW weights are tuned.

A method is planned from the sites of a backbone, counts its own parameters, and is attached to a
frozen model. To add one, write its file and one line in ``METHODS``.
"""

from scalepet.pet.adapter import plan_adapter
from scalepet.pet.add import POSITIONS, Apet, Moves, largest_move
from scalepet.pet.apet import plan_apet
from scalepet.pet.bitfit import plan_bitfit
from scalepet.pet.full import plan_full
from scalepet.pet.head import HeadOnly, plan_head_only
from scalepet.pet.ia3 import plan_ia3
from scalepet.pet.lora import plan_lora
from scalepet.pet.method import Method, MethodBuilder
from scalepet.pet.moving import Move, move_entries
from scalepet.pet.peft_format import PeftAdapter, from_peft, to_peft
from scalepet.pet.prefix import plan_prefix
from scalepet.pet.prompt import plan_prompt
from scalepet.pet.released import plan_released
from scalepet.pet.scores import GradientShards, collecting, score_shards, watching
from scalepet.pet.settle import apet_of, with_apet
from scalepet.pet.start import normal
from scalepet.pet.together import Together, parts_of, together
from scalepet.pet.value_gradients import why_no_kernel

METHODS: dict[str, MethodBuilder] = {
    "apet": plan_apet,
    "lora": plan_lora,
    "adapter": plan_adapter,
    "prefix": plan_prefix,
    "prompt": plan_prompt,
    "bitfit": plan_bitfit,
    "ia3": plan_ia3,
    "full": plan_full,
    "head": plan_head_only,
    "released": plan_released,
}
"""Name in a config -> builder, called with the sites and the options of the config as keywords."""

__all__ = [
    "METHODS",
    "POSITIONS",
    "Apet",
    "GradientShards",
    "HeadOnly",
    "Method",
    "MethodBuilder",
    "Move",
    "Moves",
    "PeftAdapter",
    "Together",
    "apet_of",
    "collecting",
    "from_peft",
    "largest_move",
    "move_entries",
    "normal",
    "parts_of",
    "plan_apet",
    "plan_head_only",
    "score_shards",
    "to_peft",
    "together",
    "watching",
    "why_no_kernel",
    "with_apet",
]
