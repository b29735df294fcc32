"""Losses, label words and texts against plain teacher-forced models of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scalepet.backbones import (
    Backbone,
    classify,
    family_of,
    load_model,
    read_model_config,
    score_label_words,
    write_text,
)
from scalepet.backbones.families import _shift_right

T5S = ("t5", "t5_own_head")
LABEL_WORDS = [np.array(ids, dtype=np.int32) for ids in ([9, 1], [8, 7, 3, 1], [4, 1], [1])]


@pytest.fixture(params=T5S)
def t5(request: pytest.FixtureRequest, load: Any) -> Any:
    """A T5 in evaluation and its config, tied and with its own head."""
    loaded, config = load(request.param)
    return loaded.model.eval(), config


@pytest.fixture
def bert(load: Any, tensors: dict[str, Tensor]) -> Any:
    loaded, config = load("bert")
    return loaded.model.eval(), config, {**tensors, "labels": torch.tensor([0, 2, 1])}


def test_both_kinds_of_t5_are_tested(load: Any) -> None:
    """v1.0 scales the decoder's output and ties, v1.1 does neither."""
    scales = [load(name)[1].scale_decoder_outputs for name in T5S]
    heads = [load(name)[0].model.lm_head.weight is not None for name in T5S]
    assert scales == [True, False]
    assert heads == [True, True]


def test_decoder_inputs_are_those_of_transformers(t5: Any, tensors: dict[str, Tensor]) -> None:
    model, config = t5
    labels = tensors["labels"]
    assert torch.equal(
        _shift_right(labels, config), model.prepare_decoder_input_ids_from_labels(labels)
    )


def test_a_start_token_of_its_own_comes_first(load: Any) -> None:
    _, config = load("t5")
    config.decoder_start_token_id, config.pad_token_id = 7, 5
    assert _shift_right(torch.tensor([[3, -100, 4]]), config).tolist() == [[7, 3, 5]]


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_loss_sum_of_t5_is_the_mean_of_transformers_times_the_targets(
    load: Any, tensors: dict[str, Tensor], mode: str
) -> None:
    for name in T5S:
        loaded, config = load(name, dropout=0.0)
        getattr(loaded.model, mode)()
        expected = loaded.model(**tensors).loss * 6
        loss_sum = family_of(config).loss_sum(loaded.model, tensors, config=config)
        torch.testing.assert_close(loss_sum, expected)


def test_the_loss_sum_of_bert_is_the_mean_of_transformers_times_the_rows(bert: Any) -> None:
    model, config, tensors = bert
    loss_sum = family_of(config).loss_sum(model, tensors, config=config)
    torch.testing.assert_close(loss_sum, model(**tensors).loss * 3)
    torch.testing.assert_close(
        classify(model, tensors),
        model(input_ids=tensors["input_ids"], attention_mask=tensors["attention_mask"]).logits,
    )


def test_a_batch_without_targets_has_no_loss_and_no_gradient(load: Any) -> None:
    ids = torch.tensor([[3]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for name, labels in (("t5", [[-100]]), ("bert", [-100])):
        loaded, config = load(name)
        model = loaded.model.requires_grad_(True)
        tensors = {**batch, "labels": torch.tensor(labels)}
        loss = family_of(config).loss_sum(model, tensors, config=config)
        loss.backward()
        assert loss == 0
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert gradients
        assert all((gradient == 0).all() for gradient in gradients)


def test_the_loss_is_fp32_in_a_bf16_model(load: Any, tensors: dict[str, Tensor]) -> None:
    loaded, config = load("t5")
    model = loaded.model.to(torch.bfloat16).eval()
    loss = family_of(config).loss_sum(model, tensors, config=config)
    logits = model(**tensors).logits.float()
    expected = F.cross_entropy(logits.flatten(0, 1), tensors["labels"].flatten(), reduction="sum")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)


@torch.no_grad()
def test_label_words_score_as_full_teacher_forced_answers(
    t5: Any, tensors: dict[str, Tensor]
) -> None:
    model, config = t5
    scores = score_label_words(model, tensors, LABEL_WORDS, config=config)
    assert scores.shape == (3, 4)
    for row in range(3):
        length = int(tensors["attention_mask"][row].sum())
        source = tensors["input_ids"][row : row + 1, :length]  # alone, so without padding
        for column, ids in enumerate(LABEL_WORDS):
            target = torch.tensor(ids[None].astype(np.int64))
            log_probabilities = model(input_ids=source, labels=target).logits.log_softmax(-1)
            expected = sum(log_probabilities[0, i, token] for i, token in enumerate(target[0]))
            torch.testing.assert_close(scores[row, column], expected, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_a_label_word_scores_minus_its_loss(t5: Any, tensors: dict[str, Tensor]) -> None:
    model, config = t5
    scores = score_label_words(model, tensors, LABEL_WORDS, config=config)
    for column, ids in enumerate(LABEL_WORDS):
        labels = torch.tensor(ids.astype(np.int64)).repeat(3, 1)
        batch = {**tensors, "labels": labels}
        loss = family_of(config).loss_sum(model, batch, config=config)
        torch.testing.assert_close(scores[:, column].sum(), -loss)
        torch.testing.assert_close(model(**batch).loss * labels.numel(), loss)


@torch.no_grad()
def greedy(model: Any, tensors: dict[str, Tensor], num_tokens: int) -> list[list[int]]:
    """The most probable next token, again and again, each time from the whole row."""
    answers = []
    for ids, mask in zip(tensors["input_ids"], tensors["attention_mask"], strict=True):
        answer = [0]
        while len(answer) <= num_tokens and answer[-1] != 1:
            logits = model(
                input_ids=ids[None, mask.bool()],
                decoder_input_ids=torch.tensor([answer]),
                use_cache=False,
            ).logits
            answer.append(int(logits[0, -1].argmax()))
        answers.append(answer)
    return answers


@pytest.mark.parametrize("num_beams", [1, 3])
def test_written_texts_are_the_same_with_and_without_cache(
    t5: Any, tensors: dict[str, Tensor], num_beams: int
) -> None:
    model, _ = t5
    cached, uncached = (
        write_text(model, tensors, max_new_tokens=9, num_beams=num_beams, use_cache=use_cache)
        for use_cache in (True, False)
    )
    assert torch.equal(cached, uncached)
    if num_beams == 1:
        expected = greedy(model, tensors, 9)
        assert len({tuple(answer) for answer in expected}) > 1
        for row, answer in zip(cached.tolist(), expected, strict=True):
            assert row == answer + [0] * (len(row) - len(answer))


def test_texts_end_where_the_longest_is_allowed_to(load: Any, tensors: dict[str, Tensor]) -> None:
    loaded, _ = load("t5")
    assert write_text(loaded.model.eval(), tensors, max_new_tokens=2).shape[1] <= 3


def test_a_random_start_can_write(folders: Any, load: Any, tensors: dict[str, Tensor]) -> None:
    loaded, _ = load("t5/config.json", random_start=True)
    assert write_text(loaded.model.eval(), tensors, max_new_tokens=3).shape[0] == 3


def test_the_loss_sum_of_vit_is_the_mean_of_transformers_times_the_rows(
    tiny_backbones: Path,
) -> None:
    backbone = Backbone(str(tiny_backbones / "vit"), num_classes=3)
    config = read_model_config(backbone)
    model = load_model(backbone, config, dtype=torch.float32).model.eval()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(4, 3, 16, 16, generator=generator)
    tensors = {"pixel_values": pixels, "labels": torch.tensor([0, 2, 1, 2])}
    loss_sum = family_of(config).loss_sum(model, tensors, config=config)
    torch.testing.assert_close(loss_sum, model(**tensors).loss * 4)
    assert torch.equal(classify(model, tensors), model(pixel_values=pixels).logits)
    half = model.to(torch.bfloat16)
    expected = half(pixel_values=pixels.to(torch.bfloat16)).logits
    assert torch.equal(classify(half, tensors), expected), "pixels come in fp32"
