"""The masked part of a method, which may be known only once the weights are there."""

from __future__ import annotations

from scalepet.pet.add import Apet
from scalepet.pet.method import Method
from scalepet.pet.together import parts_of, together


def apet_of(method: Method) -> Apet | None:
    """The part of the method that masks weights of the backbone; None where there is none."""
    return next((part for part in parts_of(method) if isinstance(part, Apet)), None)


def with_apet(method: Method, apet: Apet) -> Method:
    """The method with another mask."""
    return together(apet if isinstance(part, Apet) else part for part in parts_of(method))
