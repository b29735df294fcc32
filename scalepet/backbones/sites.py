"""Sites: the places of a backbone where parameters can be tuned, known without any weight."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from scalepet.errors import ConfigError

SiteKind = Literal["matrix", "embedding", "norm", "bias"]
SITE_KINDS: tuple[SiteKind, ...] = get_args(SiteKind)
Part = Literal["q", "k", "v", "o", "ffn_in", "ffn_out"]
ATTENTION_PARTS: tuple[Part, ...] = ("q", "k", "v", "o")
_NUM_ROLES_SHOWN = 40


@dataclass(frozen=True)
class Site:
    """One tensor of the backbone.

    Attributes:
        name: its parameter name, e.g. ``encoder.block.0.layer.0.SelfAttention.q.weight``. A tied
            tensor has one site.
        shape: its full shape, whatever part of it a rank holds.
        kind: ``matrix`` (weights of linear and convolution layers), ``embedding`` (look-up tables,
            learnt tokens and positions, the output projection onto the vocabulary), ``norm`` (scale
            vectors) or ``bias``.
        layer: the block that it belongs to, e.g. ``encoder.block.0``; its own top module outside of
            the blocks.
        role: its name without the numbers, the same in every layer, e.g.
            ``encoder.block.layer.SelfAttention.q.weight``.
        part: what a linear layer of a block does: a projection of its attention (``q``, ``k``,
            ``v``, ``o``), the way into (``ffn_in``) or out of (``ffn_out``) its feed-forward layer;
            None for all else.
        head_width: rows (columns of an ``o``) that belong to one attention head; None for what has
            no heads.
        is_cross: it belongs to an attention that looks at the encoder from the decoder.
    """

    name: str
    shape: tuple[int, ...]
    kind: SiteKind
    layer: str
    role: str
    part: Part | None = None
    head_width: int | None = None
    is_cross: bool = False

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def module(self) -> str:
        """The path of the module that owns the tensor."""
        return self.name.rpartition(".")[0]


def list_sites(
    model: nn.Module,
    *,
    parts: Mapping[Part, Sequence[str]] | None = None,
    head_width: int | None = None,
    cross: Sequence[str] = (),
) -> tuple[Site, ...]:
    """Every parameter of ``model`` as a site, in the model's order; tied parameters once.

    Works on a model on the ``meta`` device, so that the sites of any size are known in a second.

    Args:
        parts: patterns of the names of weights, by the part that they play.
        head_width: of the attention heads of the model.
        cross: patterns of the names of the tensors of cross-attentions.
    """
    owners = {
        f"{path}.{name}" if path else name: module
        for path, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
    }
    output = getattr(model, "get_output_embeddings", lambda: None)()
    found = []
    for name, parameter in model.named_parameters():
        part = _part(name, parts or {})
        site = Site(
            name=name,
            shape=tuple(parameter.shape),
            kind=_kind(name, parameter.dim(), owners[name], is_output=owners[name] is output),
            layer=_layer(name),
            role=_role(name),
            part=part,
            head_width=head_width if part in ATTENTION_PARTS else None,
            is_cross=matches(name, cross),
        )
        found.append(site)
    return tuple(found)


def _kind(name: str, num_dimensions: int, owner: nn.Module, *, is_output: bool) -> SiteKind:
    if num_dimensions == 1:
        return "bias" if name.rsplit(".", 1)[-1] == "bias" else "norm"
    is_map = isinstance(owner, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return "matrix" if is_map and not is_output else "embedding"


def _part(name: str, parts: Mapping[Part, Sequence[str]]) -> Part | None:
    return next((part for part, patterns in parts.items() if matches(name, patterns)), None)


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
    parts: Iterable[Part] | None = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> tuple[Site, ...]:
    """The sites of these kinds and parts whose name matches an ``include`` pattern and no
    ``exclude`` pattern.

    Patterns are shell-style (``*SelfAttention.[qv].weight``) and match the whole name. With
    ``parts`` None, sites of any part and of none are meant.

    Raises:
        ConfigError: a pattern that matches no site at all, or nothing is left; it shows names that
            exist.
    """
    chosen_kinds, chosen_parts = tuple(kinds), None if parts is None else tuple(parts)
    faults = [
        *_dead_patterns(sites, "include", include),
        *_dead_patterns(sites, "exclude", exclude),
    ]
    chosen = tuple(
        site
        for site in sites
        if site.kind in chosen_kinds
        and (chosen_parts is None or site.part in chosen_parts)
        and matches(site.name, include)
        and not matches(site.name, exclude)
    )
    if not chosen and not faults:
        wanted = f"kind {' or '.join(chosen_kinds)}" if chosen_kinds else "no kind"
        if chosen_parts is not None:
            wanted += f" and part {' or '.join(chosen_parts) or '(none given)'}"
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


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether any of these shell-style patterns is the whole name."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
