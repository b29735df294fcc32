"""A model that every rank has whole goes from mapped files to its device: what a rank holds in
memory of its own on the way is a few tensors, whatever the files are, so that the ranks of a
machine need one model between them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import emulated_cuda
import pytest
import safetensors.torch
import torch
import transformers
from emulated_cuda.marks import needed

WORKER = Path(__file__)
SHAPE = {"d_model": 256, "d_kv": 32, "d_ff": 1024, "num_layers": 12, "num_heads": 8}
FILES = ("safetensors", "pickle", "pickle of torch 1.5")
CASES = [(name, precision) for name in FILES for precision in ("fp32", "bf16", "fp16")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One T5 of 104 MB, in files of each kind."""
    from scalepet.backbones import t5_config
    from scalepet.backbones.families import own_head_t5

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoints")
    own_head_t5()(t5_config(**SHAPE, vocab_size=500)).save_pretrained(folder / FILES[0])
    tensors = safetensors.torch.load_file(folder / FILES[0] / "model.safetensors")
    for name in FILES[1:]:
        (folder / name).mkdir()
        for file in ("config.json", "generation_config.json"):
            shutil.copy(folder / FILES[0] / file, folder / name)
        torch.save(
            tensors,
            folder / name / "pytorch_model.bin",
            _use_new_zipfile_serialization=name == "pickle",
        )
    return folder


@pytest.fixture(scope="module")
def found(folder: Path, run_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    home = tmp_path_factory.mktemp("home")
    outputs = run_ranks(
        WORKER,
        {"folder": str(folder), "home": str(home)},
        num_ranks=2,
        timeout_seconds=250,
        environment=emulated_cuda.environment(),
    )
    assert len(list(home.glob("scalepet/*"))) == 1, "what can be mapped is not converted"
    return [json.loads(output.splitlines()[-1]) for output in outputs]


@needed
@pytest.mark.distributed
@pytest.mark.parametrize("index", range(len(CASES)), ids=[f"{name} {p}" for name, p in CASES])
def test_a_rank_holds_a_few_tensors_of_its_own_on_the_way(index, folder, found):
    expected = load(make_plan(folder, *CASES[index])).model
    for of_rank in found:
        rank = of_rank[index]
        assert rank["devices"] == ["cuda"]
        assert rank["digest"] == digest(expected)
        assert rank["generation"] == expected.generation_config.to_dict()
        # Four threads of transformers, each with one tensor of 1 MB: the rest is Python's.
        assert rank["own_bytes"] < rank["file_bytes"] / 4, f"{rank['own_bytes']:,}"


def make_plan(folder: Path, name: str, precision: str) -> Any:
    """As much of a plan as ``load_backbone`` asks for."""
    from scalepet import backbones

    backbone = backbones.Backbone(str(folder / name))
    config = backbones.read_model_config(backbone)
    return SimpleNamespace(
        backbone=backbone,
        model_config=config,
        backbone_fingerprint=backbones.fingerprint(backbone, config),
        config=SimpleNamespace(precision=precision, backbone=backbone),
    )


def load(plan: Any) -> Any:
    from scalepet import build

    return build.load_backbone(plan)


def digest(model: torch.nn.Module) -> str:
    """Of every bit."""
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        found.update(name.encode())
        found.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy())
    return found.hexdigest()


def own_host_bytes() -> int:
    """Memory of this process alone that no file is behind, without what stands for the device's."""
    from emulated_cuda.device import allocated_bytes

    status = Path("/proc/self/status").read_text()  # man 5 proc
    (kilobytes,) = re.findall(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    return 1024 * int(kilobytes) - allocated_bytes()


@contextlib.contextmanager
def noting(sizes: list[int]) -> Iterator[None]:
    """``own_host_bytes`` after each parameter that is put into the model."""
    module = transformers.core_model_loading
    plain = module.set_param_for_module

    def put(*arguments: Any, **options: Any) -> Any:
        result = plain(*arguments, **options)
        sizes.append(own_host_bytes())
        return result

    with mock.patch.object(module, "set_param_for_module", put):
        yield


def main() -> None:
    from scalepet import engine

    argument = json.loads(sys.argv[1])
    folder = Path(argument["folder"])
    # Behind the function of its name; by the environment, this would start without imports.
    sys.modules["scalepet.backbones.convert"].HF_HOME = argument["home"]
    engine.join_processes(timeout_seconds=60)
    load(make_plan(folder, *CASES[0]))  # what is imported and started once
    results = []
    for name, precision in CASES:
        plan, sizes = make_plan(folder, name, precision), []
        before = own_host_bytes()
        with noting(sizes):
            model = load(plan).model
        sizes.append(own_host_bytes())
        results.append(
            {
                "digest": digest(model),
                "devices": sorted({p.device.type for p in model.parameters()}),
                "generation": model.generation_config.to_dict(),
                "own_bytes": max(sizes) - before,
                "file_bytes": sum(file.stat().st_size for file in (folder / name).iterdir()),
            }
        )
        del model
    print(json.dumps(results), flush=True)
    engine.leave_processes()
    engine.end_process(0)


if __name__ == "__main__":
    main()
