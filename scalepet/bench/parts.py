"""The parts of launchers/gpu.sh: each measures one thing on this machine and says it in plain
values, piece by piece, so that what is measured is not lost with what comes after it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rich.console import Console

import scalepet
from scalepet import backbones, build, engine
from scalepet.bench.contenders import FLOOR, Contender, contenders
from scalepet.bench.machine import about_machine
from scalepet.bench.measure import Rounds, measure
from scalepet.bench.profiled import profiled
from scalepet.bench.shapes import SHAPES, Work, make_work
from scalepet.bench.tiny_runs import tiny_runs, write_tokenizer
from scalepet.config import read_config
from scalepet.errors import ScalepetError
from scalepet.recipes import finetune

Record = dict[str, Any]

TOKENS = {"full": [(8, 128, 32), (8, 384, 128)], "tiny": [(2, 12, 4), (2, 24, 8)]}
"""Rows, tokens of an input and of a target: 1,280 and 4,096 tokens a step."""

OURS = (FLOOR, "LoRA on q, v", "APET 0.01%", "APET 0.1%")
OF_PEFT = (FLOOR, "LoRA on q, v", "APET on q, v", "PEFT LoRA", "PEFT SHiRA")
"""SHiRA draws its positions with a permutation of every matrix: minutes at the shape of XXL."""


class Size(NamedTuple):
    """How large the parts are: full, or tiny to see on any machine that each runs to its end."""

    name: str

    def shape(self, name: str) -> str:
        return name if self.name == "full" else "tiny"

    def work(self, shape: str) -> Work:
        rows, source_length, target_length = TOKENS[self.name][0]
        return make_work(
            self.shape(shape),
            rows=rows,
            source_length=source_length,
            target_length=target_length,
            dtype=build.DTYPES[self.precision],
            device=engine.pick_device(),
        )

    @property
    def precision(self) -> str:
        return "bf16" if self.name == "full" else "fp32"


def versions(_: Size) -> Iterator[Record]:
    """The machine."""
    yield about_machine()


def tests(_: Size) -> Iterator[Record]:
    """Those of this checkout that want a GPU, in the words of pytest.

    Raises:
        CalledProcessError: some failed.
    """
    folder = Path(scalepet.__file__).parents[1] / "tests"
    files = [str(path) for path in folder.rglob("test_*.py") if "mark.gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, *sorted(files)], stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    yield {"said": done.stdout.strip().splitlines()[-1], "exit_code": done.returncode}
    done.check_returncode()


def losses(_: Size) -> Iterator[Record]:
    """Tiny runs and a stream in one process, on the device that it sees."""
    backbones.quiet_transformers(show_progress=False)
    with engine.joined() as device, tempfile.TemporaryDirectory() as folder:
        for ran in tiny_runs(Path(folder)):
            yield {"device": str(device), **ran._asdict()}


def runs(size: Size) -> Iterator[Record]:
    """The same, each beside its twin on the CPU.

    Raises:
        ScalepetError: some did not come to their end, once all have run.
    """
    on_cpu = {} if engine.pick_device().type == "cpu" else _losses_on_cpu()
    failed = []
    for ran in losses(size):
        if ran["error"] is not None:
            failed.append(ran["name"])
        found, expected = ran["losses"], on_cpu.get(ran["name"])
        apart = [abs(a - b) / abs(b) for a, b in zip(found, expected or [], strict=False)]
        yield {
            **ran,
            "losses_on_cpu": expected,
            "largest_difference": max(apart) if apart else None,  # as a part of the CPU's
        }
    if failed:
        raise ScalepetError(f"{', '.join(failed)} did not come to an end; their lines say why")


def xxl(size: Size) -> Iterator[Record]:
    """T5-XXL: the frozen floor, LoRA and APET, at two numbers of tokens."""
    work = size.work("xxl")
    entrants = _named(work, OURS, with_peft=False)
    for rows in TOKENS[size.name]:
        yield _measured(work.with_rows(*rows), entrants, Rounds(2, 3))


def ul2(size: Size) -> Iterator[Record]:
    """UL2: one step."""
    work = size.work("ul2")
    yield _measured(work, _named(work, (FLOOR, "APET 0.01%"), with_peft=False), Rounds(1, 1))


def large(size: Size) -> Iterator[Record]:
    """T5-large under the profiler, then beside PEFT."""
    work = size.work("large")
    for entrant in _named(work, OURS, with_peft=False):
        yield {"tokens": work.num_tokens, **profiled(work, entrant, num_steps=3)}
    if find_spec("peft"):
        yield _measured(work, _named(work, OF_PEFT, with_peft=True), Rounds(2, 3))


def zero3(size: Size) -> Iterator[Record]:
    """T5-XXL on one rank of ZeRO-3, as ``scalepet train`` runs it."""
    backbones.quiet_transformers(show_progress=False)
    rows, source_length, target_length = TOKENS[size.name][0]
    with engine.joined() as device, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        content = _zero3_run(folder, size, (rows, source_length, target_length))
        (folder / "run.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        config = read_config(folder / "run.yaml")
        finetune(config, resume=False, console=Console(quiet=True))
        lines = (config.output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [step for step in map(json.loads, lines) if step["kind"] == "train"]
        result = json.loads((config.output / "result.json").read_text(encoding="utf-8"))
    yield {
        "rows": rows,
        "steps": [{key: step.get(key) for key in ("loss", "step_seconds")} for step in steps],
        "peak_bytes": result["peak_memory_bytes"],
        "peak_of": "host" if device.type == "cpu" else "device",
        "seconds": result["seconds"],
    }


PARTS: Mapping[str, Callable[[Size], Iterator[Record]]] = {
    "versions": versions,
    "tests": tests,
    "losses": losses,
    "runs": runs,
    "xxl": xxl,
    "ul2": ul2,
    "zero3": zero3,
    "large": large,
}


def _named(work: Work, names: Sequence[str], *, with_peft: bool) -> list[Contender]:
    found = contenders(work, densities=["0.01%", "0.1%"], with_peft=with_peft)
    return [contender for contender in found if contender.name in names]


def _measured(work: Work, entrants: Sequence[Contender], rounds: Rounds) -> Record:
    results = measure(work, entrants, rounds)
    return {"tokens": work.num_tokens, "results": [asdict(result) for result in results]}


def _losses_on_cpu() -> dict[str, list[float]]:
    """In a process of its own: a device that was used once stays in use."""
    hidden = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "losses.jsonl"
        command = [sys.executable, "-m", "scalepet.bench", "losses", "--output", str(file)]
        subprocess.run(command, env={**os.environ, **hidden}, check=True)
        records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    devices = {record["device"] for record in records}
    assert devices == {"cpu"}, f"the reference ran on {devices}"
    return {record["name"]: record["losses"] for record in records}


def _zero3_run(folder: Path, size: Size, tokens: tuple[int, int, int]) -> Record:
    rows, source_length, target_length = tokens
    shape = backbones.t5_config(vocab_size=32128, **SHAPES[size.shape("xxl")]).to_dict()
    (folder / "shape.json").write_text(json.dumps(shape), encoding="utf-8")
    write_tokenizer(folder / "tokenizer")
    row = json.dumps({"text": "the sky is blue " * source_length, "label": "blue"})
    for split, num_rows in (("train", 4 * rows), ("validation", 1)):
        (folder / f"{split}.jsonl").write_text(f"{row}\n" * num_rows, encoding="utf-8")
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation")}
    return {
        "output": str(folder / "run"),
        "precision": size.precision,
        "deepspeed": "zero3",
        "backbone": {
            "path": str(folder / "shape.json"),
            "random_start": True,
            "tokenizer": str(folder / "tokenizer"),
            "dropout": 0.0,
        },
        "task": {
            "kind": "sequence_to_sequence",
            "source": {"path": "json", "files": files},
            "template": "{text}",
            "target": "label",
            "metrics": ["exact_match"],
            "max_source_length": source_length,
            "max_target_length": target_length,
        },
        "method": {"name": "apet", "budget": "0.01%"},
        "train": {
            "steps": 4,
            "batch_size": rows,
            "micro_batch_size": rows,
            "evaluate_every": 4,
            "log_every": 1,
        },
    }
