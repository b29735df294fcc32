"""Every method on every kind of backbone, from config to report, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from picture_folder import write_pictures
from running import SCALEPET, run

from scalepet.pet import METHODS

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]

OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"r": 2},
    "adapter": {"bottleneck": 4},
    "prefix": {"length": 3},
    "prompt": {"length": 3},
}
RATES = {"full": 1e-3, "released": 1e-3}


@pytest.fixture
def methods() -> dict[str, dict[str, Any]]:
    """All there are, as they stand in a study; one with a new name is tested by that."""
    found: dict[str, dict[str, Any]] = {}
    for name in METHODS:
        method = {"name": name, **OPTIONS.get(name, {})}
        found[name] = {"method": method, "learning_rate": RATES.get(name, 0.02)}
        if name in ("apet", "released"):
            found[name]["budgets"] = [300]
    return found


def run_study(study: dict[str, Any]) -> None:
    path = Path(study["output"]).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(study))
    assert "failed:" not in run([*SCALEPET, "sweep", path])
    run([*SCALEPET, "report", study["output"]])


def check_all_ran(folder: Path, names: set[str]) -> None:
    records = [json.loads(path.read_text()) for path in folder.glob("runs/*/*/*/*/run.json")]
    seals = [*folder.glob("runs/*/*/*/*/seal.json")]
    assert len(records) == len(seals) and {record["method"] for record in records} == names
    assert (folder / "report" / "index.html").stat().st_size > 10_000


def test_on_a_bert_and_on_t5s(study_content, backbones_with_tokenizers, methods, tmp_path) -> None:
    families = ("bert", "t5", "t5-gated")
    backbones = {name: {"path": str(backbones_with_tokenizers / name)} for name in families}
    methods["head"]["backbones"] = ["bert"]
    methods["several"] = {
        "method": {"name": "apet", "budget": 100, "also": [{"name": "ia3"}]},
        "learning_rate": 0.02,
    }
    folder = tmp_path / "study"
    study = study_content(
        folder, backbones=backbones, methods=methods, rate_factors=[1.0], position_seeds=[0]
    )
    run_study(study)
    assert len([*folder.glob("runs/*/*/*")]) == 3 * len(methods) - 2
    check_all_ran(folder, {*METHODS, "apet + ia3"})


def test_on_a_vit(study_content, tiny_backbones, methods, tmp_path) -> None:
    write_pictures(tmp_path / "pictures", {"train": 21, "validation": 11})
    task = {
        "kind": "image_classification",
        "source": {
            "path": str(tmp_path / "pictures"),
            "splits": {"eval": "validation[:6]", "test": "validation[6:]"},
        },
        "template": "{image}",
        "target": "label",
        "picture": {"size": 16, "resize": 18},
    }
    folder = tmp_path / "study"
    study = study_content(
        folder,
        backbones={"vit": {"path": str(tiny_backbones / "vit")}},
        tasks={"tone": task},
        methods=methods,
        rate_factors=[1.0],
        position_seeds=[0],
    )
    run_study(study)
    check_all_ran(folder, {*METHODS})
