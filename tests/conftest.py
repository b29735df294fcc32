"""What tests of several rooms share: tiny backbones on disk, and real processes."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from forks import run_python
from running import environments_of, free_port

SMALL_CONFIG: dict[str, Any] = {
    "output": "runs/first",
    "backbone": {"path": "google/flan-t5-small"},
    "task": {
        "kind": "classification",
        "source": {"path": "csv", "files": {"train": "train.csv", "validation": "held_out.csv"}},
        "template": "Input: {text} Output: ",
        "target": "label",
    },
    "method": {"name": "apet", "budget": 4096},
}

SECONDS_OF_A_LONG_RUN = 30.0

T5_SHAPE = {
    "vocab_size": 60,
    "d_model": 24,
    "d_kv": 6,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "dropout_rate": 0.1,
}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Where the time of a long run went, and what ran in it on a device that is not there."""
    reports = [one for many in terminalreporter.stats.values() for one in many]
    reports = [one for one in reports if hasattr(one, "duration")]
    seconds: Counter[str] = Counter()
    for report in reports:
        file = Path(report.nodeid.split("::")[0])
        seconds[str(file.parent)] += report.duration
    if sum(seconds.values()) > SECONDS_OF_A_LONG_RUN:
        terminalreporter.section("seconds of each folder, over all workers")
        for folder, spent in seconds.most_common():
            terminalreporter.line(f"{spent:7.0f}  {folder}")
    for report in reports:
        for name, value in getattr(report, "user_properties", ()) if report.when == "call" else ():
            terminalreporter.line(f"{name}: {value}")


@pytest.fixture(autouse=True)
def variables_of_a_group_are_gone() -> Iterator[None]:
    """What this process sets when it becomes a group of one is not for the processes of later
    tests.
    """
    before = set(os.environ)
    yield
    for name in set(os.environ) - before - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]


@pytest.fixture(scope="session")
def tiny_backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny random models in one folder: t5 (tied, ReLU), t5-gated (its own head), bert, vit."""
    folder = tmp_path_factory.mktemp("backbones")
    write_backbones(folder, num_layers=T5_SHAPE["num_layers"])
    return folder


def write_backbones(folder: Path, *, num_layers: int) -> None:
    import torch
    import transformers

    from scalepet.backbones.families import own_head_t5

    torch.manual_seed(0)
    shape = {**T5_SHAPE, "num_layers": num_layers}
    tied = transformers.T5Config(**shape, tie_word_embeddings=True)
    gated = transformers.T5Config(
        **shape, feed_forward_proj="gated-gelu", tie_word_embeddings=False
    )
    bert = transformers.BertConfig(
        vocab_size=60,
        hidden_size=24,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=32,
        initializer_range=0.1,  # at 0.02 all gradients drown in the rounding of bf16
    )
    transformers.T5ForConditionalGeneration(tied).save_pretrained(folder / "t5")
    own_head_t5()(gated).save_pretrained(folder / "t5-gated")
    vit = transformers.ViTConfig(
        hidden_size=24,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        intermediate_size=40,
        image_size=16,
        patch_size=8,
        initializer_range=0.1,
    )
    transformers.BertModel(bert).save_pretrained(folder / "bert")
    transformers.ViTModel(vit, add_pooling_layer=False).save_pretrained(folder / "vit")


@pytest.fixture
def content() -> dict[str, Any]:
    """A small config without a fault, to be changed at will."""
    return copy.deepcopy(SMALL_CONFIG)


@pytest.fixture(scope="session")
def launch_two() -> Callable[..., list[str]]:
    """``launch_two("script.py", ...)``: two ranks under DeepSpeed's launcher, on a free port."""

    def launch(*arguments: str) -> list[str]:
        options = ["--num_accelerators=2", f"--master_port={free_port()}"]
        return [sys.executable, "-m", "deepspeed.launcher.runner", *options, *arguments]

    return launch


RunRanks = Callable[..., list[str]]


def start_ranks(
    command: list[str], num_ranks: int, *, environment: dict[str, str] | None = None
) -> list[subprocess.Popen[str]]:
    """``command`` once a rank, as a launcher starts it; stdout and stderr of each in one pipe."""
    return [
        subprocess.Popen(
            command,
            env={**of_rank, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for of_rank in environments_of(num_ranks)
    ]


def finish_ranks(
    processes: list[subprocess.Popen[str]], *, timeout_seconds: float
) -> list[tuple[int, str]]:
    """(exit code, output) of every rank; all are killed when one does not end in time."""
    try:
        # All at once: a rank whose pipe is full waits, and the others wait for it.
        with ThreadPoolExecutor(len(processes)) as threads:
            waiting = threads.map(lambda p: p.communicate(timeout=timeout_seconds)[0], processes)
            outputs = list(waiting)
    finally:
        for process in processes:
            process.kill()
    return [
        (process.returncode, output) for process, output in zip(processes, outputs, strict=True)
    ]


@pytest.fixture(scope="session")
def run_ranks() -> RunRanks:
    """Run a script with a JSON argument on several ranks; what they wrote to stdout."""

    def run(
        script: Path,
        argument: Any,
        *,
        num_ranks: int,
        timeout_seconds: float,
        environment: dict[str, str] | None = None,
    ) -> list[str]:
        ended = run_python(
            [str(script), json.dumps(argument)],
            environments_of(num_ranks, environment),
            timeout_seconds=timeout_seconds,
        )
        for rank, done in enumerate(ended):
            said = f"{done.out}\n{done.err[-4000:]}"
            assert done.code == 0, f"rank {rank} of {num_ranks} ended with {done.code}:\n{said}"
        return [done.out for done in ended]

    return run
