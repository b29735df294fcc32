"""Bad input of every kind: exit code 2, one message, a fault a line, value and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

GONE = object()
NOTHING = {"steps": None, "epochs": None}

# field, its value, what the message must hold besides the field
BAD_FIELDS: list[tuple[str, Any, list[str]]] = [
    ("output", GONE, ["missing", "a path"]),
    ("output", 3, ["3", "a path"]),
    ("output", "", ["''", "a path"]),
    ("output", ["a"], ["['a']", "a path"]),
    ("seed", -1, ["-1", "a whole number from 0"]),
    ("seed", "one", ["'one'", "a whole number from 0"]),
    ("seed", 1.5, ["1.5", "a whole number from 0"]),
    ("precision", "fp8", ["'fp8'", "fp32, bf16 or fp16"]),
    ("deepspeed", 3, ["3", "text that is not empty or fields"]),
    ("deepspeed", "", ["''", "not empty"]),
    ("precisoin", "fp32", ["no such field", "precision", "backbone, task"]),
    ("backbone", GONE, ["missing", "path", "random_start"]),
    ("backbone", "t5", ["'t5'", "the fields path"]),
    ("backbone.path", GONE, ["missing", "hub name"]),
    ("backbone.path", 3, ["3", "text"]),
    ("backbone.pathh", "x", ["no such field", "did you mean path?", "revision"]),
    ("backbone.revision", 1, ["1", "text that is not empty or null"]),
    ("backbone.dropout", 1, ["1", "from 0 to below 1"]),
    ("backbone.dropout", "none", ["'none'", "null"]),
    ("backbone.random_start", 2, ["2", "true or false"]),
    ("backbone.checkpoint_activations", "perhaps", ["'perhaps'", "true or false"]),
    ("task", GONE, ["missing", "kind, source, template, target"]),
    ("task", [], ["[]", "kind, source, template"]),
    (
        "task.kind",
        "regression",
        ["'regression'", "classification, sequence_to_sequence or image_classification"],
    ),
    ("task.source", GONE, ["missing", "path, subset, files, splits"]),
    ("task.source.path", GONE, ["missing", "a hub id"]),
    ("task.source", {"path": ""}, ["path is empty", "a hub id"]),
    ("task.source.files", GONE, ["missing", "train.csv"]),
    ("task.source.files", "train.csv", ["'train.csv'", "fields with text"]),
    ("task.source.splits", {"tset": "test"}, ["'tset'", "train, eval, test"]),
    ("task.source.subset", "sst2", ["'sst2'", "hub id"]),
    ("task.template", "{text", ["'{text'", "expected '}'"]),
    ("task.template", "no column", ["'no column'", "{text}"]),
    ("task.target", "", ["empty", "a column"]),
    ("task.labels", ["a", "a"], ["('a', 'a')", "twice"]),
    ("task.labels", ["a"], ["('a',)", "at least two"]),
    ("task.labels", [1, 0], ["[1, 0]", "a list of texts"]),
    ("task.labels", "good", ["'good'", "a list of texts"]),
    ("task.label_values", {1: "good"}, ["'good'", "task.labels"]),
    ("task.metrics", ["acc"], ["'acc'", "accuracy, macro_f1"]),
    ("task.metrics", [], ["empty", "accuracy, macro_f1"]),
    ("task.max_source_length", 1, ["1", "at least 3"]),
    ("task.max_target_length", "long", ["'long'", "a whole number"]),
    ("method", "apet", ["'apet'", "fields"]),
    ("method.name", "lora2", ["'lora2'", "did you mean lora?", "apet, lora"]),
    ("method.name", None, ["null", "apet, lora"]),
    ("method.budget", GONE, ["missing", "a count (4096)"]),
    ("method.budget", 0, ["0", "from 1"]),
    ("method.budget", "101%", ["'101%'", "up to 100"]),
    ("method.budget", [3], ["[3]", "a whole number"]),
    ("method.budget", True, ["True", "a whole number"]),
    ("method.kinds", ["matrices"], ["['matrices']", "matrix, embedding, norm or bias"]),
    ("method.include", "*q*", ["'*q*'", "a list of texts"]),
    ("method.share", "fair", ["'fair'", "uniform, even or proportional"]),
    ("method.r", 8, ["no such option of the method apet", "budget, operation"]),
    ("method.block", 0, ["0", "a whole number from 1"]),
    ("method.move_every", True, ["true", "a whole number from 1 or null"]),
    ("method.move_share", float("inf"), ["inf", "above 0"]),
    ("method.parts", ["w"], ["['w']", "a list of q, k, v, o, ffn_in or ffn_out, or null"]),
    ("method.budget", "same-as:lor", ["'lor'", "did you mean lora?"]),
    ("method.budget", "same-as:lora(r=0)", ["budget.r: 0", "a whole number from 1"]),
    ("method.also", {"name": "prompt"}, ["{name: 'prompt'}", "a list of methods"]),
    ("method.also", [{"name": "apet", "budget": 1}], ["apet stands twice"]),
    ("method.also", [{"name": "prompt", "length": "5"}], ["also[0].length: '5'", "from 1"]),
    ("train", 3, ["3", "epochs, steps"]),
    ("train", {"epochs": 1, "steps": 2}, ["epochs: 1", "steps: 2", "one of them"]),
    ("train", NOTHING, ["epochs: null", "steps: null", "one of them"]),
    ("train.epochs", 0, ["0", "above 0"]),
    ("train.steps", 0, ["0", "a whole number from 1"]),
    ("train.steps", True, ["true", "a whole number from 1"]),
    ("train.batch_size", "32", ["'32'", "a whole number from 1"]),
    ("train.learning_rate", float("inf"), ["inf", "above 0"]),
    ("train.learning_rate", float("nan"), ["nan", "above 0"]),
    ("train.weight_decay", -0.1, ["-0.1", "from 0"]),
    ("train.schedule", "cosign", ["'cosign'", "constant, linear or cosine"]),
    ("train.warmup", 1.0, ["1.0", "below 1"]),
    ("train.clip", 0, ["0", "null"]),
    ("train.lr", 1e-3, ["no such field", "learning_rate"]),
    ("evaluate.num_beams", 0, ["0", "a whole number from 1"]),
    ("evaluate", [1], ["[1]", "num_beams"]),
    ("wandb.mode", "yes", ["'yes'", "off, online or offline"]),
    ("wandb.project", None, ["null", "text"]),
]


def test_there_are_bad_fields_enough() -> None:
    assert len(BAD_FIELDS) >= 70


@pytest.fixture
def config_file(tmp_path: Path, content: dict[str, Any]) -> Any:
    def write(fields: dict[str, Any]) -> str:
        for name, value in fields.items():
            *parents, last = name.split(".")
            place = content
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value
            if value is GONE:
                del place[last]
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(content))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("field", "value", "fragments"),
    BAD_FIELDS,
    ids=[f"{field}-{i}" for i, (field, _, _) in enumerate(BAD_FIELDS)],
)
def test_a_bad_field_is_one_line_with_its_value_and_what_is_allowed(
    run: Any, config_file: Any, field: str, value: Any, fragments: list[str]
) -> None:
    ended = run("train", config_file({field: value}))
    assert (ended.code, ended.out) == (2, "")
    (fault,) = ended.faults
    assert fault.startswith(field)
    for fragment in fragments:
        assert fragment in fault


def test_all_of_them_are_said_at_once(run: Any, config_file: Any) -> None:
    fields = {"seed": -1, "backbone.dropout": 1, "task.labels": ["a", "a"], "train.lr": 1}
    ended = run("train", config_file(fields), "train.steps", "train.clip=0", "a.b=1")
    assert ended.code == 2
    starts = [fault.split(";")[0].split(" (")[0] for fault in ended.faults]
    assert ended.faults[-1] == "task.labels ('a', 'a'): a label word stands there twice"
    assert starts == [
        "override 'train.steps': there is no =",
        "seed: -1",
        "backbone.dropout: 1",
        "train.clip: 0",
        "train.lr: no such field",
        "a: no such field",
        "task.labels",
    ]


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["train"], ["CONFIG is missing", "scalepet train --fields"]),
        (["train", "nowhere.yaml"], ["nowhere.yaml cannot be read", "a YAML file"]),
        (["train", "."], ["cannot be read"]),
        (["train", "{tmp}/bad.yaml"], ["bad.yaml is no YAML", "line 2"]),
        (["train", "{tmp}/empty.yaml"], ["empty.yaml holds nothing", "backbone, task"]),
        (["train", "{tmp}/run.yaml", "steps"], ["'steps'", "FIELD=VALUE"]),
        (["train", "{tmp}/run.yaml", "train.steps=["], ["'train.steps=['", "FIELD=VALUE"]),
        (["train", "{tmp}/run.yaml", "output.x=1"], ["'output.x=1'", "runs/first", "FIELD=VALUE"]),
        (["train", "{tmp}/run.yaml", "--fast"], ["--fast", "train --help"]),
        (["train", "{tmp}/run.yaml", "--train.steps=3"], ["--train.steps", "train --help"]),
        (["tarin"], ["'tarin'", "'train'", "--help"]),
        (["--verbose"], ["--verbose", "scalepet --help"]),
        (["evaluate"], ["ADAPTER", "evaluate --help"]),
        (["evaluate", "{tmp}/nowhere"], ["nowhere holds no saved state", "scalepet.json"]),
        (["evaluate", "{tmp}", "train.steps"], ["'train.steps'", "FIELD=VALUE"]),
        (["predict"], ["ADAPTER", "predict --help"]),
        (["predict", "{tmp}"], ["--text and --input: neither", "one of the two"]),
        (["predict", "{tmp}", "--text", "a", "--input", "b.csv"], ["both", "one of the two"]),
        (["predict", "{tmp}/nowhere", "--text", "a"], ["nowhere holds no saved state"]),
        (["predict", "{tmp}", "--text"], ["--text", "an argument", "--help"]),
        (["predict", "{tmp}", "oops", "--text", "a"], ["'oops'", "FIELD=VALUE"]),
        (
            ["predict", "{tmp}", "--input", "{tmp}/no.csv"],
            ["no.csv does not exist", "csv, jsonl or parquet"],
        ),
        (
            ["predict", "{tmp}", "--text", "a", "--output", "{tmp}/no/answers.jsonl"],
            ["answers.jsonl", "there is no folder"],
        ),
        (["report"], ["RUN", "report --help"]),
        (["report", "{tmp}/nowhere"], ["nowhere: no such run folder"]),
        (["report", "{tmp}", "--metric"], ["--metric", "an argument", "--help"]),
        (["launch"], ["--check", "launchers/", "deepspeed --module scalepet train"]),
        (["launch", "--check", "--hostfile", "{tmp}/no"], ["--hostfile", "no does not exist"]),
        (["launch", "--check", "--timeout", "0"], ["--timeout", "launch --help"]),
        (["assets", "nothing"], ["'nothing'", "minilm"]),
        (["assets", "--from", "x"], ["--from", "assets --help"]),
    ],
)
def test_a_bad_command_is_one_line_and_exit_code_2(
    run: Any, config_file: Any, tmp_path: Path, arguments: list[str], fragments: list[str]
) -> None:
    config_file({})
    (tmp_path / "bad.yaml").write_text("a: 1\n b: 2\n")
    (tmp_path / "empty.yaml").write_text("")
    ended = run(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert (ended.code, ended.out) == (2, "")
    (fault,) = ended.faults
    for fragment in fragments:
        assert fragment in fault


def test_every_folder_that_is_no_run_is_named(run: Any, tmp_path: Path) -> None:
    (tmp_path / "unfinished").mkdir()
    ended = run("report", str(tmp_path / "a"), str(tmp_path / "unfinished"), str(tmp_path / "b"))
    assert ended.code == 2
    text = "\n".join(ended.faults)
    for fragment in ("a: no such run folder", "unfinished/run.json", "b: no such run folder"):
        assert fragment in text


@pytest.mark.parametrize(
    "arguments",
    [["train", "nowhere.yaml"], ["train"], ["tarin"], ["train", "--fast"], ["report", "nowhere"]],
)
def test_a_rank_that_no_launcher_has_placed_is_heard(
    run: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    first = run(*arguments)
    assert (first.code, len(first.faults)) == (2, 1)
    monkeypatch.setenv("RANK", "1")
    second = run(*arguments)
    assert (second.code, second.out, second.err) == (2, "", first.err)
