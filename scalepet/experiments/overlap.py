"""Where the masks of a study lie, and what they have in common; no weights are read."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from scalepet import backbones, build, engine, pet
from scalepet.backbones import Backbone, Site
from scalepet.config import RunConfig, check_config
from scalepet.config.models import BackboneConfig
from scalepet.errors import CheckpointError, ScalepetError
from scalepet.experiments.cells import CellScores
from scalepet.experiments.study_runs import StudyRun
from scalepet.masks import SparseMask
from scalepet.pet import POSITIONS
from scalepet.recipes.adapter import merge
from scalepet.recipes.masks import with_saved_positions
from scalepet.recipes.run_folder import ADAPTER

PLACES_ENTRIES = ("apet", "released")
"""Kinds of methods that choose positions out of a budget."""


@dataclass(frozen=True)
class Placed:
    """Cells of one backbone and task that train equally many parameters in different places.

    Attributes:
        cells: at least two methods.
    """

    backbone: str
    task: str
    budget: int
    cells: tuple[CellScores, ...]


@dataclass(frozen=True)
class MaskOverlap:
    """What the masks of two methods share, or of one method at several position seeds.

    Attributes:
        share: common entries as a part of a mask, the mean over pairs.
        expected: the same if every mask were drawn at random inside its tensors.
        num_pairs: of masks.
    """

    backbone: str
    task: str
    budget: int
    first: str
    second: str
    share: float
    expected: float
    num_pairs: int


@dataclass
class Masks:
    """Draws masks again, and keeps what it has seen.

    Attributes:
        missing: why there is no mask, each reason once.
    """

    missing: set[str] = field(default_factory=set)
    _sites: dict[str, tuple[Site, ...] | None] = field(default_factory=dict)

    def of(self, run: StudyRun) -> SparseMask | None:
        """The mask of a run by its options, or the saved positions where a score chose it; None
        where it cannot be had, and the reason is kept.
        """
        try:
            config = check_config(run.run.config)
            sites = self._sites_of(run.backbone, config)
            return None if sites is None else _mask(run, config, sites)
        except ScalepetError as error:
            place = f"{run.backbone}, {run.cell.method}"
            # Only what is wrong: paths differ from one machine to the next.
            self.missing.add(f"{place}: {error.faults[0].replace(str(run.run.folder), 'the run')}")
            return None

    def _sites_of(self, name: str, config: RunConfig) -> tuple[Site, ...] | None:
        if name not in self._sites:
            self._sites[name] = None
            backbone = _on_disk(config.backbone)
            if backbone is None:
                self.missing.add(f"{name}: its config.json is not at {config.backbone.path}")
                return None
            try:
                model_config = backbones.read_model_config(backbone)
                self._sites[name] = tuple(backbones.sketch_sites(model_config))
            except ScalepetError as error:
                self.missing.add(f"{name}: {error.faults[0]}")
        return self._sites[name]


def _on_disk(wanted: BackboneConfig) -> Backbone | None:
    """The backbone where its config.json is here already: a report needs no network."""
    if Path(wanted.path).exists():
        return Backbone(path=wanted.path, random_start=wanted.random_start)
    try:
        cached = try_to_load_from_cache(wanted.path, "config.json", revision=wanted.revision)
    except ValueError:  # a path, and no name of the hub
        return None
    return Backbone(path=cached, random_start=True) if isinstance(cached, str) else None


def _mask(run: StudyRun, config: RunConfig, sites: Sequence[Site]) -> SparseMask | None:
    method = build.plan_method(config, sites)
    apet = pet.apet_of(method)
    if apet is None:
        return None
    folder = run.run.folder / ADAPTER
    if apet.is_rule:
        if folder.exists():
            _check_rule(engine.read_folder(folder)[1], method.record())
        return apet.mask
    if not folder.exists():
        raise CheckpointError("its positions were chosen by a score, and no adapter is beside it")
    tensors, _ = engine.read_folder(folder)
    saved = {name: tensor for name, tensor in tensors.items() if name.endswith(POSITIONS)}
    settled = pet.apet_of(with_saved_positions(method, saved))
    return None if settled is None else settled.mask


def _check_rule(record: Mapping[str, Any], drawn: Mapping[str, Any]) -> None:
    """A mask that is drawn again has to be the one that was trained."""
    saved = record.get("method")
    if not isinstance(saved, Mapping) or merge(drawn, saved) != drawn:
        raise CheckpointError("the mask that its options give here is not the one that was trained")


def placements(cells: Sequence[CellScores]) -> list[Placed]:
    """Every budget at which at least two methods that choose positions stand side by side."""
    grouped: dict[tuple[str, str, int], list[CellScores]] = {}
    for cell in cells:
        budget = _budget(cell)
        if budget is not None:
            grouped.setdefault((cell.key.backbone, cell.key.task, budget), []).append(cell)
    return [Placed(*key, tuple(own)) for key, own in sorted(grouped.items()) if len(own) > 1]


def _budget(cell: CellScores) -> int | None:
    """Out of which a method chooses positions, of the study or its own; None where it is another
    method's count, or there is none. In words ("0.1%") it is what was tuned.
    """
    if cell.kind not in PLACES_ENTRIES or cell.key.matches is not None:
        return None
    if cell.key.budget is not None:
        return cell.key.budget
    own = cell.runs[0].run.config["method"].get("budget")
    return own if isinstance(own, int) or own is None else cell.tuned


def looked_at(cells: Sequence[CellScores]) -> list[Placed]:
    """Groups of cells whose masks are compared: the placements; where a backbone and task has none,
    each method that chooses positions at its largest budget, over its position seeds.
    """
    found = placements(cells)
    seen = {(group.backbone, group.task) for group in found}
    largest: dict[tuple[str, str, str], CellScores] = {}
    for cell in cells:
        key, several = cell.key, len({seed for seed, _ in cell.seeds}) > 1
        if several and _budget(cell) is not None and key[:2] not in seen:
            other = largest.setdefault(key[:3], cell)
            largest[key[:3]] = max(cell, other, key=lambda cell: _budget(cell) or 0)
    alone = [Placed(*key[:2], _budget(cell) or 0, (cell,)) for key, cell in largest.items()]
    return [*found, *alone]


def overlaps(placed: Sequence[Placed], masks: Masks) -> list[MaskOverlap]:
    """Of each method over its position seeds, and of each pair of methods at the same seed.

    A method without a mask in the backbone, such as the released rule, has none to compare.
    """
    found = []
    for group in placed:
        own = {cell.key.method: _by_seed(cell, masks) for cell in group.cells}
        known = {name: by_seed for name, by_seed in own.items() if by_seed}
        for name, by_seed in known.items():
            pairs = list(combinations(by_seed.values(), 2))
            found += _overlap(group, name, name, pairs)
        for first, second in combinations(known, 2):
            common = known[first].keys() & known[second].keys()
            pairs = [(known[first][seed], known[second][seed]) for seed in sorted(common)]
            found += _overlap(group, first, second, pairs)
    return found


def _by_seed(cell: CellScores, masks: Masks) -> dict[int, SparseMask]:
    """One mask for each position seed; of several data seeds the first."""
    found: dict[int, SparseMask] = {}
    for run in cell.runs:
        if run.cell.position_seed not in found:
            mask = masks.of(run)
            if mask is not None:
                found[run.cell.position_seed] = mask
    return found


def _overlap(
    group: Placed, first: str, second: str, pairs: Sequence[tuple[SparseMask, SparseMask]]
) -> list[MaskOverlap]:
    if not pairs:
        return []
    shared = [one.overlap(other) for one, other in pairs]
    return [
        MaskOverlap(
            group.backbone,
            group.task,
            group.budget,
            first,
            second,
            share=statistics.fmean(overlap.share_of_first for overlap in shared),
            expected=statistics.fmean(overlap.expected_share_of_first for overlap in shared),
            num_pairs=len(pairs),
        )
    ]
