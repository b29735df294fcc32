"""``scalepet plan``: held to what two ranks really hold and gather, and run as a user does."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import resource
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import SMALL_CONFIG
from rich.console import Console
from running import SCALEPET, run
from safetensors.torch import load_file, save_file

from scalepet import backbones, planning
from scalepet.backbones import Backbone
from scalepet.cli.plan import show
from scalepet.config import check_config, read_config
from scalepet.planning import (
    Layout,
    choose_machines,
    count_gathers,
    count_gathers_after_step,
    gpu_lines,
)
from scalepet.recipes.plan import plan, sites_of, work_of

WORKER = Path(__file__).with_name("planned.py")
NUM_RANKS = 2
NO_PREFETCH = {
    "stage3_param_persistence_threshold": 0,
    "stage3_prefetch_bucket_size": 0,
    "stage3_max_reuse_distance": 0,
}
MAX_LIVE = 6000
PREFETCH = {
    "stage3_param_persistence_threshold": 0,
    "stage3_prefetch_bucket_size": 500,
    "stage3_max_live_parameters": MAX_LIVE,
    "stage3_max_reuse_distance": MAX_LIVE,
}
HPZ = {**NO_PREFETCH, "zero_hpz_partition_size": NUM_RANKS}
ZERO_2 = {"stage": 2, "overlap_comm": True}
SOME_SMALL = {**NO_PREFETCH, "stage3_param_persistence_threshold": 600}
APET, LORA = {"name": "apet", "budget": 2000}, {"name": "lora", "r": 4}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], bool]] = {
    # Before the sharded ones, which leave behind DeepSpeed's linear function: it keeps inputs.
    "t5 apet, zero2": ("t5-gated", APET, ZERO_2, False),
    "t5 lora, zero0, fp32, checkpointing": ("t5-gated", LORA, {"stage": 0}, True),
    "bert lora, zero0": ("bert", LORA, {"stage": 0}, False),
    "t5 apet": ("t5-gated", APET, NO_PREFETCH, False),
    "t5 lora, checkpointing": ("t5-gated", LORA, NO_PREFETCH, True),
    "t5 apet, prefetching": ("t5-gated", APET, PREFETCH, False),
    "bert apet": ("bert", APET, SOME_SMALL, False),
    "bert lora": ("bert", LORA, NO_PREFETCH, False),
    "t5 apet, hpZ": ("t5-gated", APET, HPZ, False),
}
XXL = {
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
UL2 = {
    **XXL,
    "d_kv": 256,
    "d_ff": 16384,
    "num_layers": 32,
    "num_heads": 16,
    "feed_forward_proj": "gated-silu",
}
T5_48B = {**XXL, "d_model": 8192, "d_kv": 128, "d_ff": 24576}


def content_of(case: str, folder: Path) -> dict[str, Any]:
    backbone, method, zero, is_checkpointed = CASES[case]
    content = copy.deepcopy(SMALL_CONFIG)
    content["backbone"] = {
        "path": str(folder / backbone),
        "dropout": 0.0,
        "checkpoint_activations": is_checkpointed,
    }
    content["task"] |= {"labels": ["a", "b"], "max_source_length": 16, "max_target_length": 8}
    content["method"] = method
    content["train"] = {"batch_size": 8, "micro_batch_size": 4}
    content["precision"] = "fp32" if "fp32" in case else "bf16"
    content["deepspeed"] = {"zero_optimization": {"stage": 3, **zero}}
    return content


@pytest.fixture(scope="module")
def measured(
    backbones_with_tokenizers: Path,
    run_ranks: Callable[..., list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("planned") / "found.json"
    cases = {case: content_of(case, backbones_with_tokenizers) for case in CASES}
    argument = {"out": str(out), "cases": cases}
    run_ranks(WORKER, argument, num_ranks=NUM_RANKS, timeout_seconds=120)
    return json.loads(out.read_text())


def planned_of(case: str, folder: Path) -> tuple[planning.Work, Layout, dict[str, int]]:
    content = content_of(case, folder)
    work = work_of(check_config(content), num_gpus=NUM_RANKS)
    zero = content["deepspeed"]["zero_optimization"]
    layout = Layout(
        case,
        stage=zero["stage"],
        is_local="zero_hpz_partition_size" in zero,
        threshold=zero.get("stage3_param_persistence_threshold", 0),
        max_live=zero.get("stage3_max_live_parameters", 0),
    )
    machines = choose_machines(gpus=NUM_RANKS)
    lines = gpu_lines(work, layout, machines, is_checkpointed=CASES[case][3])
    planned: Counter[str] = Counter()
    for line in lines:
        planned[line.what] += line.num_bytes
    return work, layout, planned


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES)
def test_memory_is_as_measured(
    case: str, measured: dict[str, Any], backbones_with_tokenizers: Path
) -> None:
    work, layout, planned = planned_of(case, backbones_with_tokenizers)
    found = measured[case]
    frozen = planned["frozen weights"] + planned.get("small weights", 0)
    assert frozen == pytest.approx(found["frozen_bytes"], rel=0.01)
    assert planned["trained values"] == pytest.approx(found["working_bytes"], rel=0.05)
    optimizer = found["master_bytes"] + found["moment_bytes"]
    assert planned["optimizer"] == pytest.approx(optimizer, rel=0.02)
    # Beside these there is one copy in fp32 while the optimizer steps, and at stage 1 the whole
    # gradients before they are divided.
    left = (
        work.num_bytes * work.num_trained // (1 if layout.is_plain(work.num_bytes) else NUM_RANKS)
    )
    assert found["gradient_bytes"] == pytest.approx(left, rel=0.02)
    assert planned["gradients"] >= found["gradient_bytes"]
    assert planned.get("reduce bucket", 0) == found["bucket_bytes"]
    assert planned.get("positions", 0) == found["index_bytes"]
    assert planned["activations"] == pytest.approx(found["saved_bytes"], rel=0.02)


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES)
def test_gathers_are_as_counted(
    case: str, measured: dict[str, Any], backbones_with_tokenizers: Path
) -> None:
    work, layout, _ = planned_of(case, backbones_with_tokenizers)
    found = measured[case]
    planned = count_gathers(work, layout, is_checkpointed=CASES[case][3])
    in_all = found["forward"][-1] + found["backward"][-1]
    assert sum(planned) == pytest.approx(in_all, rel=0.1), (planned, found)
    after = count_gathers_after_step(work, layout, choose_machines(gpus=NUM_RANKS))
    assert after == pytest.approx(found["step"][-1], rel=0.05)


@pytest.mark.parametrize("backbone", ["t5", "t5-gated", "bert"])
def test_sites_are_those_of_the_model(backbone: str, tiny_backbones: Path) -> None:
    config = backbones.read_model_config(Backbone(str(tiny_backbones / backbone)))
    extra = {"has_own_head": getattr(config, "has_own_head", None)}
    shape = planning.shape_of({**config.to_dict(), **extra})
    assert sites_of(shape) == backbones.sketch_sites(config)


def test_a_table_of_its_own_is_counted(tiny_backbones: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_backbones / "t5-gated", tmp_path / "t5")
    stored = tmp_path / "t5" / "model.safetensors"
    tensors = load_file(stored)
    for stack in ("encoder", "decoder"):
        tensors[f"{stack}.embed_tokens.weight"] = torch.randn_like(tensors["shared.weight"])
    save_file(tensors, stored, metadata={"format": "pt"})
    config = backbones.read_model_config(Backbone(str(tmp_path / "t5")))
    sites = sites_of(planning.shape_of(config.to_dict()))
    assert sites == backbones.sketch_sites(config)
    assert sum(site.shape == (60, 24) for site in sites) == 4


@pytest.mark.parametrize(
    "method",
    [
        {"name": "apet", "budget": "same-as:lora"},
        {"name": "apet", "budget": 400, "unit": "row"},
        {"name": "apet", "budget": 400, "operation": "mix"},
        {"name": "apet", "budget": 400, "calibrated": True},
        {"name": "prefix", "calibrated": True},
        {"name": "adapter"},
        {"name": "prefix"},
        {"name": "prompt"},
        {"name": "bitfit"},
        {"name": "ia3"},
        {"name": "full"},
        {"name": "lora", "also": [{"name": "prompt", "length": 3}]},
    ],
    ids=str,
)
def test_every_method_is_counted_in_full(method: dict[str, Any], tiny_backbones: Path) -> None:
    content = {**copy.deepcopy(SMALL_CONFIG), "method": method}
    content["backbone"] = {"path": str(tiny_backbones / "t5-gated")}
    config = check_config(content)
    work = work_of(config, num_gpus=1)
    model_config = backbones.read_model_config(Backbone(config.backbone.path))
    from scalepet import build

    expected = build.plan_method(config, backbones.sketch_sites(model_config)).num_parameters
    assert work.num_trained == expected
    assert work.num_frozen == work.shape.numel - (expected if method["name"] == "full" else 0)


@pytest.mark.parametrize(
    "method",
    [
        {"name": "prompt", "length": 5},
        {"name": "apet", "operation": "concat", "budget": 5 * 24 - 7},
        {"name": "apet", "budget": 100, "also": [{"name": "prompt", "length": 5}]},
    ],
    ids=str,
)
def test_positions_of_a_prompt_are_tokens(method: dict[str, Any], tiny_backbones: Path) -> None:
    content = {**copy.deepcopy(SMALL_CONFIG), "method": method}
    content["backbone"] = {"path": str(tiny_backbones / "bert")}
    content["task"]["max_source_length"] = 16
    work = work_of(check_config(content), num_gpus=1)
    assert work.prompt == 5
    assert work.tokens(2) == 2 * (work.source + 5)
    longer = dataclasses.replace(work, prompt=1, source=work.source + 4)
    assert longer.operations(2, is_checkpointed=False) == work.operations(2, is_checkpointed=False)


def test_rows_of_a_run_that_keeps_hardly_anything_are_bounded(tmp_path: Path) -> None:
    """By one layer's forward. Of this BERT with 128 tokens, torch's profiler saw 2.08 MiB a row
    allocated in fp32 on a CPU, without dropout in its attention.
    """
    shape = {"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6}
    shape |= {"num_attention_heads": 12, "intermediate_size": 1536}
    content = yaml.safe_load(write(tmp_path, shape).read_text())
    content |= {"method": {"name": "head"}, "precision": "fp32"}
    content["task"]["max_source_length"] = 128
    machines = choose_machines(gpus=2)
    work = work_of(check_config(content), num_gpus=2)
    for layout in planning.layouts_for(machines):
        verdict = planning.judge(work, layout, machines, is_checkpointed=False)
        assert verdict.most_rows == pytest.approx(machines.usable_bytes / (2.08 * 2**20), rel=0.05)


def test_shipped_files_are_what_a_plan_takes_them_for() -> None:
    from scalepet.engine import read_ds_file

    for layout in planning.LAYOUTS:
        zero = read_ds_file(layout.name)["zero_optimization"]
        assert layout.stage == zero["stage"]
        assert layout.is_local == ("zero_hpz_partition_size" in zero)
        assert layout.is_offloaded == ("offload_param" in zero)
        assert zero.get("stage3_param_persistence_threshold", 100_000) == layout.threshold


def write(folder: Path, shape: dict[str, Any], **train: Any) -> Path:
    """A run whose data is nowhere and whose backbone is a config.json."""
    (folder / "config.json").write_text(json.dumps(shape))
    content = copy.deepcopy(SMALL_CONFIG)
    content["backbone"] = {"path": str(folder / "config.json"), "random_start": True}
    content["method"] = {"name": "apet", "budget": "same-as:lora"}
    content["train"] = {"batch_size": 512, "micro_batch_size": 8, **train}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("shape", "gpus", "billions"),
    [(XXL, 64, 11.1), (T5_48B, 512, 48.8)],
    ids=["T5-XXL", "T5 of 48 billion"],
)
def test_the_largest_models_are_planned_in_seconds(
    shape: dict[str, Any], gpus: int, billions: float, tmp_path: Path
) -> None:
    config = write(tmp_path, shape)
    options = ["--gpus", gpus, "--nodes", gpus // 8, "--link", "ib-400", "--json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [*SCALEPET, "plan", config, *options]  # a process that has imported nothing
    done = subprocess.run([str(word) for word in command], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    planned = json.loads(done.stdout)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert planned["backbone"]["num_parameters"] / 1e9 == pytest.approx(billions, abs=0.1)
    assert planned["simplest"] is not None
    assert len(planned["layouts"]) == 2 * len(planning.LAYOUTS) == 10
    # Of CPU, whatever else runs; nearly all of it is the import of torch and transformers.
    assert seconds < 8


def test_the_table_gives_reasons(tmp_path: Path) -> None:
    options = ["--gpus", 64, "--nodes", 8, "--link", "ib-400", "task.max_source_length=64"]
    shown = run([*SCALEPET, "plan", write(tmp_path, UL2), *options])
    for words in (
        "19,591,209,984 frozen",
        "Simplest that fits: deepspeed=zero0",
        "the backbone fits whole on every GPU",
        "zero3: gathers take longer than arithmetic",
        "rows are as long as allowed: 64 source and 128 target tokens",
        "label words count 128 tokens",
        "frozen weights",
        "whole on every GPU",
        "zero3 *",
    ):
        assert words in shown, (words, shown)


def test_all_faults_of_a_plan_come_at_once(tmp_path: Path) -> None:
    config = write(tmp_path, XXL, batch_size=4)
    options = ["--gpu", "h10", "--gpus", 9, "--nodes", 2, "--link", "foo"]
    told = run([*SCALEPET, "plan", config, *options], code=2)
    assert len(told.splitlines()) == 4, told
    for words in ("--gpus: 9", "--gpu: 'h10'", "--link: 'foo'", "train.batch_size: 4 rows"):
        assert words in told, told


def test_what_train_would_refuse_without_a_row_a_plan_refuses(
    tiny_backbones: Path, tmp_path: Path
) -> None:
    config = write(tmp_path, XXL)
    told = run([*SCALEPET, "plan", config, "method={name: head}", "deepspeed=zero4"], code=2)
    for words in ("head trains nothing on a t5 backbone", "deepspeed: 'zero4' is neither"):
        assert words in told, told
    backbone = f"backbone.path={tiny_backbones / 'bert'}"
    long = [backbone, "backbone.random_start=false", "task.max_source_length=4096"]
    told = run([*SCALEPET, "plan", config, *long], code=2)
    assert "task.max_source_length: 4096; allowed: at most 32" in told


def test_nodes_of_other_sizes_need_another_partition(tmp_path: Path) -> None:
    config, few = write(tmp_path, XXL), "zero_hpz_partition_size: 4"
    machines = ["--gpus", 16, "--link", "ib-200", "--gpu", "a100-40", "method={name: full}"]
    by_four = run([*SCALEPET, "plan", config, *machines, "--nodes", 4])
    assert f"deepspeed=zero3_hpz backbone.checkpoint_activations=false; {few} in that" in by_four
    assert f"zero3_hpz has {few}, the GPUs of a node; the shipped file has 8" in by_four
    assert few not in run([*SCALEPET, "plan", config, *machines, "--nodes", 2])


def test_a_terminal_shows_every_number_whole(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, XXL))
    machines = {"gpus": 64, "nodes": 8, "link": "ib-400"}
    for width, host_gib in ((80, None), (40, 1)):
        console = Console(width=width, markup=False, file=io.StringIO())
        show(plan(config, choose_machines(**machines, host_gib=host_gib)), console)
        lines = console.file.getvalue().splitlines()
        rows = [line for line in lines if line.startswith(("zero", "  checkpointed"))][:10]
        assert len(rows) == 10 and "…" not in "".join(rows)
        assert host_gib or max(map(len, rows)) <= width


def test_a_plan_is_data_without_loss(tiny_backbones: Path) -> None:
    content = copy.deepcopy(SMALL_CONFIG)
    content["backbone"] = {"path": str(tiny_backbones / "bert")}
    content["task"]["max_source_length"] = 16
    planned = plan(check_config(content), choose_machines())
    data = json.loads(json.dumps(planned.as_data()))
    assert [layout["gpu_bytes"] for layout in data["layouts"]] == [
        verdict.gpu_bytes for verdict in planned.outlook.verdicts
    ]
    assert data["layouts"][0]["gpu"] == [
        dataclasses.asdict(line) for line in planned.outlook.verdicts[0].gpu
    ]
    assert "2 classes, since task.labels names none" in planned.assumptions
