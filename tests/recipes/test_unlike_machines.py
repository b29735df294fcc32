"""Two machines whose copies of the backbone differ: no shard is filled, and nobody waits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
from forks import run_python
from running import environments_of

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(120)]


def other_weights(path: Path) -> None:
    tensors = safetensors.torch.load_file(path)
    tensors["encoder.layer.0.output.dense.weight"] += 1
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (other_weights, "backbone.path: '~/bert' is not the same on all machines: weights"),
        (Path.unlink, "rank 1: backbone.path: '~/bert' has no weights"),
    ],
    ids=["other weights", "missing"],
)
def test_the_ranks_refuse_together(
    spoil: Callable[[Path], None],
    expected: str,
    backbones_with_tokenizers: Path,
    write_run: Callable[..., Path],
    tmp_path: Path,
) -> None:
    environments = environments_of(2)
    for rank, environment in enumerate(environments):
        home = tmp_path / f"home-{rank}"
        shutil.copytree(backbones_with_tokenizers / "bert", home / "bert")
        environment["HOME"] = str(home)
    spoil(tmp_path / "home-1" / "bert" / "model.safetensors")
    config = write_run(tmp_path / "run", deepspeed="zero3")
    ended = run_python(
        ["-m", "scalepet", "train", str(config), "backbone.path=~/bert"],
        environments,
        timeout_seconds=90,
    )
    assert [done.code for done in ended] == [2, 2], ended
    assert expected in ended[0].err and "Traceback" not in ended[0].err
