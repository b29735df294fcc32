"""Streams through the command line: how they go on after a kill, at any world size, and what is
refused.
"""

from __future__ import annotations

import json
import math
import signal
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from picture_folder import write_pictures
from running import SCALEPET, newest_state, read_losses, read_metrics, read_result, read_table, run

from scalepet.config import read_stream_config
from scalepet.errors import ScalepetError
from scalepet.recipes.prepare_stream import prepare_stream

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]

STREAM_WORDS = ["red", "orange", "yellow", "blue", "cyan", "teal"]
DISTURBED = {"backbone": {"dropout": 0.1}, "train": {"save_every": 1}}
OPTIMIZER_ON_NVME = {
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "nvme", "nvme_path": "/tmp"},
    }
}
KILLED = Path(__file__).with_name("killed.py")


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "tensors.safetensors")


def read_matrix(folder: Path) -> dict[str, list[list[float]]]:
    return json.loads((folder / "matrix.json").read_text())["experts"]


@pytest.fixture(scope="module")
def whole(write_stream, tmp_path_factory) -> Path:
    """A stream that nobody has disturbed; dropout shows whether random states are kept."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run([*SCALEPET, "continual", write_stream(folder, **DISTURBED)])
    return folder


def test_it_leaves_the_matrix_the_adapters_and_the_figures(whole):
    matrix = read_matrix(whole)
    assert set(matrix) == {"online", "offline", "ensemble"}
    assert [len(row) for row in matrix["ensemble"]] == [1, 2, 3]
    result = read_result(whole)
    assert result["metrics"]["ensemble/last_micro"] == pytest.approx(
        sum(matrix["ensemble"][-1]) / 3
    )
    assert {"matrix.png", "curves.png"} < {path.name for path in whole.iterdir()}
    assert (whole / "matrix.png").read_bytes().startswith(b"\x89PNG")
    evaluations = {s: r for (kind, s), r in read_metrics(whole).items() if kind == "eval"}
    assert [r["experience"] for r in evaluations.values()] == [1, 2, 3]
    assert len(read_losses(whole)) == result["num_steps"] == 3 * 3 * 3
    shown = run([*SCALEPET, "report", whole])
    assert all(expert in shown for expert in matrix)


def test_each_expert_is_an_adapter_that_answers_for_all_classes(whole):
    for expert, folder in (("online", "adapter"), ("offline", "adapter-offline")):
        scores = read_table(run([*SCALEPET, "evaluate", whole / folder]))
        assert scores["accuracy"] == pytest.approx(
            read_result(whole)["metrics"][f"{expert}/last_micro"], abs=1e-6
        )


def test_the_experts_vote_outside_of_the_stream_too(whole):
    both = [whole, "--also", whole / "adapter-offline", "--vote", "max"]
    scores = read_table(run([*SCALEPET, "evaluate", *both]))
    expected = read_result(whole)["metrics"]["ensemble/last_micro"]
    assert scores["accuracy"] == pytest.approx(expected, abs=1e-6)
    said = run([*SCALEPET, "evaluate", whole, "--vote", "max"], code=2)
    assert "allowed: two adapters or more (--also)" in said


# After 9 steps each an experience ends; the method thaws after step 12.
@pytest.mark.parametrize(
    "saves",
    [10, 12, *(pytest.param(saves, marks=pytest.mark.slow) for saves in (9, 14))],
)
def test_a_killed_stream_goes_on_as_if_nothing_had_happened(saves, whole, write_stream, tmp_path):
    broken = tmp_path / "broken"
    config = write_stream(broken, **DISTURBED)
    run([sys.executable, KILLED, saves, "continual", config], code=-signal.SIGKILL)
    run([*SCALEPET, "continual", config, "--resume"])
    assert read_losses(broken) == read_losses(whole)
    assert read_matrix(broken) == read_matrix(whole)
    assert newest_state(broken).name == newest_state(whole).name
    for name in (f"states/{newest_state(whole).name}", "adapter", "adapter-offline"):
        left, right = read_tensors(whole / name), read_tensors(broken / name)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left), name


def test_label_words_of_a_t5_are_learnt_alike_on_one_and_two_ranks(write_stream, tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    for num_ranks, folder in enumerate(folders, start=1):
        config = write_stream(folder, "t5-gated", method={"name": "prompt", "length": 3})
        run([*SCALEPET, "continual", config], num_ranks=num_ranks)
    assert read_losses(folders[0]) == pytest.approx(read_losses(folders[1]), abs=1e-5)
    assert read_matrix(folders[0]) == read_matrix(folders[1])


def test_a_vit_learns_a_stream_of_pictures(write_stream, tiny_backbones, tmp_path):
    counts, classes = {"train": 24, "validation": 12}, ("a", "b", "c", "d")
    write_pictures(tmp_path / "pictures", counts, classes=classes)
    stream = {
        "num_tasks": 2,
        "task": {
            "kind": "image_classification",
            "source": {"path": str(tmp_path / "pictures")},
            "template": "{image}",
            "target": "label",
            "picture": {"size": 16, "resize": 18},
        },
    }
    config = write_stream(tmp_path / "run", "vit", stream=stream, train={"epochs": 2})
    run([*SCALEPET, "continual", config])
    assert [len(row) for row in read_matrix(tmp_path / "run")["ensemble"]] == [1, 2]
    assert read_losses(tmp_path / "run")[0] == pytest.approx(math.log(2), abs=0.01)


def test_data_sets_one_after_the_other_and_all_at_once(write_stream, stream_rows, tmp_path):
    task = {
        "kind": "classification",
        "template": "{text}",
        "target": "label",
        "max_source_length": 10,
    }
    tasks = []
    for name in ("red", "blue"):
        files = {split: str(stream_rows / f"{split}.jsonl") for split in ("train", "validation")}
        words = [name, *STREAM_WORDS[1:3]] if name == "red" else [name, *STREAM_WORDS[4:]]
        for split, path in files.items():
            rows = Path(path).read_text().splitlines(keepends=True)
            lines = [row for row in rows if json.loads(row)["label"] in words]
            files[split] = str(tmp_path / f"{name}-{split}.jsonl")
            Path(files[split]).write_text("".join(lines))
        tasks.append({**task, "source": {"path": "json", "files": files}})
    stream = {"num_tasks": None, "task": None, "tasks": tasks}
    for name, lae in (
        ("sequence", {}),
        ("joint", {"joint": True, "offline": [], "freeze_epochs": 0}),
    ):
        config = write_stream(tmp_path / name, stream=stream, lae=lae, train={"epochs": 2})
        run([*SCALEPET, "continual", config])
    assert [len(row) for row in read_matrix(tmp_path / "sequence")["online"]] == [1, 2]
    assert [len(row) for row in read_matrix(tmp_path / "joint")["online"]] == [1]
    assert read_losses(tmp_path / "joint")[0] == pytest.approx(math.log(6), abs=0.01)


@pytest.mark.slow
def test_full_tuning_one_experience_after_the_other(write_stream, tmp_path):
    lae = {"offline": [], "freeze_epochs": 0}
    config = write_stream(tmp_path / "run", method={"name": "full"}, lae=lae, train={"epochs": 1})
    run([*SCALEPET, "continual", config])
    assert set(read_matrix(tmp_path / "run")) == {"online"}


def test_a_finished_stream_says_so(whole, write_stream):
    before = read_metrics(whole)
    shown = run([*SCALEPET, "continual", whole.with_suffix(".yaml"), "--resume"])
    assert "has been learnt to its end" in " ".join(shown.split())
    assert read_metrics(whole) == before


def test_it_goes_on_at_another_world_size_and_stage(write_stream, tmp_path):
    folders = [tmp_path / name for name in ("whole", "broken")]
    run([*SCALEPET, "continual", write_stream(folders[0])])
    config = write_stream(folders[1])
    run([sys.executable, KILLED, "5", "continual", config], code=-signal.SIGKILL)
    run([*SCALEPET, "continual", config, "deepspeed=zero2", "--resume"], num_ranks=2)
    assert read_losses(folders[1]) == pytest.approx(read_losses(folders[0]), abs=2e-6)
    assert read_matrix(folders[1]) == read_matrix(folders[0])


def test_several_orders_are_reported_with_their_deviation(write_stream, tmp_path):
    config = write_stream(tmp_path / "orders", train={"epochs": 2})
    run([*SCALEPET, "continual", config, "--orders", "2"])
    names = [
        list(
            json.loads((tmp_path / "orders" / f"order-{n}" / "matrix.json").read_text())["num_rows"]
        )
        for n in (0, 1)
    ]
    assert names[0] != names[1]
    shown = run([*SCALEPET, "report", tmp_path / "orders"])
    assert "±" in shown


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"lae": {"freeze_epochs": 3}}, "lae.freeze_epochs: 3; allowed: less than train.epochs, 3"),
        ({"lae": {"offline": [{"alpha": 1.0}]}}, "lae.offline"),
        ({"lae": {"offline": [{"alpha": -0.1}]}}, "lae.offline"),
        ({"lae": {"offline": [{}]}}, "allowed: one of them"),
        ({"lae": {"offline": [{"alpha": 0.5, "travel": 0.5}]}}, "allowed: one of them"),
        ({"lae": {"vote": "median"}}, "lae.vote: 'median'; allowed: max or mean"),
        ({"method": {"name": "full"}}, "which trains the backbone itself"),
        ({"method": {"name": "head"}}, "which trains nothing"),
        ({"method": {"name": "apet", "budget": 50, "move_every": 2}}, "method.move_every: 2"),
        ({"stream": {"num_tasks": 4}}, "stream.num_tasks"),
        ({"deepspeed": OPTIMIZER_ON_NVME}, "offload_optimizer on nvme with 1 offline copies"),
        ({"lae": {"joint": True}}, "lae.joint: true with 1 offline copies"),
    ],
)
def test_bad_input_is_refused_before_anything_loads(fields, expected, write_stream, tmp_path):
    config = write_stream(tmp_path / "bad", **fields)
    with pytest.raises(ScalepetError) as caught:
        prepare_stream(read_stream_config(config), resume=False)
    assert expected in "\n".join(caught.value.faults)
    assert not (tmp_path / "bad").exists()


def test_another_stream_does_not_go_on(whole):
    said = run(
        [*SCALEPET, "continual", whole.with_suffix(".yaml"), "--resume", "stream.seed=1"], code=2
    )
    assert "stream was" in said and "a run goes on as it began" in said


def test_a_t5_has_no_head_that_could_learn_alone(write_stream, tmp_path):
    config = write_stream(tmp_path / "bad", "t5", lae={"freeze_epochs": 1})
    with pytest.raises(ScalepetError, match="has no head that could learn alone"):
        prepare_stream(read_stream_config(config), resume=False)
