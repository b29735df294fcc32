"""What a new method gets for its one file: training, saving, merging, options and their faults."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import safetensors.torch
from running import read_losses, read_result, read_table, run

pytestmark = pytest.mark.distributed

WITH_TOY = [sys.executable, Path(__file__).with_name("toy_method.py")]


def test_it_is_trained_under_zero3_saved_used_and_merged(write_run, tmp_path):
    folder = tmp_path / "run"
    method = {"name": "gains", "parts": ["ffn_out", "o"]}
    config = write_run(folder, method=method, train={"steps": 4, "evaluate_every": 4})
    run([*WITH_TOY, "train", config])
    assert json.loads((folder / "run.json").read_text())["counts"]["masked"] == 4
    tensors = safetensors.torch.load_file(folder / "adapter" / "tensors.safetensors")
    gains = [tensor for name, tensor in tensors.items() if name.endswith(".gain")]
    assert len(gains) == 4, "two in each of two blocks"
    assert all(gain != 1 for gain in gains)
    assert len(set(read_losses(folder))) == 4
    scores = read_table(run([*WITH_TOY, "evaluate", folder]))
    expected = read_result(folder)["metrics"]["eval/loss"]
    assert scores["loss"] == pytest.approx(expected, rel=1e-5)
    run([*WITH_TOY, "export", folder, tmp_path / "merged"])
    assert (tmp_path / "merged" / "model.safetensors").exists()


def test_its_options_are_shown_and_held_to(write_run, tmp_path):
    shown = run([*WITH_TOY, "train", "--fields"])
    assert "# name: gains\n" in shown
    assert "whose outputs are scaled" in shown
    config = write_run(tmp_path / "run", method={"name": "gains", "parts": ["mouth"]})
    assert "method.parts: ['mouth']; allowed" in run([*WITH_TOY, "train", config], code=2)
