"""What a parameter-efficient tuning method is to the rest of scalepet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, Protocol

from annotated_types import Gt, Lt
from torch import Tensor, nn

from scalepet.backbones import Site
from scalepet.pet.calibration import is_scale

# Types of options; the config holds a file to their limits before a builder is called.
Count = Annotated[int, Gt(0)]
Positive = Annotated[float, Gt(0), Lt(1e12)]


class Keeps(NamedTuple):
    """What backward needs of one site for the sake of a method, beside what the backbone needs.

    Attributes:
        input: the input of the site's layer.
        numbers: of a token, beyond that.
    """

    input: bool = True
    numbers: int = 0


class Method(Protocol):
    """A plan that is complete before any weight is loaded, and can then be put on a model.

    Attributes:
        num_parameters: how many numbers it trains, head not counted.
        starts_as_backbone: the model computes what the bare one does until the first step, bit for
            bit.
        goes_first: it takes the place of what modules compute with their weights, to which others
            add, so it is attached before them.
        keeps_backbone: the weights of the backbone stay as they are, so that it can be had back.
        cannot_merge: why no plain model can hold what it has learnt; None where one can.
    """

    starts_as_backbone: bool = True
    goes_first: bool = False
    keeps_backbone: bool = True
    cannot_merge: str | None = None

    @property
    def num_parameters(self) -> int: ...

    @property
    def num_positions(self) -> int:
        """How many the encoder reads beside those of the input."""
        return 0

    @property
    def num_slots(self) -> int:
        """Keys and values that the attention of every site looks at beside its own."""
        return 0

    def attach(self, model: nn.Module) -> None:
        """Add the trainable parameters to the frozen ``model`` and nothing else.

        Called after the weights are there (whole or in ZeRO-3 shards) and before DeepSpeed takes
        the model. The parameters with ``requires_grad`` afterwards are what is trained, saved and
        loaded, by their names.
        """
        ...

    def record(self) -> dict[str, Any]:
        """JSON-able; with the same sites it makes the same method again."""
        ...

    def may_rest(self, name: str) -> bool:
        """Whether the trained tensor ``name`` may rightly get no gradient in the first steps: a
        single weight behind a dead unit, a word that no text holds. So may a scale: it starts at
        one, beside which the first steps of a long warm-up are lost in rounding.
        """
        return is_scale(name)

    def keeps_at(self, site: Site) -> Keeps:
        """What of a site, one of the method's, is kept from forward to backward."""
        return Keeps()

    def merged(self, name: str, tensor: Tensor, trained: Mapping[str, Tensor]) -> Tensor:
        """What the tensor ``name`` of the backbone is in a plain model that computes the same.

        Args:
            tensor: of the bare backbone, whole.
            trained: what was trained, by name, on the same device.

        Returns:
            ``tensor`` itself where nothing of the method concerns it.
        """
        return tensor


MethodBuilder = Callable[..., Method]
"""``(sites, **options) -> Method``."""
