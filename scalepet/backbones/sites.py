"""Sites: the places of a backbone where parameters can be tuned, known without any weight."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from scalepet.errors import ConfigError

SiteKind = Literal["matrix", "embedding", "norm", "bias"]
SITE_KINDS: tuple[SiteKind, ...] = get_args(SiteKind)
_NUM_ROLES_SHOWN = 40


@dataclass(frozen=True)
class Site:
    """One tensor of the backbone.

    Attributes:
        name: its parameter name, e.g. ``encoder.block.0.layer.0.SelfAttention.q.weight``. A tied
            tensor has one site.
        shape: its full shape, whatever part of it a rank holds.
        kind: ``matrix`` (weights of linear and convolution layers), ``embedding`` (look-up tables
            and the output projection onto the vocabulary), ``norm`` (scale vectors) or ``bias``.
        layer: the block that it belongs to, e.g. ``encoder.block.0``; its own top module outside of
            the blocks.
        role: its name without the numbers, the same in every layer, e.g.
            ``encoder.block.layer.SelfAttention.q.weight``.
    """

    name: str
    shape: tuple[int, ...]
    kind: SiteKind
    layer: str
    role: str

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def list_sites(model: nn.Module) -> tuple[Site, ...]:
    """Every parameter of ``model`` as a site, in the model's order; tied parameters once.

    Works on a model on the ``meta`` device, so that the sites of any size are known in a second.
    """
    owners = {
        f"{path}.{name}" if path else name: module
        for path, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
    }
    output = getattr(model, "get_output_embeddings", lambda: None)()
    return tuple(
        _site(name, tuple(parameter.shape), owners[name], is_output=owners[name] is output)
        for name, parameter in model.named_parameters()
    )


def _site(name: str, shape: tuple[int, ...], owner: nn.Module, *, is_output: bool) -> Site:
    kind: SiteKind
    if isinstance(owner, nn.Embedding) or is_output:
        kind = "embedding"
    elif len(shape) > 1:
        kind = "matrix"
    else:
        kind = "bias" if name.rsplit(".", 1)[-1] == "bias" else "norm"
    return Site(name, shape, kind, _layer(name), _role(name))


def _layer(name: str) -> str:
    """All up to the first number: the block; without one the module that holds the tensor."""
    parts = name.split(".")
    for depth, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: depth + 1])
    return ".".join(parts[:-1])


def _role(name: str) -> str:
    return ".".join(part for part in name.split(".") if not part.isdigit())


def match_sites(
    sites: Sequence[Site],
    *,
    kinds: Iterable[SiteKind] = SITE_KINDS,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> tuple[Site, ...]:
    """The sites of these kinds whose name matches an ``include`` pattern and no ``exclude``
    pattern.

    Patterns are shell-style (``*SelfAttention.[qv].weight``) and match the whole name.

    Raises:
        ConfigError: a pattern that matches no site at all, or nothing is left; it shows names that
            exist.
    """
    chosen_kinds = tuple(kinds)
    faults = [
        *_dead_patterns(sites, "include", include),
        *_dead_patterns(sites, "exclude", exclude),
    ]
    chosen = tuple(
        site
        for site in sites
        if site.kind in chosen_kinds
        and _matches_any(site.name, include)
        and not _matches_any(site.name, exclude)
    )
    if not chosen and not faults:
        wanted = f"kind {' or '.join(chosen_kinds)}" if chosen_kinds else "no kind"
        faults = [
            f"no tensor is of {wanted}, matches include {list(include)}"
            f" and stays clear of exclude {list(exclude)}"
        ]
    if faults:
        roles = sorted({site.role for site in sites if site.kind in (chosen_kinds or SITE_KINDS)})
        shown = ", ".join(roles[:_NUM_ROLES_SHOWN])
        raise ConfigError([*faults, f"tensors of the backbone, numbers left out: {shown}"])
    return chosen


def _dead_patterns(sites: Sequence[Site], word: str, patterns: Sequence[str]) -> list[str]:
    return [
        f"the {word} pattern {pattern!r} matches none of the {len(sites)} tensors of the backbone"
        for pattern in patterns
        if not any(fnmatch.fnmatchcase(site.name, pattern) for site in sites)
    ]


def _matches_any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
