"""An ensemble of experts costs one walk over the backbone. This file is also the worker.

As a script: ``test_one_walk.py '{"folder": ..., "out": ...}'``, on every rank.
"""

from __future__ import annotations

import gc
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from scalepet import backbones, build, dist, engine
from scalepet.backbones import Backbone, EnsembleTensor, Loaded, members_of
from scalepet.lae import experts
from scalepet.pet import METHODS

NUM_RANKS, NUM_ROWS, NUM_EXPERTS = 2, 3, 3
LABEL_WORDS = [[5, 1], [7, 9, 1], [8, 1]]
ROWS: dict[str, dict[str, Any]] = {
    "lora": {"r": 2},
    "prefix": {"length": 3},
    "adapter": {"bottleneck": 3, "placement": "parallel_attention", "calibrated": True},
    "apet": {"budget": 200, "kinds": ("matrix", "norm")},
    "bitfit": {},
}
ZERO = {
    "stage": 3,
    "stage3_param_persistence_threshold": 0,
    # Far less than a backbone: weights come and go during one walk.
    "stage3_prefetch_bucket_size": 500,
    "stage3_max_live_parameters": 6000,
    "stage3_max_reuse_distance": 6000,
}
LAST_BLOCK = {"bert": "bert.encoder.layer.1", "t5": "decoder.block.1"}
CASES = {
    f"{backbone}, {method}, {where}": (backbone, method, where)
    for backbone in LAST_BLOCK
    for method in ROWS
    for where in ("everywhere", "last block")
}


Seen = list[dict[str, Any]]
"""What every rank has seen, by case."""


class Work(TorchDispatchMode):
    """What is really computed, before a block is entered and from there on.

    Attributes:
        num_calls: of operations that make floating tensors.
        num_made: entries of these.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.part, self.num_calls, self.num_made = "below", Counter[str](), Counter[str]()
        self._hook = block.register_forward_pre_hook(lambda *_: setattr(self, "part", "above"))

    def __exit__(self, *fault: Any) -> None:
        self._hook.remove()
        super().__exit__(*fault)

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if any(issubclass(one, EnsembleTensor) for one in types):
            return NotImplemented  # it is done for every member, and these come back here
        made = operation(*args, **(kwargs or {}))
        if not any(one.alias_info for one in operation._schema.returns):
            tensors = made if isinstance(made, tuple | list) else [made]
            sizes = [t.numel() for t in tensors if isinstance(t, Tensor) and t.is_floating_point()]
            self.num_calls[self.part] += bool(sizes)
            self.num_made[self.part] += sum(sizes)
        return made


@contextmanager
def counting_gathers() -> Iterator[list[int]]:
    """The entries of all that DeepSpeed gathers meanwhile."""
    from deepspeed.comm import comm

    sizes: list[int] = []
    plain_gather = comm.cdb.all_gather_into_tensor

    def gather(*, output_tensor: Tensor, **kwargs: Any) -> Any:
        sizes.append(output_tensor.numel())
        return plain_gather(output_tensor=output_tensor, **kwargs)

    comm.cdb.all_gather_into_tensor = gather
    try:
        yield sizes
    finally:
        comm.cdb.all_gather_into_tensor = plain_gather


def load(backbone: str, method: str, where: str, folder: Path, ds_config: Any) -> Loaded:
    """A backbone in shards with a method on it; ``model.config`` is its own."""
    of = Backbone(
        str(folder / backbone), num_classes=3 if backbone == "bert" else None, dropout=0.0
    )
    config = backbones.read_model_config(of)
    include = ("*",) if where == "everywhere" else (f"{LAST_BLOCK[backbone]}.*",)
    planned = METHODS[method](backbones.sketch_sites(config), include=include, **ROWS[method])
    with engine.building_into_shards(ds_config):
        loaded = backbones.load_model(of, config, dtype=torch.float32)
    build.attach(planned, loaded)
    return loaded


def make_batch() -> dict[str, Tensor]:
    """This rank's own rows, some of them shorter."""
    generator = torch.Generator().manual_seed(dist.rank())
    ids = torch.randint(2, 60, (NUM_ROWS, 9), generator=generator)
    lengths = torch.tensor([[9], [4], [7]])
    return {"input_ids": ids, "attention_mask": (torch.arange(9) < lengths).long()}


def measure(
    runner: engine.Engine, scores: Callable[[], Tensor], block: nn.Module
) -> tuple[dict[str, Any], Tensor]:
    """What one call gathers and computes, no weight being there before; and what comes out."""
    with counting_gathers() as sizes, Work(block) as work:
        found = scores()
    # Else weights that were fetched for a backward would stay, some of them still on their way.
    runner._engine.empty_partition_cache()
    return {"gathered": sum(sizes), "calls": work.num_calls, "made": work.num_made}, found


@torch.no_grad()
def compare(
    runner: engine.Engine,
    numbers: Sequence[Mapping[str, Tensor]],
    scores: Callable[[], Tensor],
    block: nn.Module,
) -> dict[str, Any]:
    """The costs of each expert alone and of two and all of them together; and the ensembles in
    which a member does not say what its expert says alone.
    """
    seen: dict[str, Any] = {"costs": {}, "different": []}
    alone = []
    for number, expert in enumerate(numbers):
        for name, whole in expert.items():
            engine.write_whole(runner.module.get_parameter(name), whole)
        seen["costs"][f"alone {number}"], answer = measure(runner, scores, block)
        alone.append(answer)
    assert not torch.equal(alone[0], alone[1])
    for size in (2, len(numbers)):
        with experts(runner.module, numbers[:size], device=runner.device):
            seen["costs"][f"{size} experts"], answer = measure(runner, scores, block)
        members = members_of(answer)
        assert len(members) == size
        if not all(torch.equal(*pair) for pair in zip(members, alone[:size], strict=True)):
            seen["different"].append(size)
    return seen


def work(case: str, folder: Path) -> dict[str, Any]:
    """As the recipe does it: in the engine that has trained the experts."""
    backbone, method, where = CASES[case]
    ds_config = engine.compose_ds_config(
        {"zero_optimization": ZERO},
        precision="fp32",
        micro_batch_size=NUM_ROWS,
        num_micro_batches=1,
        clip=None,
    )
    loaded = load(backbone, method, where, folder, ds_config)
    model: Any = loaded.model
    runner = engine.Engine(
        model,
        head_names=loaded.head_names,
        optimizer=engine.AdamW(learning_rate=0.01, head_learning_rate=0.01),
        ds_config=ds_config,
    )
    words = LABEL_WORDS if backbone == "t5" else None
    score = partial(backbones.class_scores, tensors=make_batch(), label_ids=words)
    score = partial(score, config=model.config)
    runner.backward(-score(runner.in_training)[:, 0].mean())
    runner.step()
    online = {n: t for n, t in runner.read_trained().items() if n not in loaded.head_names}
    generator = torch.Generator().manual_seed(1)
    numbers = [online] + [
        {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in online.items()}
        for _ in range(NUM_EXPERTS - 1)
    ]
    model.eval()
    block = model.get_submodule(LAST_BLOCK[backbone])
    runner._engine.empty_partition_cache()
    seen = compare(runner, numbers, partial(score, runner.module), block)
    seen["entries"] = sum(p.ds_numel for p in model.parameters())
    runner.close()
    return seen


@pytest.fixture(scope="module")
def found(tiny_backbones: Path, run_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    out = tmp_path_factory.mktemp("one-walk")
    argument = {"folder": str(tiny_backbones), "out": str(out)}
    run_ranks(Path(__file__), argument, num_ranks=NUM_RANKS, timeout_seconds=200)
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(NUM_RANKS)]


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES)
class TestOneWalk:
    def test_it_gathers_what_a_single_expert_gathers(self, case: str, found: Seen) -> None:
        for seen in (of_rank[case] for of_rank in found):
            gathered = {name: cost["gathered"] for name, cost in seen["costs"].items()}
            assert len(gathered) == NUM_EXPERTS + 2 and len({*gathered.values()}) == 1, gathered
            assert gathered["alone 0"] >= seen["entries"]  # and a tied one for each of its uses

    def test_every_member_says_what_its_expert_says_alone(self, case: str, found: Seen) -> None:
        for of_rank in found:
            assert of_rank[case]["different"] == []

    @pytest.mark.parametrize("what", ["calls", "made"])
    def test_what_lies_below_the_first_tuned_block_is_done_once(
        self, case: str, what: str, found: Seen
    ) -> None:
        """Neither operations nor activations are doubled there."""
        for seen in (of_rank[case] for of_rank in found):
            alone = seen["costs"]["alone 0"][what]
            for size in (2, NUM_EXPERTS):
                together = seen["costs"][f"{size} experts"][what]
                assert 1.3 * alone["above"] < together["above"] <= size * alone["above"]
                if case.endswith("last block"):
                    assert together["below"] == alone["below"] > 0


def main() -> None:
    argument = json.loads(sys.argv[1])
    engine.join_processes(timeout_seconds=60)
    backbones.quiet_transformers(show_progress=False)
    seen = {}
    for case in CASES:
        gc.freeze()  # DeepSpeed collects garbage at every start, among all that was ever imported
        seen[case] = work(case, Path(argument["folder"]))
    (Path(argument["out"]) / f"{dist.rank()}.json").write_text(json.dumps(seen))
    engine.leave_processes()
    engine.end_process(0)


if __name__ == "__main__":
    main()
