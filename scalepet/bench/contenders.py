"""Who runs: nothing trained at all (the floor), methods of scalepet, and those of PEFT."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from scalepet import backbones, pet
from scalepet.bench.shapes import Work
from scalepet.pet import METHODS, Method

FLOOR = "frozen floor"


@dataclass(frozen=True)
class Entered:
    """A model with a contender on it.

    Attributes:
        model: to be called.
        num_bytes: of the file that the contender would save; 0 for the floor.
    """

    model: nn.Module
    num_bytes: int


@dataclass(frozen=True)
class Contender:
    """One that can be put on the model and taken off again, so that all run on one copy of it."""

    name: str
    enter: Callable[[Work], contextlib.AbstractContextManager[Entered]]


def contenders(work: Work, *, densities: Sequence[str], with_peft: bool) -> list[Contender]:
    """The floor first; APET with LoRA's count, in the same layers and anywhere, and at several
    densities; full only where it is named by its density of 100 %.
    """
    lora = METHODS["lora"](work.sites)
    count = lora.num_parameters
    ours: dict[str, Method] = {
        "LoRA on q, v": lora,
        "APET on q, v": METHODS["apet"](work.sites, budget=count, parts=["q", "v"]),
        "APET anywhere": METHODS["apet"](work.sites, budget=count),
    }
    for density in densities:
        if density == "100%":
            ours["full"] = METHODS["full"](work.sites, kinds=["matrix"])
        else:
            ours[f"APET {density}"] = METHODS["apet"](work.sites, budget=density)
    found = [Contender(FLOOR, _floor)]
    found += [Contender(name, _ours(method)) for name, method in ours.items()]
    if with_peft:
        modules = [site.module for site in work.sites if site.part in ("q", "v")]
        found += [
            Contender("PEFT LoRA", _peft("LoraConfig", modules, r=8, lora_alpha=16)),
            Contender("PEFT SHiRA", _peft("ShiraConfig", modules, r=8, random_seed=0)),
        ]
    return found


@contextlib.contextmanager
def _floor(work: Work) -> Iterator[Entered]:
    """Forward, and backward through every frozen layer: the embedded input asks for gradients."""
    model: Any = work.model
    model.enable_input_require_grads()
    try:
        yield Entered(model, 0)
    finally:
        model.disable_input_require_grads()


def _ours(method: Method) -> Callable[[Work], contextlib.AbstractContextManager[Entered]]:
    @contextlib.contextmanager
    def enter(work: Work) -> Iterator[Entered]:
        with backbones.recording_additions(work.model) as additions:
            method.attach(work.model)
        apet = pet.apet_of(method)
        fixed = {} if apet is None else apet.saved_positions()
        try:
            yield Entered(work.model, _file_bytes({**_trained(work.model), **fixed}))
        finally:
            backbones.detach(work.model, additions)
            work.model.requires_grad_(False)

    return enter


def _peft(
    config_class: str, modules: Sequence[str], **options: Any
) -> Callable[[Work], contextlib.AbstractContextManager[Entered]]:
    @contextlib.contextmanager
    def enter(work: Work) -> Iterator[Entered]:
        import peft

        config = getattr(peft, config_class)(target_modules=list(modules), **options)
        tuned: Any = peft.get_peft_model(work.model, config)
        state = peft.get_peft_model_state_dict(tuned, save_embedding_layers=False)
        try:
            yield Entered(tuned, _file_bytes(state))
        finally:
            tuned.unload()
            work.model.requires_grad_(False)

    return enter


def _trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().float() for name, p in model.named_parameters() if p.requires_grad}


def _file_bytes(tensors: Mapping[str, Tensor]) -> int:
    return len(safetensors.torch.save({n: t.contiguous().cpu() for n, t in tensors.items()}))
