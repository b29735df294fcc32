"""Runs whose task is one of the catalogue: planned without data, and read from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from datasets import Dataset

from scalepet import build
from scalepet.config import RunConfig, check_config
from scalepet.data import TASKS
from scalepet.planning import choose_machines
from scalepet.recipes.plan import plan


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("t5")
    transformers.T5Config(
        vocab_size=32128, d_model=512, d_kv=64, d_ff=1024, num_layers=8, num_heads=6,
        decoder_start_token_id=0,
    ).save_pretrained(folder)  # fmt: skip
    return str(folder / "config.json")


def config_of(backbone: str, task: Any) -> RunConfig:
    return check_config(
        {
            "output": "runs/x",
            "backbone": {"path": backbone, "random_start": True},
            "task": task,
            "method": {"budget": 100},
        }
    )


@pytest.mark.parametrize("name", TASKS)
def test_a_run_of_the_catalogue_is_planned_without_its_data(t5: str, name: str) -> None:
    planned = plan(config_of(t5, name), choose_machines(gpus=1)).as_data()
    task = TASKS[name].task
    assert planned["tokens"] == {
        "source": task.max_source_length,
        "target": task.max_target_length,
        "prompt": 0,
    }


def test_its_rows_may_come_from_a_folder(t5: str, tmp_path: Path) -> None:
    texts = [f"film {n}" if n % 5 else " " for n in range(20)]
    for split in ("train", "validation"):
        table = Dataset.from_dict({"sentence": texts, "label": [n % 2 for n in range(20)]})
        table.to_parquet(tmp_path / f"{split}.parquet")
    source = {"path": str(tmp_path), "held_out": 6, "skip_blank": True, "test_rows": 7}
    task, splits = build.load_rows(config_of(t5, {"name": "sst2", "source": source}))
    assert task.labels == ("negative", "positive")
    assert {name: len(rows) for name, rows in splits.rows.items()} == {
        "train": 10,
        "eval": 6,
        "test": 7,
    }
    assert splits.num_blank == {"train": 4, "test": 4}
