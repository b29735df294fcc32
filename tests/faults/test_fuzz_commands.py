"""Bad command lines, made from what the commands say of their own arguments, and bad paths."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import typer.main
import yaml
from conftest import SMALL_CONFIG
from faults.bad_values import misspelt
from faults.refusals import check_refused
from running import SCALEPET, run_here

import scalepet.recipes
from scalepet.cli.app import app

CHANCE = random.Random(11)
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]

GOOD: dict[str, list[str]] = {
    "train": ["run.yaml"],
    "continual": ["run.yaml"],
    "evaluate": ["adapter"],
    "predict": ["adapter", "--text", "a"],
    "export": ["adapter", "into"],
    "import": ["run.yaml", "peft"],
    "plan": ["run.yaml"],
    "launch": ["--check"],
    "report": ["runs/first"],
    "bench": [],
    "assets": [],
    "sweep": ["study.yaml"],
}
"""Arguments without a fault of their own."""


def is_many(parameter: Any) -> bool:
    return bool(parameter.nargs == -1)


def spoilt_lines() -> Iterator[tuple[str, list[str], str]]:
    """(why, command line, what the refusal names)."""
    for command, description in COMMANDS.items():
        good = [command, *GOOD[command]]
        arguments = [p for p in description.params if not p.opts[0].startswith("-")]
        options = [p for p in description.params if p.opts[0].startswith("-")]
        yield "no such option", [*good, "--xyzzy"], "--xyzzy"
        yield "no such letter", [*good, "-Z"], "-Z"
        if any(argument.required for argument in arguments):
            yield "an argument is missing", [command], f"{command} --help"
        if not any(map(is_many, arguments)):
            yield "one too many", [*good, *["more"] * (1 + len(arguments))], "more"
        for option in options:
            yield from spoilt_option(good, option)
    for command in ("train", "plan", "evaluate", "sweep"):
        wrong = misspelt(command, CHANCE)
        yield "no such command", [wrong, "run.yaml"], wrong
    yield "no such option", ["--fast", "train", "run.yaml"], "--fast"
    yield "no rank", ["--local_rank", "first", "train", "run.yaml"], "local_rank"


def spoilt_option(good: list[str], option: Any) -> Iterator[tuple[str, list[str], str]]:
    name = option.opts[0]
    if option.is_flag:
        yield "a flag with a value", [*good, f"{name}=perhaps"], name
        return
    yield "its value is missing", [*good, name], name
    kind = option.type_descriptor.annotation
    if kind is int:
        for value in ("many", "1.5", "", "1e3", "0x10"):
            yield "no whole number", [*good, name, value], name
    if kind is float:
        for value in ("many", "", "1,5"):
            yield "no number", [*good, name, value], name
    if kind in (int, float) and option.min is not None:
        yield "too small", [*good, name, str(option.min - 1)], name
    if get_origin(kind) is Literal:
        yield "misspelt", [*good, name, misspelt(get_args(kind)[0], CHANCE)], name


MORE = (
    ("no such shape", ["bench", "--shape", "huge"], "--shape: 'huge'"),
    ("no such precision", ["bench", "--precision", "fp8"], "--precision: 'fp8'"),
    ("no percent", ["bench", "--density", "1"], "--density: '1'"),
    ("nothing to train", ["bench", "--density", "0%"], "--density: '0%'"),
    ("more than all", ["bench", "--density", "101%"], "--density: '101%'"),
    ("no such GPU", ["plan", "run.yaml", "--gpu", "h1000"], "--gpu: 'h1000'"),
    ("no such link", ["plan", "run.yaml", "--link", "rope"], "--link: 'rope'"),
    ("no GPU", ["plan", "run.yaml", "--gpus", "0"], "--gpus: 0"),
    ("fewer than none", ["plan", "run.yaml", "--gpus", "-8"], "--gpus: -8"),
    ("no node", ["plan", "run.yaml", "--nodes", "0"], "--nodes: 0"),
    ("more nodes than GPUs", ["plan", "run.yaml", "--gpus", "2", "--nodes", "4"], "--nodes: 4"),
    ("uneven", ["plan", "run.yaml", "--gpus", "9", "--nodes", "2"], "--gpus: 9"),
    ("no port", ["plan", "run.yaml", "--ports", "0"], "--ports: 0"),
    ("no work", ["plan", "run.yaml", "--mfu", "0"], "--mfu: 0"),
    ("more than the peak", ["plan", "run.yaml", "--mfu", "1.5"], "--mfu: 1.5"),
    ("no part", ["plan", "run.yaml", "--mfu", "nan"], "--mfu: nan"),
    ("no memory", ["plan", "run.yaml", "--host-gib", "0"], "--host-gib: 0"),
    ("no amount", ["plan", "run.yaml", "--host-gib", "nan"], "--host-gib: nan"),
    ("no end of memory", ["plan", "run.yaml", "--host-gib", "inf"], "--host-gib: inf"),
    ("a GPU without a row", ["plan", "run.yaml", "--gpus", "64"], "train.batch_size: 32"),
    ("no time", ["launch", "--check", "--timeout", "nan"], "--timeout"),
    ("no end of time", ["launch", "--check", "--timeout", "inf"], "--timeout"),
    ("looks only", ["launch"], "--check"),
    ("neither", ["predict", "adapter"], "--text and --input: neither"),
    ("both", ["predict", "adapter", "--text", "a", "--input", "run.yaml"], "both of them"),
    ("one decides alone", ["evaluate", "adapter", "--vote", "max"], "adapter"),
    ("no such asset", ["assets", "gold"], "'gold'"),
    ("no order of them", ["continual", "run.yaml", "--orders", "0"], "--orders"),
)

LINES = [*spoilt_lines(), *MORE]


@pytest.fixture(autouse=True)
def in_a_folder_with_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """run.yaml, which is good; nothing is trained."""
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(yaml.safe_dump(SMALL_CONFIG))
    Path("link").symlink_to("link")
    Path("folder").mkdir()
    monkeypatch.setattr(scalepet.recipes, "finetune", lambda *_, **__: None)


@pytest.mark.parametrize(
    ("why", "line", "names"), LINES, ids=[f"{' '.join(line)}-{why}" for why, line, _ in LINES]
)
def test_a_bad_command_line_is_refused(why: str, line: list[str], names: str) -> None:
    check_refused(run_here(*line), why=why, names=names)


def test_every_command_is_there() -> None:
    assert set(COMMANDS) <= set(GOOD)
    assert len(LINES) >= 100


PATHS = {
    "missing": "nowhere",
    "a folder": "folder",
    "through a file": "run.yaml/inside",
    "a circle of links": "link",
    "too long": "x" * 5000,
    "a NUL": "a\0b",
    "nothing": "",
    "no UTF-8": "a\udcff",
}
WITH_PATHS: dict[str, list[str]] = {
    "train": ["train", "{}"],
    "continual": ["continual", "{}"],
    "plan": ["plan", "{}"],
    "import": ["import", "{}", "folder"],
    "import from": ["import", "run.yaml", "{}"],
    "evaluate": ["evaluate", "{}"],
    "predict": ["predict", "{}", "--text", "a"],
    "predict input": ["predict", "folder", "--input", "{}"],
    "predict output": ["predict", "folder", "--text", "a", "--output", "{}/answers.jsonl"],
    "export": ["export", "{}", "into"],
    "report": ["report", "{}"],
    "launch": ["launch", "--check", "--hostfile", "{}"],
    "deepspeed": ["plan", "run.yaml", "deepspeed={}"],
    "backbone": ["plan", "run.yaml", "backbone.path={}"],
    "sweep": ["sweep", "{}"],
}


@pytest.mark.parametrize("place", WITH_PATHS)
@pytest.mark.parametrize("kind", PATHS)
def test_a_bad_path_is_refused(place: str, kind: str) -> None:
    if WITH_PATHS[place][0] not in COMMANDS:
        pytest.skip(f"there is no {place}")
    ended = run_here(*(word.format(PATHS[kind]) for word in WITH_PATHS[place]))
    check_refused(ended, why=kind, names="")


HOSTFILES = (
    ("nothing", b"", "names no machine"),
    ("comments", b"# a\n\n", "names no machine"),
    ("no slots", b"node1\n", "'node1'"),
    ("zero slots", b"node1 slots=0\n", "'node1 slots=0'"),
    ("no number", b"node1 slots=many\n", "'node1 slots=many'"),
    ("twice", b"node1 slots=1\nnode1 slots=2\n", "node1 stands there already"),
    ("no UTF-8", b"node\xff slots=1\n", "hosts"),
    ("a NUL", b"node\0 slots=1\n", "hosts"),
    ("an option of ssh", b"-oProxyCommand=touch${IFS}here slots=1\n", "-oProxyCommand"),
)


@pytest.mark.parametrize(("why", "content", "names"), HOSTFILES)
def test_a_bad_hostfile_is_refused(why: str, content: bytes, names: str) -> None:
    Path("hosts").write_bytes(content)
    ended = run_here("launch", "--check", "--hostfile", "hosts", "--timeout", "2")
    check_refused(ended, why=why, names=names)
    assert not Path("here").exists()


def test_some_of_them_in_processes_of_their_own() -> None:
    """Nothing of the tests' own process helps: rank 0 of a launcher, and nobody's."""
    Path("bad.yaml").write_bytes(b"output: \xff")
    lines = [["train", "bad.yaml"], ["plan", "run.yaml", "--mfu", "nan"], ["sing"]]
    for line in lines:
        done = subprocess.run([*SCALEPET, *line], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (2, "")
        assert all(words.startswith("scalepet: ") for words in done.stderr.splitlines())
        assert done.stderr
    # No launcher has placed it: nobody else would say it.
    environment = {**os.environ, "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
    done = subprocess.run([*SCALEPET, "sing"], env=environment, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"scalepet: No such command 'sing'")


SPOILT_RECORDS: tuple[tuple[str, Any, str], ...] = (
    ("no JSON", "{", "adapter"),
    ("no fields", [], ""),
    ("a number", 3, ""),
    ("null", None, ""),
    ("no checksum", {"format": 1}, "checksum"),
)


@pytest.mark.parametrize(("why", "record", "names"), SPOILT_RECORDS)
@pytest.mark.parametrize("command", ["evaluate", "predict", "export"])
def test_a_folder_that_is_no_adapter_is_refused(
    command: str, why: str, record: Any, names: str
) -> None:
    Path("adapter").mkdir()
    text = record if isinstance(record, str) else json.dumps(record)
    Path("adapter/scalepet.json").write_text(text)
    Path("adapter/tensors.safetensors").write_bytes(b"\0" * 100)
    check_refused(run_here(command, *GOOD[command]), why=why, names=names)
