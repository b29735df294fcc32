"""How long an ensemble takes where gathering weights dominates, against one of its experts.

    python tests/lae/slow_link.py [--over shaped bare none] [--rate 200mbit] [--method lora] ...

Two ranks, each in a network namespace of its own, hold the halves of a frozen T5 of random weights
and walk over it by turns with one expert and with all of them; the link between them is shaped.
Over the bare link the same shows what a walk costs besides; with none, one process holds all
weights. The last line is JSON. Needs root, ``ip`` and ``tc``; ends with 77 where no link can be
made.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scalepet import backbones, build, dist, engine
from scalepet.lae import experts
from scalepet.pet import METHODS

NO_LINK = 77
"""What automake has for tests that cannot be made here."""

LINKS = ("shaped", "bare", "none")
TIMEOUT_SECONDS = 200
DEVICE = "link0"
ADDRESSES = ("10.99.77.1", "10.99.77.2")
SHAPE = {
    "vocab_size": 1000,
    "d_model": 256,
    "d_kv": 32,
    "d_ff": 1024,
    "num_layers": 4,
    "num_heads": 8,
}
LABEL_WORDS = [[5, 1], [7, 9, 1], [8, 1], [6, 1]]
OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"r": 8, "parts": ["k", "v"], "calibrated": True},
    "prefix": {"length": 10, "calibrated": True},
    "adapter": {"bottleneck": 8, "placement": "parallel_attention", "calibrated": True},
    "apet": {"budget": 20_000},
    "bitfit": {},
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--over", nargs="+", default=LINKS, choices=LINKS)
    parser.add_argument("--rate", default="200mbit", help="of the link, in each direction (tc)")
    parser.add_argument("--method", default="lora", choices=OPTIONS)
    parser.add_argument("--experts", type=int, default=2)
    parser.add_argument("--rows", type=int, default=2, help="a rank")
    parser.add_argument("--tokens", type=int, default=16, help="a row")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--prefetch", type=int, default=0, help="weights fetched ahead")
    parser.add_argument("--offload", action="store_true", help="the shards lie in host memory")
    return parser.parse_args()


def main() -> None:
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        walk(argparse.Namespace(**json.loads(sys.argv[1])))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # and take the link down
    asked = parse()
    print(f"{asked.experts} experts ({asked.method}) of a T5 {SHAPE}; {asked.rows} rows of")
    print(f"{asked.tokens} tokens and one thread a rank, {asked.rounds} rounds")
    found = {}
    for link in asked.over:
        if link == "none":
            found[link] = run_ranks([[]], asked)
        else:
            with linked(asked.rate if link == "shaped" else None) as in_namespaces:
                found[link] = run_ranks(in_namespaces, asked)
        report(f"{link} ({asked.rate})" if link == "shaped" else link, found[link])
    print(json.dumps(found))


def report(where: str, found: dict[str, float]) -> None:
    print(
        f"{where}: alone {found['seconds']:.3f} s, {found['sent_bytes'] / 1e6:.2f} MB sent;"
        f" together {found['ratio']:.3f} times as long ({found['lowest']:.3f} to"
        f" {found['highest']:.3f}), {found['together_sent_bytes'] / 1e6:.2f} MB sent",
        flush=True,
    )


@contextlib.contextmanager
def linked(rate: str | None) -> Iterator[list[list[str]]]:
    """Two network namespaces with a link, as the starts of commands that run in them."""
    names = [f"scalepet-{os.getpid()}-{side}" for side in range(2)]
    made = []
    try:
        for name in names:
            call("ip", "netns", "add", name)
            made.append(name)
        ends = [["name", DEVICE, "netns", name] for name in names]
        call("ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            call("ip", "-n", name, "addr", "add", f"{address}/30", "dev", DEVICE)
            for device in ("lo", DEVICE):
                call("ip", "-n", name, "link", "set", device, "up")
            if rate is not None:
                shape = ["tbf", "rate", rate, "burst", "256kb", "latency", "100ms"]
                call("tc", "-n", name, "qdisc", "add", "dev", DEVICE, "root", *shape)
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in made:  # and with them all that is in them
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def call(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        print(f"no link can be made here: {' '.join(command)}: {said.strip()}", file=sys.stderr)
        sys.exit(NO_LINK)


def run_ranks(starts: list[list[str]], asked: argparse.Namespace) -> dict[str, float]:
    """What rank 0 of as many ranks as there are starts of commands has found."""
    command = [sys.executable, __file__, json.dumps(vars(asked))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if len(starts) > 1:
        environment |= {"WORLD_SIZE": str(len(starts)), "LOCAL_RANK": "0"}
        environment |= {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": "29500"}
        environment |= {"GLOO_SOCKET_IFNAME": DEVICE}
    ranks = [
        subprocess.Popen(
            [*start, *command],
            env={**environment, "RANK": str(rank)} if len(starts) > 1 else environment,
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            text=True,
        )
        for rank, start in enumerate(starts)
    ]
    try:
        output, _ = ranks[0].communicate(timeout=TIMEOUT_SECONDS)
        assert all(rank.wait() == 0 for rank in ranks), "a rank has failed, see above"
    finally:
        for rank in ranks:
            rank.kill()
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


def load(asked: argparse.Namespace, ds_config: dict[str, Any]) -> tuple[nn.Module, Any]:
    """A random T5 with the method on it, in shards where the config says so; and its config."""
    config = backbones.t5_config(**SHAPE)
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        backbone = backbones.Backbone(str(Path(folder, "config.json")), random_start=True)
        config = backbones.read_model_config(backbone)
        with engine.building_into_shards(ds_config):
            loaded = backbones.load_model(backbone, config, dtype=torch.float32)
    method = METHODS[asked.method](backbones.sketch_sites(config), **OPTIONS[asked.method])
    build.attach(method, loaded)
    return loaded.model.eval(), config


def walk(asked: argparse.Namespace) -> None:
    """On every rank: the median of the ratios of neighbouring walks, and what they sent."""
    device = engine.join_processes(timeout_seconds=60)
    ds_config = ds_config_of(asked)
    model, config = load(asked, ds_config)
    trained = engine.trained_parameters(model)
    numbers = [
        {name: 0.1 * torch.randn(engine.full_shape(p)) for name, p in trained.items()}
        for _ in range(asked.experts)
    ]
    ids = torch.randint(2, SHAPE["vocab_size"], (asked.rows, asked.tokens))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def alone() -> Tensor:
        return backbones.class_scores(model, batch, LABEL_WORDS, config=config)

    def together() -> Tensor:
        with experts(model, numbers, device=device):
            return alone()

    with torch.no_grad(), engine.untrained(model, ds_config, device):
        found = measure(alone, together, num_rounds=asked.rounds)
    print(json.dumps(found))
    engine.leave_processes()
    engine.end_process(0)


def ds_config_of(asked: argparse.Namespace) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": 0}
    if dist.world_size() > 1:
        zero = {
            "stage": 3,
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": asked.prefetch,
        }
        if asked.offload:
            zero["offload_param"] = {"device": "cpu"}
    return engine.compose_ds_config(
        {"zero_optimization": zero},
        precision="fp32",
        micro_batch_size=asked.rows,
        num_micro_batches=1,
        clip=None,
    )


def measure(
    alone: Callable[[], Tensor], together: Callable[[], Tensor], *, num_rounds: int
) -> dict[str, float]:
    for first in (alone, alone, together):  # DeepSpeed records its trace of the walk
        first()
    pairs = []
    for index in range(num_rounds):
        order = [alone, together] if index % 2 else [together, alone]
        seen = {walk: timed(walk) for walk in order}
        pairs.append((seen[alone], seen[together]))
    ratios = [both[0] / one[0] for one, both in pairs]
    return {
        "seconds": statistics.median(one[0] for one, _ in pairs),
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "sent_bytes": statistics.median(one[1] for one, _ in pairs),
        "together_sent_bytes": statistics.median(both[1] for _, both in pairs),
    }


def timed(walk: Callable[[], Tensor]) -> tuple[float, int]:
    """Seconds, and bytes that this rank put on the link."""
    dist.barrier()
    start_bytes, start = sent_bytes(), time.perf_counter()
    walk()
    return time.perf_counter() - start, sent_bytes() - start_bytes


def sent_bytes() -> int:
    counter = Path("/sys/class/net", DEVICE, "statistics", "tx_bytes")
    return int(counter.read_text()) if counter.exists() else 0


if __name__ == "__main__":
    main()
