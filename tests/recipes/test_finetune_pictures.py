"""A ViT on a folder of pictures, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from picture_folder import write_pictures
from running import SCALEPET, read_losses, read_metrics, read_result, read_table, run

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

COUNTS = {"train": 21, "validation": 11}  # no multiples of any batch


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, COUNTS)
    return folder


@pytest.fixture
def config(tiny_backbones, pictures, tmp_path) -> Path:
    content = {
        "output": str(tmp_path / "run"),
        "precision": "fp32",
        "backbone": {"path": str(tiny_backbones / "vit")},
        "task": {
            "kind": "image_classification",
            "source": {"path": str(pictures)},
            "template": "{image}",
            "target": "label",
            "picture": {"size": 16, "resize": 18},
        },
        "method": {"name": "lora", "r": 2},
        "train": {
            "steps": 12,
            "batch_size": 8,
            "micro_batch_size": 3,
            "evaluate_every": 6,
            "log_every": 1,
            "learning_rate": 0.02,
            "head_learning_rate": 0.02,
        },
        "evaluate": {"micro_batch_size": 4},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_vit_learns_pictures_alike_on_one_and_two_ranks(config, pictures, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for num_ranks, folder in ((1, one), (2, two)):
        run([*SCALEPET, "train", config, f"output={folder}"], num_ranks=num_ranks)
    assert read_losses(two) == pytest.approx(read_losses(one), abs=1e-5)
    assert read_result(two)["metrics"] == pytest.approx(read_result(one)["metrics"], abs=1e-5)
    score = read_result(one)["metrics"]["eval/accuracy"]
    assert score > 0.8, "six of eleven are dark"
    values = read_metrics(one)["train", 10]
    assert values["pictures_per_second"] == pytest.approx(8 / values["step_seconds"])
    assert "tokens_per_second" not in values
    assert read_table(run([*SCALEPET, "evaluate", two]))["accuracy"] == pytest.approx(score)
    assert predicted(two, pictures, tmp_path) == pytest.approx(score)


def predicted(folder: Path, pictures: Path, tmp_path: Path) -> float:
    """The share of right answers to a csv file with paths relative to it."""
    paths = sorted((pictures / "validation").glob("*/*.png"))
    file, answers = pictures / "asked.csv", tmp_path / "answers.jsonl"
    lines = ["image", *(str(path.relative_to(pictures)) for path in paths)]
    file.write_text("\n".join(lines) + "\n")
    run([*SCALEPET, "predict", folder, "--input", file, "--output", answers])
    found = [json.loads(line)["answer"] for line in answers.read_text().splitlines()]
    return sum(a == p.parent.name for a, p in zip(found, paths, strict=True)) / len(paths)


def test_texts_are_no_pictures(config, tmp_path):
    run([*SCALEPET, "train", config, "train.steps=2", "train.evaluate_every=2", "precision=bf16"])
    shown = run([*SCALEPET, "predict", tmp_path / "run", "--text", "a dark one"], code=2)
    assert "--text: the task is one of pictures; allowed: --input FILE" in shown
    run([*SCALEPET, "export", tmp_path / "run", tmp_path / "merged"])
    assert (tmp_path / "merged" / "model.safetensors").exists()


def test_a_broken_picture_ends_a_run_with_its_row(config, tmp_path):
    train = write_pictures(tmp_path / "broken", COUNTS)
    train[0].write_bytes(b"no picture")
    source = f"task.source.path={tmp_path / 'broken'}"
    shown = run([*SCALEPET, "train", config, source], code=2)
    assert f"column 'image': row 0 ('{train[0]}') cannot be decoded: cannot identify" in shown
    assert "Traceback" not in shown
