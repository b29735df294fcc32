"""Sharded models whose ranks read their own parts: the same numbers as transformers reads, and half
the bytes on each of two ranks.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

WORKER = Path(__file__)
OFFLOAD = {"offload_param": {"device": "cpu"}}
TABLES = {
    "t5-decoder-table": {"decoder.embed_tokens.weight": 3.0},
    "t5-encoder-table": {"shared.weight": 1.0, "encoder.embed_tokens.weight": 3.0},
    "t5-head-table": {"lm_head.weight": 3.0},
}
"""Of T5s that have tables under other names, or more of them: how often the embedding is there."""
NAMES = ("t5", "t5-gated", "bert", "vit", "vit-other-classes", "t5-gated-bin", *TABLES)
CASES = [
    *((name, {}, "bf16") for name in NAMES),
    ("t5-gated", {"zero_hpz_partition_size": 2}, "fp32"),
    ("t5-gated", OFFLOAD, "fp32"),
    ("bert", {"stage3_param_persistence_threshold": 0}, "fp32"),
]


@pytest.fixture(scope="module")
def folder(tiny_backbones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny backbones; a ViT that was tuned for other classes; a T5 in a pickle file; T5s with
    other tables.
    """
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in ("t5", "t5-gated", "bert", "vit"):
        shutil.copytree(tiny_backbones / name, folder / name)
    config = transformers.AutoConfig.from_pretrained(folder / "vit", num_labels=7)
    torch.manual_seed(1)
    transformers.ViTForImageClassification(config).save_pretrained(folder / "vit-other-classes")
    shutil.copytree(folder / "t5-gated", folder / "t5-gated-bin")
    stored = folder / "t5-gated-bin" / "model.safetensors"
    tensors = safetensors.torch.load_file(stored)
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]  # one storage, two names
    torch.save(tensors, folder / "t5-gated-bin" / "pytorch_model.bin")
    stored.unlink()
    for name, tables in TABLES.items():
        shutil.copytree(folder / "t5-gated", folder / name)
        stored = folder / name / "model.safetensors"
        tensors = safetensors.torch.load_file(stored)
        table = tensors.pop("shared.weight")
        tensors |= {other: factor * table for other, factor in tables.items()}
        safetensors.torch.save_file(tensors, stored, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def found(folder: Path, run_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    cache = tmp_path_factory.mktemp("cache")
    argument = {"folder": str(folder), "cases": CASES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(cache))
        outputs = run_ranks(WORKER, argument, num_ranks=2, timeout_seconds=200)
    results = [json.loads(output.splitlines()[-1]) for output in outputs]
    assert [path.name for path in cache.glob("scalepet/*/*")] == ["pytorch_model.safetensors"]
    return results


@pytest.mark.distributed
@pytest.mark.parametrize("index", range(len(CASES)), ids=[f"{n} {z} {p}" for n, z, p in CASES])
def test_the_numbers_are_those_of_a_whole_model(index, folder, found):
    name, _, precision = CASES[index]
    model, head_names = load_whole(folder / name, precision)
    expected = {n: p.double().sum().item() for n, p in model.named_parameters()}
    for rank, results in enumerate(found):
        numbers = results[index]
        assert numbers["sums"] == expected
        assert numbers["head"] == list(head_names)
        size = sum(p.numel() for n, p in model.named_parameters() if n not in head_names)
        stored_bytes = 4 * size
        share = 1.0 if "zero_hpz_partition_size" in CASES[index][1] else 0.5
        assert abs(numbers["bytes"] - share * stored_bytes) < 4 * len(expected) * 2, rank
        assert "its own part" in numbers["how"]
        assert ("from " in numbers["how"]) == name.endswith("bin")


def load_whole(path: Path, precision: str) -> tuple[Any, tuple[str, ...]]:
    from scalepet import backbones, build

    backbone = make_backbone(path)
    config = backbones.read_model_config(backbone)
    loaded = backbones.load_model(backbone, config, dtype=build.DTYPES[precision])
    return loaded.model, loaded.head_names


def make_backbone(path: Path) -> Any:
    from scalepet.backbones import Backbone

    return Backbone(str(path), num_classes=None if path.name.startswith("t5") else 3)


def main() -> None:
    argument = json.loads(sys.argv[1])
    from scalepet import backbones, build, dist, engine
    from scalepet.backbones import slices

    engine.join_processes(timeout_seconds=60)
    results, opened, plain_open = [], [], slices.WeightFiles.open
    slices.WeightFiles.open = lambda files: opened.append(plain_open(files)) or opened[-1]
    for name, zero, precision in argument["cases"]:
        backbone = make_backbone(Path(argument["folder"]) / name)
        config = backbones.read_model_config(backbone)
        if dist.is_main() and backbones.needs_conversion(backbone, in_parts=True):
            backbones.convert(backbone, config)
        dist.barrier()
        ds_config = engine.compose_ds_config(
            {"zero_optimization": {"stage": 3, **zero}},
            precision=precision,
            micro_batch_size=1,
            num_micro_batches=1,
            clip=None,
        )
        with engine.building_into_shards(ds_config):
            loaded = backbones.load_model(
                backbone,
                config,
                dtype=build.DTYPES[precision],
                fill=engine.shard_filler(ds_config),
            )
        sums = {
            n: engine.read_whole(p).double().sum().item()
            for n, p in loaded.model.named_parameters()
        }
        num_bytes = opened.pop().num_bytes
        results.append(
            {"sums": sums, "head": loaded.head_names, "bytes": num_bytes, "how": loaded.how}
        )
    print(json.dumps(results), flush=True)
    engine.leave_processes()
    engine.end_process(0)


if __name__ == "__main__":
    main()
