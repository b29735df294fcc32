"""PEFT's files (github.com/huggingface/peft, 0.21): what scalepet trained in them, and back.

Everything is names and shapes: PEFT itself is not needed. A file that PEFT would read as something
else than what was trained is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scalepet.errors import CheckpointError
from scalepet.masks import mask_of_positions
from scalepet.pet.add import Apet
from scalepet.pet.calibration import scaled_in
from scalepet.pet.ia3 import Ia3, factors_of
from scalepet.pet.lora import Lora
from scalepet.pet.method import Method
from scalepet.pet.peft_config import config_faults
from scalepet.pet.prefix import PrefixTuning
from scalepet.pet.prompt import PromptTuning

_BASE = "base_model.model."
_HEADS = ("classifier", "score")
"""What PEFT takes for the head of a classifier without being told."""
_INDICES = ".shira_indices"
_OF_LAYERS = (".lora_", ".ia3_l", ".shira_")
"""What stands behind the name of a module that is adapted."""


@dataclass(frozen=True)
class PeftAdapter:
    """What PEFT keeps in ``adapter_config.json`` and ``adapter_model.safetensors``."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def to_peft(
    method: Method, trained: Mapping[str, Tensor], *, head: Mapping[str, Tensor], is_t5: bool
) -> PeftAdapter:
    """The adapter as PEFT has it. The scales of a calibrated method are multiplied into what they
    scale; PEFT has none.

    Args:
        trained: of the method, by name.
        head: of the task, and what else is kept whole of the backbone, by name.
        is_t5: the backbone reads with an encoder and writes with a decoder.

    Raises:
        CheckpointError: PEFT has no such method, or has it in another meaning.
    """
    for kind, write in _WRITERS.items():
        if isinstance(method, kind):
            config, tensors = write(method, trained, is_t5)
            break
    else:
        raise CheckpointError(
            f"PEFT has nothing like {type(method).__name__}; allowed: one method of lora, ia3,"
            " prompt (T5), prefix (BERT) and apet on linear layers (SHiRA)"
        )
    modules = sorted({name.rpartition(".")[0] for name in head})
    if modules and isinstance(method, PrefixTuning):
        # PEFT wraps the head of a prompt-like method by itself, under names of its own.
        config["task_type"] = "SEQ_CLS"
        config["modules_to_save"] = [module for module in modules if module not in _HEADS] or None
        tensors |= {f"base_model.{name}": tensor for name, tensor in head.items()}
    elif modules:
        config["modules_to_save"] = modules
        tensors |= {f"{_BASE}{name}": tensor for name, tensor in head.items()}
    return PeftAdapter({**config, "inference_mode": True}, tensors)


def from_peft(
    method: Method,
    adapter: PeftAdapter,
    *,
    shapes: Callable[[Method], Mapping[str, tuple[int, ...]]],
    head_names: Collection[str],
    is_t5: bool,
) -> tuple[Method, dict[str, Tensor]]:
    """The method (with its mask) and what is trained of it and of the head, as scalepet has them.

    Args:
        method: as planned for the backbone.
        shapes: method -> full shapes of all that is trained with it, by name.
        head_names: which of these belong to the task.

    Raises:
        CheckpointError: the file is of another method or other settings, or lacks tensors; every
            difference is listed.
    """
    if _is_calibrated(method):
        raise CheckpointError(
            "calibrated: true, but PEFT has no scales; allowed: calibrated: false (and for lora the"
            " alpha of the file), which computes the same"
        )
    if isinstance(method, Apet):
        method, adapter = _with_shira_mask(method, adapter)
    codes = _numbered(shapes(method))
    head = {name: codes[name] for name in head_names}
    tuned = {name: tensor for name, tensor in codes.items() if name not in head}
    ours = to_peft(method, tuned, head=head, is_t5=is_t5)
    modules = {m for name in adapter.tensors if (m := _module_of(name)) is not None}
    faults = [
        *config_faults(ours.config, adapter.config, modules=modules),
        *_tensor_faults(ours, adapter),
    ]
    if faults:
        raise CheckpointError(faults)
    # Where a number lands on its way out is where it is found on its way back.
    found = torch.zeros(1 + sum(tensor.numel() for tensor in codes.values()))
    for name, numbers in ours.tensors.items():
        if not name.endswith(_INDICES):
            found[numbers.long().flatten()] = adapter.tensors[name].float().flatten()
    return method, {name: found[numbers.long()] for name, numbers in codes.items()}


def _is_calibrated(method: Any) -> bool:
    return bool(getattr(method, "options", {}).get("calibrated"))


def _numbered(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors that hold 1, 2, 3 ... from the first one to the last one, in fp64, which is exact."""
    numbered, first = {}, 1
    for name, shape in shapes.items():
        size = math.prod(shape)
        numbered[name] = torch.arange(first, first + size, dtype=torch.float64).view(shape)
        first += size
    return numbered


def _module_of(name: str) -> str | None:
    """The module that a tensor of the file changes; None where it is one that was saved whole."""
    for what in _OF_LAYERS:
        if what in name:
            return name.removeprefix(_BASE).partition(what)[0]
    return None


def _tensor_faults(ours: PeftAdapter, theirs: PeftAdapter) -> Iterator[str]:
    for name in sorted(ours.tensors.keys() | theirs.tensors.keys()):
        shapes = [
            tuple(adapter.tensors[name].shape) if name in adapter.tensors else None
            for adapter in (theirs, ours)
        ]
        if shapes[0] != shapes[1]:
            yield f"adapter_model.safetensors: {name} is {shapes[0]}; allowed: {shapes[1]}"


def _lora(method: Lora, trained: Mapping[str, Tensor], is_t5: bool) -> Any:
    config = {
        "peft_type": "LORA",
        "r": method.r,
        "lora_alpha": method.r if _is_calibrated(method) else method.options["alpha"],
        "use_rslora": method.options["rslora"],
        "target_modules": [site.module for site in method.sites],
    }
    names = [f"{site.module}.{what}" for site in method.sites for what in ("lora_A", "lora_B")]
    return config, {f"{_BASE}{name}.weight": scaled_in(trained, name) for name in names}


def _ia3(method: Ia3, trained: Mapping[str, Tensor], is_t5: bool) -> Any:
    inputs = [site.module for site in method.sites if site.part == "ffn_out"]
    config = {
        "peft_type": "IA3",
        "target_modules": [site.module for site in method.sites],
        "feedforward_modules": inputs,
    }
    factors = {
        site: factors_of(trained[f"{site.module}.ia3"], trained.get(f"{site.module}.ia3_scale"))
        for site in method.sites
    }
    return config, {
        f"{_BASE}{site.module}.ia3_l": learnt.unsqueeze(0 if site.part == "ffn_out" else 1)
        for site, learnt in factors.items()
    }


def _prompt(method: PromptTuning, trained: Mapping[str, Tensor], is_t5: bool) -> Any:
    if not is_t5:
        raise CheckpointError(
            "prompt: PEFT puts a prompt in front of the class token and takes the class from its"
            " first row; allowed: T5"
        )
    config = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "SEQ_2_SEQ_LM",
        "num_virtual_tokens": method.length,
        "num_transformer_submodules": 1,
    }
    return config, {"prompt_embeddings": scaled_in(trained, "prompt.rows")}


def _prefix(method: PrefixTuning, trained: Mapping[str, Tensor], is_t5: bool) -> Any:
    if is_t5:
        raise CheckpointError(
            "prefix: PEFT gives the slots of a T5 the position bias of tokens and has none in"
            " encoder and cross attention; allowed: BERT"
        )
    if _is_calibrated(method):
        raise CheckpointError(
            "prefix: calibrated: true lets the slots add all that they hold, however little of the"
            " attention goes to them, which PEFT cannot; allowed: calibrated: false"
        )
    width = method.sites[0].shape[0]
    head_width = method.sites[0].head_width
    assert head_width is not None
    config = {
        "peft_type": "PREFIX_TUNING",
        "task_type": "FEATURE_EXTRACTION",
        "num_virtual_tokens": method.length,
        "num_transformer_submodules": 1,
        "num_layers": len(method.sites),
        "token_dim": width,
        "num_attention_heads": width // head_width,
    }
    slots = [
        trained[f"{site.module.rpartition('.')[0]}.prefix.{what}"]
        for site in method.sites
        for what in ("keys", "values")
    ]
    return config, {"prompt_embeddings": torch.cat(slots, dim=1)}


def _shira(method: Apet, trained: Mapping[str, Tensor], is_t5: bool) -> Any:
    """PEFT wants r (rows + columns) entries of every layer: what is missing are zeros at the last
    position that is there.
    """
    assert method.mask is not None
    kinds = {site.name: site.kind for site in method.eligible}
    odd = [name for name in method.mask.positions if kinds[name] != "matrix"]
    if odd:
        raise CheckpointError(f"apet: SHiRA has linear layers only, not {odd[0]}; allowed: matrix")
    ranks, tensors = {}, {}
    for name, positions in method.mask.positions.items():
        ranks[name] = -(-positions.size // sum(method.mask.shapes[name]))
    r = max(ranks.values())
    for name, positions in method.mask.positions.items():
        rows, columns = method.mask.shapes[name]
        size, module = r * (rows + columns), f"{_BASE}{name.removesuffix('.weight')}"
        if size > rows * columns:
            raise CheckpointError(
                f"apet: SHiRA needs {size:,} entries of {name}, which has {rows * columns:,};"
                " allowed: a smaller budget"
            )
        where = torch.full((size,), int(positions[-1]), dtype=torch.int64)
        where[: positions.size] = torch.from_numpy(positions)
        ours = scaled_in(trained, f"{name}_values")
        values = ours.new_zeros(size)
        values[: positions.size] = ours
        tensors[f"{module}.shira_weight"] = values
        tensors[f"{module}.shira_indices"] = torch.stack([where // columns, where % columns]).int()
    modules = [name.removesuffix(".weight") for name in method.mask.positions]
    return {"peft_type": "SHIRA", "r": r, "target_modules": modules}, tensors


_WRITERS: dict[type[Any], Callable[..., Any]] = {
    Lora: _lora,
    Ia3: _ia3,
    PromptTuning: _prompt,
    PrefixTuning: _prefix,
    Apet: _shira,
}


def _with_shira_mask(method: Apet, adapter: PeftAdapter) -> tuple[Apet, PeftAdapter]:
    """The method with the positions of the file, and the file as ``_shira`` would write it: sorted,
    with entries that stand twice added up.
    """
    positions, values = {}, {}
    for key, indices in adapter.tensors.items():
        name = f"{key.removeprefix(_BASE).removesuffix(_INDICES)}.weight"
        if not key.endswith(_INDICES) or name not in method.shapes:
            continue
        flat = indices[0].long() * method.shapes[name][1] + indices[1].long()
        where, slots, times = flat.unique(return_inverse=True, return_counts=True)
        weight = adapter.tensors[key.removesuffix(_INDICES) + ".shira_weight"].float()
        summed = torch.zeros(len(where)).index_add(0, slots, weight)
        # Where other places are masked, zeros that stand at (0, 0) several times fill up the layer.
        is_filling = (where == 0) & (times > 1) & (summed == 0) & (len(where) > 1)
        positions[name] = where[~is_filling].numpy()
        values[f"{name}_values"] = summed[~is_filling]
    found = {name: method.shapes[name] for name in positions}
    known = method.with_mask(mask_of_positions(positions, shapes=found))
    config, tensors = _shira(known, values, is_t5=False)
    others = {name: t for name, t in adapter.tensors.items() if ".shira_" not in name}
    return known, PeftAdapter({**adapter.config, "r": config["r"]}, {**tensors, **others})
