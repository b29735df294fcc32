from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import transformers

from scalepet.backbones import Backbone, Site, match_sites, read_model_config, sketch_sites
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
