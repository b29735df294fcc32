"""Answers for every row, in one process and over sharded ranks. This file is also the worker.

As a script: ``test_evaluate.py '{"folders": {...}, "out": ...}'``, on every rank.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalepet import backbones, dist, engine
from scalepet.backbones import Backbone
from scalepet.data import FILLER, IGNORED, Batch, Encoded, EvalLoader, Form
from scalepet.engine import Answerer, Answers, answer_all

FORMS: tuple[Form, ...] = ("head", "label_words", "text")
BACKBONES = {"head": "bert", "label_words": "t5", "text": "t5-talking"}
LABELS = ("yes", "no", "maybe")
LABEL_IDS = [np.array(ids, dtype=np.int32) for ids in ([7, 1], [9, 12, 4, 1], [30, 1])]
NUM_ROWS, MAX_NEW_TOKENS = 12, 12
START, END = 0, 1


@dataclass(frozen=True)
class Case:
    """Rows that are answered over two ranks."""

    form: Form
    num_rows: int
    micro_batch_size: int
    labelled: bool = True
    num_beams: int = 1


SIZES = {(12, 4): False, (5, 2): True, (3, 1): True, (1, 4): True}
"""(rows, micro-batch size) -> whether rank 1 of 2 gets a filler."""
CASES = {
    f"{form}, {num_rows} rows by {size}": Case(form, num_rows, size)
    for form in FORMS
    for num_rows, size in SIZES
} | {
    "head without labels": Case("head", 3, 1, labelled=False),
    "label words without labels": Case("label_words", 3, 1, labelled=False),
    "text without labels": Case("text", 3, 1, labelled=False),
    "text with beams": Case("text", 5, 2, num_beams=3),
}


def make_rows(form: Form, num_rows: int = NUM_ROWS, *, labelled: bool = True) -> Encoded:
    """The first rows of a split of unequal lengths, the same everywhere."""
    generator = np.random.default_rng(5)
    lengths = generator.integers(3, 9, (NUM_ROWS, 2))
    sources = [generator.integers(2, 60, n).astype(np.int32) for n in lengths[:, 0]][:num_rows]
    texts = [generator.integers(2, 60, n).astype(np.int32) for n in lengths[:, 1]][:num_rows]
    classes = generator.integers(0, len(LABELS), NUM_ROWS).astype(np.int32)[:num_rows]
    targets = {
        "head": list(classes[:, None]),
        "label_words": [LABEL_IDS[index] for index in classes],
        "text": texts,
    }[form]
    return Encoded(
        form,
        sources,
        targets if labelled else [np.array([IGNORED], dtype=np.int32)] * num_rows,
        classes=classes if labelled and form != "text" else None,
        label_ids=LABEL_IDS if form == "label_words" else None,
    )


def decode(ids: Tensor) -> list[str]:
    """Token numbers up to the first end token, without the start token."""
    texts = []
    for row in ids.tolist():
        assert row[0] == START
        end = row.index(END) if END in row else len(row)
        texts.append(" ".join(map(str, row[1 : end + 1])))
    return texts


def load(form: Form, folder: str) -> tuple[nn.Module, Any]:
    """A model that would drop out, and its config."""
    backbone = Backbone(
        folder, num_classes=len(LABELS) if form == "head" else None, dropout=0.3, seed=1
    )
    config = backbones.read_model_config(backbone)
    return backbones.load_model(backbone, config, dtype=torch.float32).model.train(), config


def answer(
    model: nn.Module,
    config: Any,
    encoded: Encoded,
    *,
    micro_batch_size: int,
    num_beams: int = 1,
    **options: Any,
) -> Answers:
    answerer = Answerer(
        labels=LABELS,
        loss_sum=partial(backbones.family_of(config).loss_sum, config=config),
        class_scores=partial(backbones.class_scores, config=model.config),
        decode=decode,
        max_new_tokens=MAX_NEW_TOKENS,
        num_beams=num_beams,
        all_ranks_together=dist.world_size() > 1,
    )
    device = torch.device("cpu")
    return answer_all(
        model,
        encoded,
        answerer,
        micro_batch_size=micro_batch_size,
        pad_id=0,
        device=device,
        **options,
    )


@pytest.fixture(scope="session")
def folders(tiny_backbones: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where the backbones lie; t5-talking ends its texts early or late, row by row."""
    talking = tmp_path_factory.mktemp("talking")
    random = Backbone(str(tiny_backbones / "t5-gated" / "config.json"), random_start=True, seed=0)
    config = backbones.read_model_config(random)
    model: Any = backbones.load_model(random, config, dtype=torch.float32).model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("decoder.block") and parameter.ndim == 2:
                parameter.mul_(3.0)
        model.lm_head.weight[END].mul_(2.0)
    model.save_pretrained(talking)
    places = {name: str(tiny_backbones / name) for name in ("bert", "t5")}
    return {**places, "t5-talking": str(talking)}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small only wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


LoadModel = Any


@pytest.fixture(scope="session")
def load_once(folders: dict[str, str]) -> LoadModel:
    return cache(lambda form: load(form, folders[BACKBONES[form]]))


@torch.no_grad()
def loss_of(model: nn.Module, source: Tensor, target: Sequence[int]) -> float:
    """Cross-entropy of one target after one source, alone and without a mask."""
    decoder_inputs = torch.tensor([[START, *target[:-1]]])
    logits = model(input_ids=source[None], decoder_input_ids=decoder_inputs).logits[0]
    return float(F.cross_entropy(logits.double(), torch.tensor(target), reduction="sum"))


@torch.no_grad()
def text_of(model: nn.Module, source: Tensor) -> str:
    """The most probable next token, one by one, with a whole forward for each."""
    ids = [START]
    while len(ids) <= MAX_NEW_TOKENS and ids[-1] != END:
        decoder_inputs = torch.tensor([ids])
        logits = model(input_ids=source[None], decoder_input_ids=decoder_inputs).logits
        ids.append(int(logits[0, -1].argmax()))
    return " ".join(map(str, ids[1:]))


@torch.no_grad()
def answer_row_by_row(model: nn.Module, encoded: Encoded) -> Answers:
    """The same with plain loops over rows: no batch, no padding, no mask, no cache."""
    model.eval()
    texts, losses, num_targets = [], [], 0
    for row in range(encoded.num_rows):
        source = torch.from_numpy(encoded.input_ids[row]).long()
        target = encoded.targets[row].tolist()
        if encoded.form == "text":
            texts.append(text_of(model, source))
            losses.append(loss_of(model, source, target))
        elif encoded.form == "label_words":
            word_losses = [loss_of(model, source, ids.tolist()) for ids in LABEL_IDS]
            texts.append(LABELS[int(np.argmin(word_losses))])
            losses.append(loss_of(model, source, target))
        else:
            logits = model(input_ids=source[None]).logits.double()
            texts.append(LABELS[int(logits.argmax())])
            losses.append(float(F.cross_entropy(logits, torch.tensor(target))))
        num_targets += len(target)
    return Answers(texts, sum(losses) / num_targets)


@pytest.fixture(scope="session")
def row_by_row(load_once: LoadModel) -> Any:
    return cache(lambda form: answer_row_by_row(load_once(form)[0], make_rows(form)))


class TestOneProcess:
    @pytest.mark.parametrize("micro_batch_size", [1, 3, 100])
    @pytest.mark.parametrize("form", FORMS)
    def test_equals_a_loop_over_rows(
        self, form: Form, micro_batch_size: int, load_once: LoadModel, row_by_row: Any
    ) -> None:
        model, config = load_once(form)
        model.train()
        found = answer(model, config, make_rows(form), micro_batch_size=micro_batch_size)
        assert found.texts == row_by_row(form).texts
        assert found.loss == pytest.approx(row_by_row(form).loss, abs=1e-5)
        assert not model.training

    @pytest.mark.parametrize("form", FORMS)
    def test_without_labels(self, form: Form, load_once: LoadModel, row_by_row: Any) -> None:
        model, config = load_once(form)
        encoded = make_rows(form, labelled=False)
        found = answer(model, config, encoded, micro_batch_size=5)
        assert found == Answers(row_by_row(form).texts, None)

    def test_the_rows_ask_for_something(self, row_by_row: Any) -> None:
        """Otherwise the comparisons above would hold for any answers."""
        assert len(set(row_by_row("head").texts)) > 1
        assert len(set(row_by_row("label_words").texts)) > 1
        lengths = {len(text.split()) for text in row_by_row("text").texts}
        assert len(lengths) > 3 and max(lengths) > 2 * min(lengths)

    def test_beams_do_not_depend_on_the_batch(self, load_once: LoadModel, row_by_row: Any) -> None:
        model, config = load_once("text")
        alone, together = (
            answer(model, config, make_rows("text"), micro_batch_size=size, num_beams=3)
            for size in (1, 5)
        )
        assert alone.texts == together.texts != row_by_row("text").texts
        assert alone.loss == pytest.approx(row_by_row("text").loss, abs=1e-5)

    def test_no_gradients_are_kept(self, load_once: LoadModel) -> None:
        model, config = load_once("head")
        model.requires_grad_(True)
        seen = []
        hook = model.register_forward_hook(
            lambda module, inputs, output: seen.append(output.logits.requires_grad)
        )
        answer(model, config, make_rows("head", 2), micro_batch_size=1)
        hook.remove()
        model.requires_grad_(False)
        assert seen == [False, False]

    def test_progress_is_told_of_every_batch(self, load_once: LoadModel) -> None:
        seen: list[Any] = []

        def track(batches: Iterable[Batch], total: int) -> Iterable[Batch]:
            seen.append(total)
            for batch in batches:
                seen.append(batch.rows.tolist())
                yield batch

        model, config = load_once("head")
        answer(model, config, make_rows("head", 5), micro_batch_size=2, track=track)
        assert seen[0] == len(seen) - 1 == 3
        assert sorted(row for rows in seen[1:] for row in rows) == [0, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def answers_of_ranks(
    folders: dict[str, str], run_ranks: Any, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Answers]]:
    """What each of two ranks that share one backbone said."""
    out = tmp_path_factory.mktemp("answers")
    argument = {"folders": folders, "out": str(out)}
    run_ranks(Path(__file__), argument, num_ranks=2, timeout_seconds=100)
    contents = [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]
    return [{name: Answers(**found) for name, found in content.items()} for content in contents]


@pytest.mark.distributed
@pytest.mark.timeout(150)
class TestTwoShardedRanks:
    @pytest.mark.parametrize("name", CASES)
    def test_equal_one_process(
        self, name: str, answers_of_ranks: list[dict[str, Answers]], load_once: LoadModel
    ) -> None:
        case = CASES[name]
        expected = answer(
            *load_once(case.form),
            make_rows(case.form, case.num_rows, labelled=case.labelled),
            micro_batch_size=case.micro_batch_size,
            num_beams=case.num_beams,
        )
        first, second = (answers[name] for answers in answers_of_ranks)
        assert first == second
        assert first.texts == expected.texts
        if case.labelled:
            assert first.loss == pytest.approx(expected.loss, rel=1e-5)
        else:
            assert first.loss is expected.loss is None

    @pytest.mark.parametrize(("size", "expected"), SIZES.items(), ids=str)
    def test_fillers_are_where_they_should_be(self, size: tuple[int, int], expected: bool) -> None:
        encoded = make_rows("text", size[0])
        loader = EvalLoader(encoded, micro_batch_size=size[1], rank=1, world_size=2, pad_id=0)
        assert any(FILLER in batch.rows for batch in loader) is expected


def answer_cases(form: str, model: Any, config: Any) -> dict[str, Any]:
    found = {}
    for name, case in CASES.items():
        if case.form == form:
            answers = answer(
                model,
                config,
                make_rows(form, case.num_rows, labelled=case.labelled),
                micro_batch_size=case.micro_batch_size,
                num_beams=case.num_beams,
            )
            found[name] = {"texts": answers.texts, "loss": answers.loss}
    return found


def main() -> None:
    argument = json.loads(sys.argv[1])
    engine.join_processes(timeout_seconds=60)
    ds_config = engine.compose_ds_config(
        {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}},
        precision="fp32",
        micro_batch_size=1,
        num_micro_batches=1,
        clip=None,
    )
    found = {}
    for form in FORMS:
        with engine.building_into_shards(ds_config):
            model, config = load(form, argument["folders"][BACKBONES[form]])
        with engine.untrained(model, ds_config, torch.device("cpu")):
            assert all(parameter.numel() == 0 for parameter in model.parameters()), "not sharded"
            found |= answer_cases(form, model, config)
    (Path(argument["out"]) / f"{dist.rank()}.json").write_text(json.dumps(found))
    engine.leave_processes()
    engine.end_process(0)


if __name__ == "__main__":
    main()
