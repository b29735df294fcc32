from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from scalepet.data import AccuracyMatrix, Results
from scalepet.errors import CheckpointError

NUM_ROWS = {"dbpedia": 100, "amazon [5]": 300, "yahoo": 50}
ROWS = ((0.9,), (0.5, 0.8), (0.7, 0.6, 0.4))


def matrix(*rows: tuple[float, ...]) -> AccuracyMatrix:
    return AccuracyMatrix(NUM_ROWS, rows)


def some_results() -> Results:
    results = Results(NUM_ROWS).with_row({"online": [0.9]})
    results = results.with_row({"online": [0.5, 0.8], "offline": [0.6, 0.7], "ensemble": [0.8, 1]})
    return results.with_row(
        {"online": [0.7, 0.6, 0.4], "offline": [0.5, 0.5, 0.5], "ensemble": [0.8, 0.7, 0.6]}
    )


def test_measures_of_a_matrix_worked_out_by_hand() -> None:
    known = matrix(*ROWS)
    micro = [0.9, (50 + 240) / 400, (70 + 180 + 20) / 450]
    assert known.micro_curve == pytest.approx(micro)
    assert known.last_micro == pytest.approx(0.6)
    assert known.last_macro == pytest.approx((0.7 + 0.6 + 0.4) / 3)
    assert known.average_incremental == pytest.approx((0.9 + 0.725 + 0.6) / 3)
    assert known.forgetting == pytest.approx(((0.9 - 0.7) + (0.8 - 0.6)) / 2)
    assert known.bwt == pytest.approx(((0.7 - 0.9) + (0.6 - 0.8)) / 2)


def test_forgetting_is_from_the_best_and_bwt_from_the_first() -> None:
    """The first experience is known best after the second: the two measures part."""
    known = matrix((0.4,), (0.9, 0.8), (0.7, 0.8, 0.4))
    assert known.forgetting == pytest.approx((0.2 + 0.0) / 2)
    assert known.bwt == pytest.approx((0.3 + 0.0) / 2)


def test_forgetting_below_zero_is_kept() -> None:
    assert matrix((0.4,), (0.9, 0.8)).forgetting == pytest.approx(-0.5)


def test_measures_follow_the_formulas_of_the_papers() -> None:
    rng, num = np.random.default_rng(0), 7
    sizes = rng.integers(1, 500, num)
    a = np.tril(rng.uniform(size=(num, num)))
    rows = tuple(tuple(map(float, a[i, : i + 1])) for i in range(num))
    known = AccuracyMatrix({str(j): int(n) for j, n in enumerate(sizes)}, rows)
    micro = [(a[i] * sizes)[: i + 1].sum() / sizes[: i + 1].sum() for i in range(num)]
    assert known.last_micro == pytest.approx(micro[-1])
    assert known.average_incremental == pytest.approx(np.mean(micro))
    drops = [a[j : num - 1, j].max() - a[num - 1, j] for j in range(num - 1)]
    assert known.forgetting == pytest.approx(np.mean(drops))
    gains = [a[num - 1, j] - a[j, j] for j in range(num - 1)]
    assert known.bwt == pytest.approx(np.mean(gains))


def test_one_experience_forgets_nothing_that_could_be_measured() -> None:
    known = matrix((0.9,))
    assert (known.forgetting, known.bwt) == (None, None)
    assert known.last_micro == known.last_macro == known.average_incremental == 0.9


@pytest.mark.parametrize(
    "rows",
    [
        (),
        ((0.1, 0.2),),
        ((0.1,), (0.2,)),
        ((1.1,),),
        ((float("nan"),),),
        tuple((0.5,) * i for i in range(1, 5)),
    ],
)
def test_what_is_no_matrix_is_our_own_mistake(rows: tuple[tuple[float, ...], ...]) -> None:
    with pytest.raises(AssertionError):
        matrix(*rows)


def test_results_grow_by_a_row_an_experience() -> None:
    empty = Results(NUM_ROWS)
    results = some_results()
    assert (empty.num_learnt, results.num_learnt) == (0, 3)
    assert results.experts["online"].accuracies == ROWS
    assert list(results.experts) == ["online", "offline", "ensemble"]


def test_an_expert_that_starts_later_was_the_online_one_before() -> None:
    experts = some_results().experts
    assert experts["offline"].accuracies == ((0.9,), (0.6, 0.7), (0.5, 0.5, 0.5))
    assert experts["ensemble"].accuracies[0] == (0.9,)


def test_no_expert_drops_out() -> None:
    with pytest.raises(AssertionError, match="'ensemble', 'offline'"):
        some_results().first(2).with_row({"online": [0.1, 0.2, 0.3]})
    with pytest.raises(AssertionError, match="'online'"):
        Results(NUM_ROWS).with_row({"ensemble": [0.5]})


def test_a_resumed_run_goes_on_from_fewer_rows() -> None:
    results = some_results()
    assert (
        results.first(2).with_row(
            {expert: matrix.accuracies[-1] for expert, matrix in results.experts.items()}
        )
        == results
    )
    assert results.first(0) == Results(NUM_ROWS)
    with pytest.raises(AssertionError):
        results.first(4)


def test_the_summary_is_flat_and_leaves_out_what_is_undefined() -> None:
    summary = some_results().summary()
    assert len(summary) == 15
    assert summary["ensemble/last_micro"] == pytest.approx((80 + 210 + 30) / 450)
    assert summary["online/forgetting"] == pytest.approx(0.2)
    first = some_results().first(1).summary()
    assert {name.split("/")[1] for name in first} == {
        "last_micro", "last_macro", "average_incremental",
    }  # fmt: skip


@pytest.mark.parametrize("num_learnt", [0, 1, 3])
def test_results_come_back_from_their_folder(tmp_path: Path, num_learnt: int) -> None:
    results = some_results().first(num_learnt)
    some_results().write(tmp_path)
    results.write(tmp_path)
    assert Results.read(tmp_path) == results
    assert [path.name for path in tmp_path.iterdir()] == ["matrix.json"]


def test_the_file_says_what_its_numbers_sum_to(tmp_path: Path) -> None:
    some_results().write(tmp_path)
    text = (tmp_path / "matrix.json").read_text()
    definitions = json.loads(text)["definitions"]
    assert set(definitions) == {
        "a", "last_micro", "last_macro", "average_incremental", "forgetting", "bwt",
    }  # fmt: skip
    assert "Chaudhry" in definitions["forgetting"] and "Lopez-Paz" in definitions["bwt"]
    assert all(len(definition) > 40 for definition in definitions.values())
    assert "      [0.7, 0.6, 0.4]\n" in text  # a row a line, for the eye


GOOD = json.loads(some_results().to_json())


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        ({"experts": {"online": [[0.5], [1.5, "x"]]}}, ["online.1.0", "online.1.1", "'x'"]),
        ({"experts": {"online": [[float("nan")]]}}, ["online.0.0", "nan"]),
        ({"experts": {"online": [[0.5, 0.5]]}}, ["online has rows of [2], not of 1 to 1"]),
        ({"experts": {"online": [[0.5]], "offline": []}}, ["offline has rows of []"]),
        ({"experts": {"offline": [[0.5]]}}, ["['offline'], without 'online'"]),
        ({"experts": {"online": []}}, ["0 rows for 3 experiences"]),
        ({"num_rows": {"one": 5}}, ["3 rows for 1 experiences"]),
        ({"num_rows": {"one": 0}, "extra": 1}, ["num_rows.one", "not 0", "extra"]),
        ({"num_rows": {}}, ["num_rows", "at least 1"]),
    ],
)
def test_a_broken_file_is_refused_with_all_faults(
    tmp_path: Path, changes: dict[str, object], faults: list[str]
) -> None:
    path = tmp_path / "matrix.json"
    path.write_text(json.dumps({**GOOD, **changes}))
    with pytest.raises(CheckpointError) as caught:
        Results.read(tmp_path)
    text = "\n".join(caught.value.faults)
    assert all(fault.startswith(f"{path}: ") for fault in caught.value.faults)
    for fault in faults:
        assert fault in text


def test_a_missing_or_cut_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        Results.read(tmp_path)
    some_results().write(tmp_path)
    path = tmp_path / "matrix.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(CheckpointError, match="Invalid JSON"):
        Results.read(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be written"):
        some_results().write(tmp_path / "nowhere")
