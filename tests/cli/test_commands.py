"""What each command hands on to its recipe, and what it prints of the answer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from running import run_here

import scalepet.experiments
import scalepet.recipes
from scalepet.data import Results
from scalepet.errors import DataError
from scalepet.recipes.answer import write_answers


class Recorder:
    """A recipe that notes how it was called."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((args, kwargs))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(name: str, answer: Any = None) -> Recorder:
        recorder = Recorder(answer)
        monkeypatch.setattr(scalepet.recipes, name, recorder)
        return recorder

    return put


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(
        """
        output: runs/first
        backbone: {path: somewhere}
        task: {kind: sequence_to_sequence, source: {path: a/b}, template: "{a}", target: b}
        method: {name: head}
        """
    )
    return str(path)


def test_train_hands_on_the_config(run: Any, recipe: Any, config_file: str) -> None:
    finetune = recipe("finetune")
    ended = run("train", config_file, "train.steps=3", "seed=4", "--resume")
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    ((config,), options) = finetune.calls[0]
    assert (config.train.steps, config.seed, config.output) == (3, 4, Path("runs/first"))
    assert options["resume"] is True
    run("train", config_file)
    assert finetune.calls[1][1]["resume"] is False


def test_evaluate_prints_its_scores(run: Any, recipe: Any) -> None:
    evaluate = recipe("evaluate_adapters", [{"accuracy": 0.75, "loss": 1.23456789, "rows": 600}])
    ended = run("evaluate", "runs/first", "evaluate.num_beams=4", "--other-weights")
    assert (ended.code, ended.out) == (0, "accuracy\t0.75\nloss\t1.23457\nrows\t600\n")
    args, options = evaluate.calls[0]
    assert args == ([Path("runs/first")],)
    assert options == {
        "overrides": {"evaluate": {"num_beams": 4}},
        "other_weights": True,
        "vote": None,
    }


def test_several_adapters_are_scored_side_by_side(run: Any, recipe: Any) -> None:
    scores = [{"accuracy": 0.75, "rows": 600}, {"rouge_l": 0.5, "rows": 600}]
    evaluate = recipe("evaluate_adapters", scores)
    ended = run("evaluate", "runs/a", "--also", "runs/b")
    lines = ["metric\truns/a\truns/b", "accuracy\t0.75\t-", "rows\t600\t600", "rouge_l\t-\t0.5"]
    assert ended.out.splitlines() == lines
    assert evaluate.calls[0][0] == ([Path("runs/a"), Path("runs/b")],)


def test_several_adapters_answer_side_by_side(run: Any, recipe: Any, tmp_path: Path) -> None:
    answers = [["good", "bad"], ["bad", "bad"]]
    recipe("predict", answers)
    command = ["predict", "a", "--also", "b", "--text", "x", "--text", "y"]
    assert run(*command).out == "good\tbad\nbad\tbad\n"
    output = tmp_path / "answers.jsonl"
    write_answers(output, answers)
    assert json.loads(output.read_text().splitlines()[0]) == {"row": 0, "answer": ["good", "bad"]}


def test_predict_prints_an_answer_a_line(run: Any, recipe: Any) -> None:
    predict = recipe("predict", [["good", "bad"]])
    ended = run("predict", "runs/first", "--text", "a film", "--text", "no film")
    assert (ended.code, ended.out) == (0, "good\nbad\n")
    options = predict.calls[0][1]
    assert (options["texts"], options["file"]) == (["a film", "no film"], None)
    assert (options["overrides"], options["other_weights"]) == ({}, False)


def test_predict_writes_a_file(run: Any, recipe: Any, tmp_path: Path) -> None:
    predict = recipe("predict", [["good", "bad"]])
    rows, output = tmp_path / "new.csv", tmp_path / "answers.jsonl"
    rows.write_text("text\na film\nno film\n")
    ended = run("predict", "runs/first", "--input", str(rows), "--output", str(output))
    assert (ended.code, ended.out) == (0, "")
    options = predict.calls[0][1]
    assert (options["file"], options["into"]) == (rows, output)
    write_answers(output, [["good", "bad"]])
    assert output.read_text() == '{"row": 0, "answer": "good"}\n{"row": 1, "answer": "bad"}\n'


@pytest.mark.parametrize("rank", ["1", "7"])
def test_other_ranks_work_and_say_nothing(
    run: Any, recipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rank: str
) -> None:
    evaluate, predict = recipe("evaluate_adapters", [{"loss": 1.0}]), recipe("predict", [["good"]])
    placed = {"LOCAL_RANK": rank, "WORLD_SIZE": "8", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {"RANK": rank, **placed, "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    output = tmp_path / "answers.jsonl"
    commands = [["evaluate", "a"], ["predict", "a", "--text", "x"]]
    for command in [*commands, ["predict", "a", "--text", "x", "--output", str(output)]]:
        ended = run(*command)
        assert (ended.code, ended.out, ended.err) == (0, "", "")
    assert (len(evaluate.calls), len(predict.calls)) == (1, 2)
    assert not output.exists()


def test_faults_of_a_recipe_are_a_line_each(run: Any, recipe: Any, config_file: str) -> None:
    recipe("finetune", DataError(["column 'a' is missing", "column 'b' is missing"]))
    ended = run("train", config_file)
    assert (ended.code, ended.out) == (2, "")
    assert ended.faults == ["column 'a' is missing", "column 'b' is missing"]


def test_our_own_mistakes_keep_their_traceback(recipe: Any, config_file: str) -> None:
    recipe("finetune", AssertionError("a slip of ours"))
    ended = run_here("train", config_file)
    assert ended.code == 1
    assert "Traceback" in ended.err
    assert ended.err.endswith("failed: AssertionError: a slip of ours\n")


def test_the_rank_that_deepspeed_passes_reaches_the_environment(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert run("--local_rank=3", "train", "--fields").code == 0
    assert os.environ.pop("LOCAL_RANK") == "3"
    run("train", "--fields")
    assert "LOCAL_RANK" not in os.environ
    monkeypatch.setenv("LOCAL_RANK", "1")
    run("--local_rank=3", "train", "--fields")
    assert os.environ["LOCAL_RANK"] == "1"


def test_report_compares_and_draws(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    draw = Recorder()
    monkeypatch.setattr(scalepet.experiments, "read_run", lambda folder: folder.name)
    monkeypatch.setattr(
        scalepet.experiments, "compare_table", lambda runs, metric: f"{runs} by {metric}"
    )
    monkeypatch.setattr(scalepet.experiments, "draw_curves", draw)
    ended = run("report", "runs/a", "runs/b", "--metric", "eval/loss", "--figure", "x.png")
    assert (ended.code, ended.out) == (0, "['a', 'b'] by eval/loss\nfigure x.png\n")
    assert draw.calls == [((["a", "b"], Path("x.png"), "eval/loss"), {})]


def write_stream(folder: Path, rows: list[dict[str, list[float]]]) -> str:
    counts = {"trained": 1, "masked": 1, "head": 0, "backbone": 9}
    facts = {"scalepet": "0.1.0", "versions": {}, "git_commit": None, "command": "train"}
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("{}")
    (folder / "run.json").write_text(
        json.dumps({**facts, "counts": counts, "world_size": 1, "method": "lora"})
    )
    results = Results({"part 1": 100, "part 2": 300})
    for row in rows:
        results = results.with_row(row)
    results.write(folder)
    return str(folder)


def test_report_shows_streams(run: Any, tmp_path: Path) -> None:
    rows = [
        {"online": [0.9]},
        {"online": [0.5, 0.7], "offline": [0.6, 0.6], "ensemble": [0.7, 0.7]},
    ]
    for order in range(2):
        write_stream(tmp_path / "lae" / f"order-{order}", rows)
    naive = write_stream(tmp_path / "naive", rows[:1])
    figure = tmp_path / "curves.png"
    ended = run("report", str(tmp_path / "lae"), naive, "--figure", str(figure))
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.endswith(f"figure {figure}\n") and figure.is_file()
    for part in ("lae, 2", "ensemble", "0.700", "±0.000", "forgetting", "0.200", "0.900"):
        assert part in ended.out


def test_report_keeps_streams_and_runs_apart(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stream = write_stream(tmp_path / "lae", [{"online": [0.9]}])
    ended = run("report", stream, "--metric", "eval/loss")
    assert (ended.code, ended.out) == (2, "")
    assert "--metric eval/loss" in ended.faults[0] and stream in ended.faults[0]
    plain = SimpleNamespace(folder=tmp_path / "plain")
    monkeypatch.setattr(scalepet.experiments, "read_run", lambda _: plain)
    ended = run("report", stream, str(plain.folder))
    assert (ended.code, ended.out, len(ended.faults)) == (2, "", 1)
    for part in ("no table shows both", f"{stream} learnt a stream", f"{plain.folder} a single"):
        assert part in ended.faults[0]


def test_assets_lists_what_there_is(run: Any) -> None:
    from scalepet.assets import ASSETS

    ended = run("assets")
    assert ended.code == 0
    assert [line.split("\t")[0] for line in ended.out.splitlines()] == list(ASSETS)
