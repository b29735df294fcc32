from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_folders import write_run

from scalepet import backbones, engine, pet
from scalepet.backbones import Backbone
from scalepet.experiments.cells import CellScores, choose_cells
from scalepet.experiments.overlap import Masks, looked_at, overlaps, placements
from scalepet.experiments.study_runs import read_studies
from scalepet.recipes.study import Cell

SHAPE = {
    "model_type": "t5",
    "vocab_size": 60,
    "d_model": 8,
    "d_kv": 4,
    "d_ff": 16,
    "num_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
BUDGET = 300


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    """A config.json; there are no weights."""
    folder = tmp_path / "backbone"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SHAPE))
    return folder


def write(
    study: Path, method: str, backbone: Path, *, seeds: int, kind: str = "apet", **options: Any
) -> list[Path]:
    folders = []
    for seed in range(seeds):
        cell = Cell(
            study="s", backbone="t5", task="news", method=method, budget=BUDGET, matches=None,
            position_seed=seed, data_seed=0, learning_rate=0.1, factor=1.0,
        )  # fmt: skip
        folders.append(
            write_run(
                study, cell, score=0.5, tuned=BUDGET, kind=kind, options=options, path=str(backbone)
            )
        )
    return folders


def cells_of(study: Path) -> tuple[CellScores, ...]:
    return choose_cells(read_studies([study]).runs)[0]


def planned(backbone: Path, **options: Any) -> Any:
    model_config = backbones.read_model_config(Backbone(path=str(backbone)))
    method = pet.METHODS["apet"](backbones.sketch_sites(model_config), budget=BUDGET, **options)
    return pet.apet_of(method)


def entries(apet: Any) -> set[tuple[str, int]]:
    return {(name, int(i)) for name, own in apet.mask.positions.items() for i in own}


def test_overlap_is_what_sets_of_entries_share(tmp_path: Path, backbone: Path) -> None:
    write(tmp_path / "s", "apet", backbone, seeds=3)
    write(tmp_path / "s", "one layer", backbone, seeds=2, include=["decoder.*"])
    cells, masks = cells_of(tmp_path / "s"), Masks()
    (group,) = placements(cells)
    assert [cell.key.method for cell in group.cells] == ["apet", "one layer"]
    found = {(one.first, one.second): one for one in overlaps([group], masks)}
    own = [entries(planned(backbone, seed=seed)) for seed in range(3)]
    alone = [entries(planned(backbone, seed=seed, include=["decoder.*"])) for seed in range(2)]
    pairs = [len(a & b) for a, b in ((own[0], own[1]), (own[0], own[2]), (own[1], own[2]))]
    assert found["apet", "apet"].share == pytest.approx(np.mean(pairs) / BUDGET)
    assert found["apet", "apet"].num_pairs == 3
    both = [len(own[seed] & alone[seed]) for seed in range(2)]
    assert found["apet", "one layer"].share == pytest.approx(np.mean(both) / BUDGET)
    assert not masks.missing


def test_a_method_alone_is_looked_at_over_its_seeds(tmp_path: Path, backbone: Path) -> None:
    write(tmp_path / "s", "apet", backbone, seeds=2)
    cells = cells_of(tmp_path / "s")
    assert not placements(cells)
    (one,) = overlaps(looked_at(cells), Masks())
    assert (one.first, one.second, one.budget) == ("apet", "apet", BUDGET)
    assert 0 < one.share < 1 and 0 < one.expected < 1


def test_positions_that_a_score_chose_are_read_from_the_adapter(
    tmp_path: Path, backbone: Path
) -> None:
    (folder,) = write(tmp_path / "s", "magnitude", backbone, seeds=1, select="magnitude")
    write(tmp_path / "s", "apet", backbone, seeds=1)
    masks = Masks()
    assert not overlaps(placements(cells_of(tmp_path / "s")), masks)
    assert "chosen by a score, and no adapter is beside it" in "".join(masks.missing)

    random = planned(backbone, seed=0)
    options = {**random.options, "select": "magnitude"}
    chosen = dataclasses.replace(random, select="magnitude", options=options)
    record = {"method": chosen.record()}
    engine.write_folder(folder / "adapter", tensors=chosen.saved_positions(), record=record)
    masks = Masks()
    (one,) = overlaps(placements(cells_of(tmp_path / "s")), masks)
    assert one.share == 1.0 and not masks.missing  # the same entries as the random mask


def test_a_mask_that_comes_out_otherwise_is_not_compared(tmp_path: Path, backbone: Path) -> None:
    (folder, _) = write(tmp_path / "s", "apet", backbone, seeds=2)
    record = {"method": planned(backbone, seed=7).record()}
    engine.write_folder(folder / "adapter", tensors={}, record=record)
    masks = Masks()
    assert not overlaps(looked_at(cells_of(tmp_path / "s")), masks)
    (reason,) = masks.missing
    assert reason.startswith("t5, apet: the mask that its options give here is not the one")


def test_a_budget_may_stand_inside_the_method(tmp_path: Path) -> None:
    """As a number or in words; prompt has none."""
    methods: dict[str, tuple[str, dict[str, Any]]] = {
        "any": ("apet", {"budget": 300}),
        "rows": ("apet", {"budget": "0.03%", "unit": "row"}),
        "prompt": ("prompt", {}),
    }
    for method, (kind, options) in methods.items():
        cell = Cell(
            study="s", backbone="t5", task="news", method=method, budget=None, matches=None,
            position_seed=0, data_seed=0, learning_rate=0.1, factor=1.0,
        )  # fmt: skip
        write_run(tmp_path, cell, score=0.5, tuned=300, kind=kind, options=options)
    (group,) = placements(cells_of(tmp_path))
    assert group.budget == 300
    assert [cell.key.method for cell in group.cells] == ["any", "rows"]


def test_a_backbone_that_is_gone_is_named_once(tmp_path: Path, backbone: Path) -> None:
    write(tmp_path / "s", "apet", tmp_path / "gone", seeds=3)
    write(tmp_path / "s", "released", tmp_path / "gone", seeds=1, kind="released")
    masks = Masks()
    assert not overlaps(looked_at(cells_of(tmp_path / "s")), masks)
    assert masks.missing == {f"t5: its config.json is not at {tmp_path / 'gone'}"}
