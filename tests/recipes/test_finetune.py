"""The main job through the command line, with the real launcher and real processes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from running import SCALEPET, read_losses, read_metrics, read_result, read_table, run

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]

KILLED = Path(__file__).with_name("killed.py")
NUM_EVAL_ROWS = 23


@pytest.fixture(scope="module")
def trained(start, write_run, tmp_path_factory) -> dict[tuple[str, int], Path]:
    """Run folders of the same training by (backbone, number of ranks)."""
    root, folders = tmp_path_factory.mktemp("trained"), {}
    for backbone in ("bert", "t5"):
        for num_ranks in (1, 2):
            folder = folders[backbone, num_ranks] = root / f"{backbone}-{num_ranks}"
            run([*start(num_ranks), "train", write_run(folder, backbone)])
    return folders


def test_a_run_folder_holds_what_it_should(trained):
    folder = trained["bert", 2]
    names = {"config.yaml", "run.json", "metrics.jsonl", "result.json", "seal.json", "adapter"}
    assert {path.name for path in folder.iterdir()} == {*names, "states", "logs"}
    names = {"scalepet.json", "tensors.safetensors", "README.md"}
    assert {path.name for path in (folder / "adapter").iterdir()} == names
    record = json.loads((folder / "run.json").read_text())
    assert record["world_size"] == 2
    counts = record["counts"]
    assert counts["masked"] + counts["head"] == counts["trained"]
    num_bytes = (folder / "adapter" / "tensors.safetensors").stat().st_size
    assert 4 * counts["trained"] < num_bytes < 4 * counts["trained"] + 8000


@pytest.mark.parametrize("backbone", ["bert", "t5"])
def test_one_and_two_ranks_give_the_same_losses(backbone, trained):
    one, two = (read_losses(trained[backbone, num_ranks]) for num_ranks in (1, 2))
    assert one == pytest.approx(two, abs=1e-5)


@pytest.mark.parametrize("backbone", ["bert", "t5"])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_the_saved_adapter_scores_as_it_did_in_training(backbone, num_ranks, trained):
    """Trained over two sharded ranks, scored whole in one process and sharded again."""
    metrics = read_result(trained[backbone, 2])["metrics"]
    scores = read_table(run([*SCALEPET, "evaluate", trained[backbone, 2]], num_ranks=num_ranks))
    assert scores["rows"] == NUM_EVAL_ROWS
    assert scores["accuracy"] == pytest.approx(metrics["eval/accuracy"], abs=1e-5)
    assert scores["loss"] == pytest.approx(metrics["eval/loss"], rel=1e-4)


def test_predict_needs_no_deepspeed_and_answers_as_the_evaluation_did(
    write_run, tmp_path, colour_rows
):
    folder = tmp_path / "run"
    run([*SCALEPET, "train", write_run(folder, train={"steps": 100, "evaluate_every": 25})])
    script = "import sys; sys.modules['deepspeed'] = None; from scalepet.cli import main; main()"
    predict = [sys.executable, "-c", script, "predict", folder]
    answers, rows = tmp_path / "answers.jsonl", colour_rows / "validation.jsonl"
    run([*predict, "--input", rows, "--output", answers])
    found = [json.loads(line)["answer"] for line in answers.read_text().splitlines()]
    expected = [json.loads(line) for line in rows.read_text().splitlines()]
    share = sum(a == b["label"] for a, b in zip(found, expected, strict=True)) / len(expected)
    assert share == pytest.approx(read_result(folder)["metrics"]["eval/accuracy"])
    assert share > 0.8
    shown = run([*predict, "--text", expected[0]["text"], "--text", expected[1]["text"]])
    assert shown.split() == found[:2]


def test_t5_writes_texts_over_two_sharded_ranks(write_run, tmp_path):
    train = {"steps": 8, "evaluate_every": 8}
    config = write_run(tmp_path / "run", "t5-gated", is_text=True, train=train)
    run([*SCALEPET, "train", config], num_ranks=2)
    assert 0 <= read_metrics(tmp_path / "run")["eval", 8]["eval/exact_match"] <= 1


def test_a_run_that_freezes_nothing_says_how_large_the_backbone_is(write_run, tmp_path):
    folder, train = tmp_path / "run", {"steps": 2, "evaluate_every": 2}
    method = {"name": "full"}
    shown = run([*SCALEPET, "train", write_run(folder, "t5", method=method, train=train)])
    shown = " ".join(shown.split())  # however wide the terminal is
    counts = json.loads((folder / "run.json").read_text())["counts"]
    assert counts["backbone"] == 0, "what is frozen"
    assert f" {counts['masked']:,} parameters, 0 of them frozen" in shown
    assert f"{counts['masked']:,} trained (100.000% of the backbone)" in shown


@pytest.mark.parametrize(
    ("ranks_before", "stage_before", "ranks_after", "stage_after"),
    [
        (1, "zero3", 1, "zero3"),
        (2, "zero3", 2, "zero3"),
        (1, "zero0", 2, "zero3"),
        (1, "zero3_offload_cpu", 1, "zero3"),
        (1, "zero3", 2, "zero3_offload_cpu"),
        pytest.param(2, "zero3", 1, "zero3", marks=pytest.mark.slow),
        pytest.param(2, "zero2", 1, "zero3", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    launch_two,
    ranks_before,
    stage_before,
    ranks_after,
    stage_after,
    write_run,
    trained,
    tmp_path,
):
    """Killed without warning after its second save, and resumed, also on other ranks or stages, or
    with weights and optimizer elsewhere.
    """
    folder, whole = tmp_path / "broken", trained["bert", ranks_after]
    config = write_run(folder, deepspeed=stage_before)
    if ranks_before == 1:
        run([sys.executable, KILLED, "2", "train", config], code=-signal.SIGKILL)
    else:
        killed = [*launch_two(str(KILLED)), "2", "train", str(config)]
        done = subprocess.run(killed, capture_output=True, timeout=240)
        assert done.returncode not in (0, 2)
    assert not (folder / "result.json").exists()
    again = [*SCALEPET, "train", config, "--resume", f"deepspeed={stage_after}"]
    run(again, num_ranks=ranks_after)
    if (ranks_before, stage_before) == (ranks_after, stage_after):
        assert read_losses(folder) == read_losses(whole)
    assert read_losses(folder) == pytest.approx(read_losses(whole), abs=1e-6)
    assert read_result(folder)["metrics"] == pytest.approx(read_result(whole)["metrics"], abs=1e-6)


def test_a_folder_that_holds_a_run_is_refused(trained):
    folder = trained["bert", 1]
    before = (folder / "metrics.jsonl").read_bytes()
    shown = run([*SCALEPET, "train", folder.with_suffix(".yaml")], code=2)
    assert "holds a run already" in shown
    assert "--resume" in shown
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_run_goes_on_only_as_it_began(trained):
    config = trained["bert", 1].with_suffix(".yaml")
    shown = run([*SCALEPET, "train", config, "--resume", "method.seed=7", "seed=3"], code=2)
    assert "method was" in shown
    assert "seed was 0, this run has 3" in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_an_adapter_on_another_backbone_is_refused(start, num_ranks, trained, tiny_backbones):
    """All ranks end with exit code 2 and one message: the launcher passes the code on."""
    override = f"backbone.path={tiny_backbones / 't5-gated'}"
    shown = run([*start(num_ranks), "evaluate", trained["t5", 2], override], code=2)
    assert shown.count("was trained as") == 1
    assert "was trained on weights" in shown
    assert "Traceback" not in shown


def test_a_step_has_no_more_rows_than_there_are(write_run, tmp_path):
    """As many forwards as rows need, not as many as the config's number would; and it is said."""
    train = {"steps": 2, "batch_size": 1_000_000_000, "evaluate_every": 2}
    said = " ".join(run([*SCALEPET, "train", write_run(tmp_path / "run", train=train)]).split())
    found = re.search(r"data +(\d+) rows to train on", said)
    assert found is not None, said
    assert f"2 of {found[1]} rows, which are all there are (train.batch_size: 1,000," in said


def test_early_stopping_keeps_the_best(write_run, tmp_path):
    still = {"learning_rate": 1e-6, "head_learning_rate": 1e-6}
    train = {"steps": 40, "evaluate_every": 1, "patience": 2, **still}
    run([*SCALEPET, "train", write_run(tmp_path / "run", train=train)])
    result = read_result(tmp_path / "run")
    assert (result["best_step"], result["num_steps"]) == (1, 3)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_all_faults_of_data_backbone_and_method_come_at_once(start, num_ranks, write_run, tmp_path):
    config = write_run(tmp_path / "run")
    overrides = [
        "deepspeed={zero_optimzation: {stage: 3}}",
        "method.budget=10_000_000",
        "task.template='{sentence}'",
        "task.source.splits={eval: test}",
    ]
    shown = run([*start(num_ranks), "train", config, *overrides], code=2)
    for words in ("zero_optimzation", "'test'", "10,000,000 entries", "'sentence'"):
        assert shown.count(words) == 1, shown
    assert "Traceback" not in shown
    assert not (tmp_path / "run").exists()
