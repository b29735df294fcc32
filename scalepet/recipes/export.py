"""Take a saved adapter out of scalepet: merged into a plain model."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from scalepet import backbones, build, dist, engine
from scalepet.backbones import Loaded
from scalepet.errors import CheckpointError
from scalepet.files import make_folder, workplace_beside
from scalepet.recipes.adapter import Adapter, open_adapter
from scalepet.recipes.run_folder import writing


def export_merged(
    folder: Path, into: Path, *, overrides: Mapping[str, Any], other_weights: bool = False
) -> None:
    """Write a plain transformers folder that computes what the backbone does with its adapter on.

    Tensor by tensor, at most one file of 5 GB in memory besides the backbone; with a launcher and a
    DeepSpeed file of stage 3, no rank ever holds the whole backbone.

    Args:
        folder: of the adapter, or the run folder that holds it.
        into: the new folder; must not exist.
        overrides, other_weights: as for ``open_adapter``.

    Raises:
        CheckpointError: the method's numbers have no place in a plain model, or the folder exists
            or cannot be written; on all ranks alike.
    """
    with engine.joined() if engine.is_launched() else contextlib.nullcontext():
        _export(folder, into, overrides=overrides, other_weights=other_weights)


def _export(folder: Path, into: Path, *, overrides: Mapping[str, Any], other_weights: bool) -> None:
    adapter = dist.together(
        lambda: _mergeable(open_adapter(folder, overrides=overrides, other_weights=other_weights))
    )
    dist.together(lambda: check_new(into))
    launched = engine.is_launched()
    ds_config = build.ds_config_for_answers(adapter.plan) if launched else {}
    loaded = adapter.head_of(build.load_backbone(adapter.plan, ds_config, on_host=not launched))
    merged = _merged(adapter, loaded)
    with _workplace_for(into) as workplace:
        unfinished = workplace / into.name
        if dist.is_main():
            fault = _write(unfinished, merged, adapter, loaded)
        else:
            fault = None
            for _ in merged:  # every tensor is gathered from all ranks
                pass
        dist.agree(fault)
        engine.on_main(lambda: _complete(unfinished, into, adapter))


def _mergeable(adapter: Adapter) -> Adapter:
    reason = adapter.plan.method.cannot_merge
    if reason is not None:
        raise CheckpointError(
            f"{adapter.folder}: {adapter.plan.config.method.names} cannot be merged: {reason};"
            " allowed: apet (operation add), lora, ia3, full, and bitfit where the backbone has"
            " biases"
        )
    return adapter


def check_new(into: Path) -> None:
    """Raises CheckpointError where something is there already."""
    if into.exists():
        raise CheckpointError(f"{into} exists; allowed: a folder that does not")


@contextlib.contextmanager
def _workplace_for(into: Path) -> Iterator[Path]:
    """On rank 0, gives a temporary folder beside the new one. All ranks together on the way in."""
    with contextlib.ExitStack() as stack:

        def make() -> Path:
            with writing(into):
                make_folder(into.parent)
                return stack.enter_context(workplace_beside(into))

        yield dist.together(lambda: make() if dist.is_main() else into.parent)


def _merged(adapter: Adapter, loaded: Loaded) -> Generator[tuple[str, Tensor]]:
    """Every tensor of the plain model, whole, on the CPU. All ranks together."""
    for name, parameter in loaded.model.named_parameters():
        whole = engine.read_whole(parameter).cpu()
        if name in loaded.head_names:
            whole = adapter.tensors[name].to(whole.dtype)
        yield name, adapter.plan.method.merged(name, whole, adapter.tensors).contiguous()


def _write(
    folder: Path, merged: Generator[tuple[str, Tensor]], adapter: Adapter, loaded: Loaded
) -> Exception | None:
    """On rank 0. A fault is given back, once the other ranks have been served to the end; raised
    where it comes from ``merged`` itself, so that nobody can be served.
    """
    dtype = build.DTYPES[adapter.plan.config.precision]
    sizes = {
        name: math.prod(engine.full_shape(parameter)) * dtype.itemsize
        for name, parameter in loaded.model.named_parameters()
    }
    try:
        folder.mkdir()
        backbones.write_weights(folder, merged, sizes=sizes)
    except Exception as error:
        if inspect.getgeneratorstate(merged) == inspect.GEN_CLOSED:
            raise
        for _ in merged:
            pass
        if isinstance(error, (OSError, SafetensorError)):
            return CheckpointError(f"{folder} cannot be written: {error}")
        return error
    return None


def _complete(unfinished: Path, into: Path, adapter: Adapter) -> None:
    plan, dtype = adapter.plan, build.DTYPES[adapter.plan.config.precision]
    with writing(into):
        backbones.write_model_config(
            unfinished,
            plan.backbone,
            plan.model_config,
            dtype=dtype,
            labels=plan.task.labels,
        )
        if plan.tokenizer is not None:
            plan.tokenizer.save_pretrained(unfinished)
        unfinished.rename(into)
