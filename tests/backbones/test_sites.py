from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest
import transformers

from scalepet.backbones import (
    Backbone,
    Part,
    Site,
    match_sites,
    read_model_config,
    sketch_sites,
)
from scalepet.errors import ConfigError

T5_BLOCK = "encoder.block.1.layer"


def sites_of(folder: Path, **options: Any) -> dict[str, Site]:
    config = read_model_config(Backbone(str(folder), **options))
    return {site.name: site for site in sketch_sites(config)}


@pytest.mark.parametrize("name", ["t5", "t5_own_head", "bert", "bert_without_pooler"])
def test_a_sketch_has_the_names_and_shapes_of_the_real_model(load: Any, name: str) -> None:
    loaded, config = load(name)
    real = {
        parameter_name: tuple(parameter.shape)
        for parameter_name, parameter in loaded.model.named_parameters()
        if not parameter_name.startswith(("classifier", "bert.pooler"))
    }
    assert {site.name: site.shape for site in sketch_sites(config)} == real
    assert len(real) > 30


def test_what_is_tied_is_one_site_and_an_own_head_is_another(folders: Path) -> None:
    tied, own = sites_of(folders / "t5"), sites_of(folders / "t5_own_head")
    assert [name for name in tied if "shared" in name or "lm_head" in name] == ["shared.weight"]
    assert not any("embed_tokens" in name for name in (*tied, *own))
    assert own["lm_head.weight"] == Site(
        "lm_head.weight", (48, 16), "embedding", "lm_head", "lm_head.weight"
    )
    assert "shared.weight" in own


def test_kinds_layers_and_roles_of_t5(folders: Path) -> None:
    sites = sites_of(folders / "t5")
    assert sites[f"{T5_BLOCK}.0.SelfAttention.q.weight"] == Site(
        f"{T5_BLOCK}.0.SelfAttention.q.weight",
        (16, 16),
        "matrix",
        "encoder.block.1",
        "encoder.block.layer.SelfAttention.q.weight",
        part="q",
        head_width=4,
    )
    assert sites[f"{T5_BLOCK}.1.DenseReluDense.wi.weight"].shape == (24, 16)
    assert sites[f"{T5_BLOCK}.0.layer_norm.weight"].kind == "norm"
    assert sites["shared.weight"].kind == "embedding"
    assert sites["decoder.final_layer_norm.weight"].layer == "decoder.final_layer_norm"
    # encoder: 2 blocks of q k v o wi wo; decoder: 3 blocks with cross-attention besides
    assert Counter(site.kind for site in sites.values()) == {
        "matrix": 2 * 6 + 3 * 10,
        "norm": 2 * 2 + 3 * 3 + 2,
        "embedding": 1 + 2,  # the table, and the relative positions of either first block
    }


def test_kinds_layers_and_roles_of_bert(folders: Path) -> None:
    sites = sites_of(folders / "bert", num_classes=3)
    assert not any("pooler" in name or "classifier" in name for name in sites)
    query = sites["bert.encoder.layer.1.attention.self.query.bias"]
    assert (query.kind, query.layer) == ("bias", "bert.encoder.layer.1")
    assert query.role == "bert.encoder.layer.attention.self.query.bias"
    # a layer: q k v o, two of the feed-forward, and two norms, each with a bias
    assert Counter(site.kind for site in sites.values()) == {
        "matrix": 2 * 6,
        "norm": 2 * 2 + 1,
        "bias": 2 * 8 + 1,
        "embedding": 3,
    }


def parts_of(sites: dict[str, Site]) -> dict[Part | None, list[str]]:
    """Names of weights by their part."""
    found: dict[Part | None, list[str]] = {}
    for site in sites.values():
        found.setdefault(site.part, []).append(site.name)
    return found


@pytest.mark.parametrize(("name", "into"), [("t5", ["wi"]), ("t5-gated", ["wi_0", "wi_1"])])
def test_parts_of_t5(tiny_backbones: Path, name: str, into: list[str]) -> None:
    sites = sites_of(tiny_backbones / name)
    found = parts_of(sites)
    attentions = [
        "encoder.block.{}.layer.0.SelfAttention",
        "decoder.block.{}.layer.0.SelfAttention",
        "decoder.block.{}.layer.1.EncDecAttention",
    ]
    expected = {
        letter: {f"{path.format(i)}.{letter}.weight" for path in attentions for i in range(2)}
        for letter in "qkvo"
    }
    dense = ["encoder.block.{}.layer.1", "decoder.block.{}.layer.2"]
    dense = [f"{path.format(i)}.DenseReluDense" for path in dense for i in range(2)]
    expected["ffn_in"] = {f"{path}.{matrix}.weight" for path in dense for matrix in into}
    expected["ffn_out"] = {f"{path}.wo.weight" for path in dense}
    assert {part: set(names) for part, names in found.items() if part is not None} == expected
    kinds = {sites[name].kind for name in found[None]}
    assert kinds == {"embedding", "norm"}  # every matrix has a part
    assert sites["encoder.block.1.layer.0.SelfAttention.q.weight"].module.endswith("Attention.q")


BERT_PARTS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "ffn_in": "intermediate.dense",
    "ffn_out": "output.dense",
}
VIT_PARTS = {
    "q": "attention.q_proj",
    "k": "attention.k_proj",
    "v": "attention.v_proj",
    "o": "attention.o_proj",
    "ffn_in": "mlp.fc1",
    "ffn_out": "mlp.fc2",
}


@pytest.mark.parametrize(
    ("name", "layers", "parts"),
    [("bert", "bert.encoder.layer", BERT_PARTS), ("vit", "vit.layers", VIT_PARTS)],
)
def test_parts_of_encoders_are_weights_alone(
    tiny_backbones: Path, name: str, layers: str, parts: dict[str, str]
) -> None:
    sites = sites_of(tiny_backbones / name)
    found = parts_of(sites)
    found.pop(None)
    assert found == {
        part: [f"{layers}.{i}.{module}.weight" for i in range(2)] for part, module in parts.items()
    }
    assert all(site.part is None for site in sites.values() if site.kind != "matrix")


@pytest.mark.parametrize("name", ["t5", "t5-gated", "bert", "vit"])
def test_only_attention_has_heads(tiny_backbones: Path, name: str) -> None:
    sites = sites_of(tiny_backbones / name).values()
    assert all(site.head_width == 6 for site in sites if site.part in ("q", "k", "v", "o"))
    assert all(site.head_width is None for site in sites if site.part not in ("q", "k", "v", "o"))


def test_the_width_of_a_head_of_t5_is_its_own(folders: Path, tmp_path: Path) -> None:
    """Heads times width need not be the width of the model."""
    config = transformers.T5Config.from_pretrained(folders / "t5", d_kv=10)
    config.save_pretrained(tmp_path)
    query = sites_of(tmp_path / "config.json", random_start=True)[
        f"{T5_BLOCK}.0.SelfAttention.q.weight"
    ]
    assert (query.shape, query.head_width) == ((40, 16), 10)


def test_kinds_layers_and_roles_of_vit(tiny_backbones: Path) -> None:
    sites = sites_of(tiny_backbones / "vit", num_classes=3)
    assert not any("classifier" in name or "pooler" in name for name in sites)
    embeddings = {name: site for name, site in sites.items() if "embeddings" in name}
    kinds = {name.removeprefix("vit.embeddings."): s.kind for name, s in embeddings.items()}
    assert kinds == {
        "cls_token": "embedding",
        "position_embeddings": "embedding",
        "patch_embeddings.projection.weight": "matrix",
        "patch_embeddings.projection.bias": "bias",
    }
    patches = sites["vit.embeddings.patch_embeddings.projection.weight"]
    assert (patches.shape, patches.part, patches.head_width) == ((24, 3, 8, 8), None, None)
    scale = sites["vit.layers.1.layernorm_after.weight"]
    assert (scale.kind, scale.layer) == ("norm", "vit.layers.1")
    assert scale.role == "vit.layers.layernorm_after.weight"
    # a layer: q k v o, two of the feed-forward, and two norms, each with a bias
    assert Counter(site.kind for site in sites.values()) == {
        "matrix": 2 * 6 + 1,
        "norm": 2 * 2 + 1,
        "bias": 2 * 8 + 2,
        "embedding": 2,
    }


def test_the_sites_of_t5_xxl_are_known_in_a_moment_and_without_memory() -> None:
    config = transformers.T5Config(
        vocab_size=32128,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    started = time.perf_counter()
    sites = sketch_sites(config)
    assert time.perf_counter() - started < 10
    assert sum(site.numel for site in sites) == 11_135_332_352  # google/t5-v1_1-xxl


def test_patterns_choose_and_exclude(folders: Path) -> None:
    sites = list(sites_of(folders / "t5").values())
    chosen = match_sites(
        sites, kinds=["matrix"], include=["*SelfAttention.[qv].weight"], exclude=["encoder.*"]
    )
    assert [site.name for site in chosen] == [
        f"decoder.block.{layer}.layer.0.SelfAttention.{matrix}.weight"
        for layer in range(3)
        for matrix in "qv"
    ]
    assert match_sites(sites) == tuple(sites)


def test_parts_choose(folders: Path) -> None:
    sites = list(sites_of(folders / "t5").values())
    chosen = match_sites(sites, parts=["v", "ffn_out"], include=["encoder.*"])
    assert [site.name for site in chosen] == [
        f"encoder.block.{layer}.layer.{matrix}.weight"
        for layer in range(2)
        for matrix in ("0.SelfAttention.v", "1.DenseReluDense.wo")
    ]
    num_parts = sum(site.part is not None for site in sites)
    assert len(match_sites(sites, parts=get_args(Part))) == num_parts == 2 * 6 + 3 * 10
    assert match_sites(sites, parts=None) == tuple(sites)


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        ({"include": ["*.query.*"]}, ["include", "'*.query.*'", "60 tensors", "SelfAttention.q"]),
        ({"exclude": ["nothing"]}, ["exclude", "'nothing'", "60 tensors"]),
        (
            {"include": ["no", "neither", "*"], "exclude": ["nor"]},
            ["'no'", "'neither'", "'nor'"],
        ),
        ({"kinds": ["bias"]}, ["kind bias"]),
        ({"kinds": ["norm"], "include": ["*.q.weight"]}, ["kind norm", "*.q.weight", "layer_norm"]),
        ({"include": ["*"], "exclude": ["*"]}, ["exclude ['*']"]),
        ({"kinds": []}, ["of no kind"]),
        ({"parts": []}, ["part (none given)"]),
        ({"parts": ["q", "v"], "kinds": ["norm"]}, ["kind norm and part q or v", "layer_norm"]),
        ({"parts": ["q"], "include": ["*.wo.weight"]}, ["part q", "*.wo.weight"]),
        ({"parts": ["q"], "include": ["*.nothing"]}, ["the include pattern '*.nothing'"]),
    ],
)
def test_a_choice_of_nothing_is_refused_with_names_that_exist(
    folders: Path, options: dict[str, Any], fragments: list[str]
) -> None:
    sites = list(sites_of(folders / "t5").values())
    assert len(sites) == 60
    with pytest.raises(ConfigError) as caught:
        match_sites(sites, **options)
    for fragment in fragments:
        assert fragment in str(caught.value)
