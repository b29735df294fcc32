"""Files that are no configs, DeepSpeed files with something else in them, and overrides that are
none.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SMALL_CONFIG
from faults.bad_values import misspelt
from faults.refusals import check_refused
from running import run_here

import scalepet.recipes
from scalepet import engine
from scalepet.config import RunConfig

SEED = 7
CHANCE = random.Random(SEED)
GOOD = yaml.safe_dump(SMALL_CONFIG).encode()
COMMANDS = ("train", "continual", "plan")

LAUGHTER = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30)
)
"""10^30 values in 2 kB."""


def spoilt_texts() -> Iterator[tuple[str, bytes, str]]:
    """(why, content, what the refusal names)."""
    lines = GOOD.splitlines(keepends=True)
    tops = [line for line in lines if line[:1] not in b" -"]
    for place in CHANCE.sample(range(len(GOOD)), 8):
        yield "a NUL", GOOD[:place] + b"\0" + GOOD[place:], "character"
    for place in CHANCE.sample(range(len(GOOD)), 8):
        broken = CHANCE.choice([b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf5"])
        yield "no UTF-8", GOOD[:place] + broken + GOOD[place:], "no YAML: 'utf-8' codec"
    for top in tops:
        yield "a key stands twice", GOOD + top.split(b":")[0] + b": 1\n", "stands twice"
    for top in CHANCE.sample(tops, 3):
        name = top.split(b":")[0]
        yield "an open bracket", GOOD.replace(top, name + b": [1, 2\n"), "no YAML"
        yield "an open quote", GOOD.replace(top, name + b': "a\n'), "no YAML"
        yield "a tab", GOOD.replace(top, b"\t" + top), "no YAML"
    yield from (
        ("nothing", b"", "holds nothing"),
        ("a comment", b"# nothing\n", "holds nothing"),
        ("a list", b"- a\n- b\n", "holds ['a', 'b']"),
        ("a text", b"just text", "holds 'just text'"),
        ("two documents", GOOD + b"---\na: 1\n", "another document"),
        ("UTF-16", GOOD.decode().encode("utf-16"), "no YAML: 'utf-8' codec"),
        ("code", b"a: !!python/object/apply:os.system [echo]", "constructor for the tag"),
        ("a tag of nobody", b"a: !mine 3", "constructor for the tag"),
        ("no timestamp", b"a: !!timestamp x", "no YAML"),
        ("no number", b"a: !!int x", "no YAML"),
        ("an alias of nothing", b"a: *b", "undefined alias"),
        ("an alias in its anchor", b"a: &a [*a]", "circular"),
        ("a billion values", LAUGHTER.encode(), "allowed: 100,000"),
        ("a list as a key", b"{[1]: 2}", "unhashable key"),
        ("5000 digits", b"seed: " + b"9" * 5000, "Exceeds the limit"),
        ("400 digits", b"seed: " + b"9" * 400, "allowed: below 2^63"),
        ("nested lists", b"[" * 600, "nested too deep"),
        ("nested fields", b"{a: " * 600, "nested too deep"),
        ("a NUL in words", b'output: "a\\0b"', "no file or path can hold"),
        ("half a character", b'output: "\\ud800"', "no file or path can hold"),
    )


BAD_OVERRIDES = (
    ("no =", "train.steps", "there is no ="),
    ("no name", "=3", "'' is no field"),
    ("no names", ".=3", "'.' is no field"),
    ("an empty name", "train..steps=3", "'train..steps' is no field"),
    ("no last name", "train.=3", "'train.' is no field"),
    ("below a text", "output.x=1", "output is 'runs/first' and has no field x"),
    ("no such field", "trian.steps=1", "trian: no such field; did you mean train?"),
    ("no such inner field", "train.stesp=1", "train.stesp: no such field; did you mean steps?"),
    ("an open bracket", "train.steps=[1", "override 'train.steps=[1'"),
    ("an open brace", "train.steps={", "override 'train.steps={'"),
    ("a NUL", "train.steps=\0", "override 'train.steps=\\x00'"),
    ("a NUL in words", 'output="\\0"', "no file or path can hold"),
    ("no UTF-8", "train.steps=\udcff", "override"),
    ("a line end in a name", "a\nb=1", "'a\\nb': no such field"),
    ("an endless name", "x" * 10_000 + "=1", "xxxx...: no such field"),
    ("nested lists", "train.steps=" + "[" * 600, "nested too deep"),
    ("nothing", "train=", "train: null"),
    ("no method", "method=lora", "method: 'lora'"),
    ("other options", "method={name: lora, budget: 3}", "method.budget: no such option"),
    ("a budget of nobody", "method.budget=same-as:(", "not a method with its options"),
    ("a budget in a circle", "method.budget='same-as:apet(budget=same-as:lora)'", "of its own"),
    ("a list of nothing", "method.also=[null]", "method.also[0]: null"),
    ("twice", "method.also=[{name: apet, budget: 1}]", "apet stands twice"),
    ("two ends", "train={steps: 1, epochs: 1}", "train.epochs: 1 with train.steps: 1"),
    ("no end", "train={steps: null, epochs: null}", "train.epochs: null with train.steps: null"),
    ("classes of what has none", "task.labels=[a]", "at least two classes"),
)

BAD_IN_STREAMS = (
    ("no stream", "stream={}", "none of them"),
    ("two streams", "stream.name=mbpa-1", "name and task"),
    ("no such stream", "stream={name: mbpa-9}", "stream.name is 'mbpa-9'"),
    ("as many tasks as never", "stream.num_tasks=0", "stream.num_tasks is 0"),
    ("no number of tasks", "stream.num_tasks=null", "stream.num_tasks is missing"),
    ("a class twice", "stream.class_order=[a, a]", "twice"),
    ("both limits", "stream={task: null, num_tasks: null}", "none of them"),
    ("frozen for good", "lae.freeze_epochs=5", "lae.freeze_epochs: 5"),
    ("both ways", "lae.offline=[{alpha: 0.5, travel: 0.5}]", "lae.offline[0]"),
    ("no way", "lae.offline=[{}]", "lae.offline[0]"),
    ("too slow", "lae.offline=[{alpha: 0.5}, {alpha: 1.0}]", "lae.offline[1].alpha: 1.0"),
    ("unknown", "lae.offline=[{alpha: 0.5, speed: 1}]", "lae.offline[0].speed: no such field"),
    ("joint with copies", "lae.joint=true", "lae.joint: true"),
    ("epochs in parts", "train.epochs=1.5", "train.epochs: 1.5"),
    ("a field of train", "train.steps=10", "train.steps: no such field"),
    ("texts", "stream.task.kind=sequence_to_sequence", "stream.task.kind"),
    ("misspelt deep below", "stream.task.source.fiels={}", "stream.task.source.fiels: no such"),
    ("wrong deep below", "stream.task.source.path=3", "stream.task.source.path: 3"),
    ("wrong in a list", "stream={tasks: [{kind: 3}]}", "stream.tasks[0].kind: 3"),
)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def read_ds_file(config: RunConfig, **_: Any) -> None:
        engine.read_ds_file(config.deepspeed)

    monkeypatch.setattr(scalepet.recipes, "finetune", read_ds_file)
    monkeypatch.setattr(scalepet.recipes, "learn_stream", lambda *_, **__: ())


TEXTS = [*spoilt_texts()]


@pytest.mark.parametrize(
    ("why", "content", "names"), TEXTS, ids=[f"{why}-{i}" for i, (why, *_) in enumerate(TEXTS)]
)
def test_a_file_that_is_no_config_is_refused(why: str, content: bytes, names: str) -> None:
    Path("run.yaml").write_bytes(content)
    command = COMMANDS[len(content) % len(COMMANDS)]
    check_refused(run_here(command, "run.yaml"), why=why, names=names)


@pytest.mark.parametrize(("why", "override", "names"), BAD_OVERRIDES)
def test_a_bad_override_is_refused(why: str, override: str, names: str) -> None:
    Path("run.yaml").write_bytes(GOOD)
    check_refused(run_here("train", "run.yaml", override), why=why, names=names)


@pytest.mark.parametrize(("why", "override", "names"), BAD_IN_STREAMS)
def test_a_bad_stream_is_refused(why: str, override: str, names: str) -> None:
    content = {name: value for name, value in SMALL_CONFIG.items() if name != "task"}
    content["stream"] = {"num_tasks": 2, "task": SMALL_CONFIG["task"]}
    Path("run.yaml").write_text(yaml.safe_dump(content))
    assert run_here("continual", "run.yaml").code == 0
    check_refused(run_here("continual", "run.yaml", override), why=why, names=names)


ZERO: dict[str, Any] = {"stage": 3, "offload_param": {"device": "cpu"}, "overlap_comm": True}
ZERO_KEYS = ("reduce_bucket_size", "stage3_max_live_parameters", "overlap_comm", "sub_group_size")


def spoilt_ds_files() -> Iterator[tuple[str, Any, str]]:
    """(why, content of a DeepSpeed file as text or as values, what the refusal names)."""
    for name in ("zero_optimization", "aio", "comms_logger", "communication_data_type"):
        wrong = misspelt(name, CHANCE)
        yield "misspelt", {wrong: {}}, wrong
        yield "quietly a default", {name: "auto"}, name
        yield "no section", {name: 3}, name
    for name in ("train_batch_size", "gradient_clipping", "bf16", "fp16", "optimizer", "wandb"):
        yield "of the run", {name: 1}, f"'{name}' has no place here"
    for name in ZERO_KEYS:
        wrong = misspelt(name, CHANCE)
        yield "misspelt", {"zero_optimization": {**ZERO, wrong: 1}}, wrong
        yield "no number", {"zero_optimization": {**ZERO, name: "many"}}, name
        yield "a list", {"zero_optimization": {**ZERO, name: [1]}}, name
        yield "quietly a default", {"zero_optimization": {**ZERO, name: "auto"}}, name
    for zero, names in (
        ({"stage": 4}, "stage"),
        ({"stage": -1}, "stage"),
        ({"stage": None}, "stage"),
        ({"stage": 2, "offload_param": {"device": "cpu"}}, "offload_param"),
        ({"stage": 3, "offload_param": {"device": "gpu"}}, "offload_param"),
        ({"stage": 3, "offload_param": 3}, "offload_param"),
        ({"stage": 3, "offload_param": {"device": "nvme"}}, "nvme_path"),
        ({"stage": 3, "offload_optimizer": {"devise": "cpu"}}, "devise"),
        ({"stage": 3, "zero_quantized_nontrainable_weights": True}, "zeroes weights"),
        ({"stage": 3, "reduce_bucket_size": -1}, "reduce_bucket_size"),
        ([], "zero_optimization"),
        (None, "zero_optimization"),
    ):
        yield "not for us", {"zero_optimization": zero}, names
    yield "nothing", "", "no JSON"
    yield "cut", '{"zero_optimization": {"stage": 3', "no JSON"
    yield "a list", "[1]", "holds a list"
    yield "nested", "[" * 100_000, "no JSON"
    yield "a number", "3", "holds a int"


DS_FILES = [*spoilt_ds_files()]


@pytest.mark.parametrize(
    ("why", "content", "names"),
    DS_FILES,
    ids=[f"{why}-{names}-{i}" for i, (why, _, names) in enumerate(DS_FILES)],
)
def test_a_bad_deepspeed_file_is_refused(why: str, content: Any, names: str) -> None:
    Path("run.yaml").write_bytes(GOOD)
    text = content if isinstance(content, str) else json.dumps(content)
    Path("ds.json").write_text(text)
    ended = run_here("train", "run.yaml", "deepspeed=ds.json")
    check_refused(ended, why=why, names=names)
    assert "ds.json" in ended.err


@pytest.mark.parametrize("content", [{}, {"zero_optimization": ZERO}])
def test_a_good_deepspeed_file_is_taken(content: Any) -> None:
    Path("run.yaml").write_bytes(GOOD)
    Path("ds.json").write_text(json.dumps(content))
    assert run_here("train", "run.yaml", "deepspeed=ds.json").code == 0


@pytest.mark.parametrize("name", ["nowhere.json", ".", "ds.json/x", "zero", "x" * 5000])
def test_a_deepspeed_file_that_is_none_is_refused(name: str) -> None:
    Path("run.yaml").write_bytes(GOOD)
    Path("ds.json").write_bytes(b"\xff\xfe")
    check_refused(run_here("train", "run.yaml", f"deepspeed={name}"), why="", names="deepspeed")
