from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from scalepet.errors import ConfigError, DataError
from scalepet.experiments import StreamRun, is_stream, read_stream, stream_table

MakeStream = Callable[..., Path]
ROWS = [[0.9], [0.6, 0.8]]
OTHERS = {"offline": [[0.9], [0.7, 0.7]], "ensemble": [[0.9], [0.75, 0.75]]}


def shown(streams: list[StreamRun]) -> list[list[str]]:
    """The cells of every line of the table, without its frame."""
    console = Console(width=120)
    with console.capture() as capture:
        console.print(stream_table(streams))
    lines = [line for line in capture.get().splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_a_stream_comes_back_as_it_was_written(make_stream: MakeStream) -> None:
    folder = make_stream("lae", ROWS, **OTHERS)
    stream = read_stream(folder)
    assert is_stream(folder)
    assert (stream.name, stream.folder, stream.facts.method) == ("lae", folder, "apet")
    assert stream.experts == ("online", "offline", "ensemble")
    assert len(stream.orders) == 1
    assert stream.measured("ensemble", "last_micro") == pytest.approx([0.75])
    assert stream.measured("online", "forgetting") == pytest.approx([0.3])


def test_orders_are_one_run(make_stream: MakeStream, tmp_path: Path) -> None:
    scores = [i / 100 for i in range(11)]
    for i, score in enumerate(scores):
        make_stream(f"lae/order-{i}", [[0.9], [0.6, score]])
    stream = read_stream(tmp_path / "lae")
    assert is_stream(tmp_path / "lae") and stream.name == "lae"
    # In the order of their numbers, 10 behind 9.
    assert [order.experts["online"].accuracies[1][1] for order in stream.orders] == scores
    assert read_stream(tmp_path / "lae" / "order-1").name == "order-1"


def test_a_run_over_one_task_is_no_stream(make_run: MakeStream, tmp_path: Path) -> None:
    assert not is_stream(make_run("a"))
    assert not is_stream(tmp_path / "nowhere")


def test_one_row_an_expert(make_stream: MakeStream) -> None:
    streams = [
        read_stream(make_stream("masked [20k]", ROWS, **OTHERS)),
        read_stream(make_stream("naive", [[0.5]])),
    ]
    assert shown(streams) == [
        ["masked [20k]", "online", "0.733", "0.700", "0.817", "0.300", "-0.300"],
        ["", "offline", "0.700", "0.700", "0.800", "0.200", "-0.200"],
        ["", "ensemble", "0.750", "0.750", "0.825", "0.150", "-0.150"],
        ["naive, 1 of 2 experiences", "online", "0.500", "0.500", "0.500", "-", "-"],
    ]


def test_several_orders_have_a_mean_and_a_deviation(
    make_stream: MakeStream, tmp_path: Path
) -> None:
    macros = []
    for i, score in enumerate((0.2, 0.5, 0.9)):
        make_stream(f"lae/order-{i}", [[0.9], [0.6, score]])
        macros.append((0.6 + score) / 2)
    first, second = shown([read_stream(tmp_path / "lae")])
    assert first[:2] == ["lae, 3 orders", "online"]
    assert first[3] == f"{statistics.mean(macros):.3f}"
    assert second[3] == f"±{statistics.stdev(macros):.3f}"  # the sample's, over n - 1
    assert (first[5], second[5]) == ("0.300", "±0.000")


def test_the_table_fits_80_columns(make_stream: MakeStream, tmp_path: Path) -> None:
    for i in range(2):
        make_stream(f"a-long-name-of-a-run/order-{i}", ROWS, **OTHERS)
    console = Console(width=80)
    with console.capture() as capture:
        console.print(stream_table([read_stream(tmp_path / "a-long-name-of-a-run")]))
    for part in ("forgetting", "incremental", "ensemble", "BWT", "Chaudhry et al. 2018"):
        assert part in capture.get()
    assert "…" not in capture.get()


def test_no_runs_make_no_table() -> None:
    with pytest.raises(ConfigError, match="no runs"):
        stream_table([])


def test_all_faults_of_a_stream_are_named_at_once(make_stream: MakeStream, tmp_path: Path) -> None:
    broken = make_stream("lae/order-0", ROWS)
    (broken / "config.yaml").write_text("- a list")
    facts = json.loads((broken / "run.json").read_text())
    (broken / "run.json").write_text(json.dumps({**facts, "world_size": "two"}))
    (broken / "matrix.json").write_text('{"definitions": {}, "num')
    (make_stream("lae/order-1", ROWS) / "run.json").unlink()
    make_stream("lae/order-3", ROWS)
    with pytest.raises(DataError) as caught:
        read_stream(tmp_path / "lae")
    faults = [fault.removeprefix(f"{tmp_path / 'lae'}") for fault in caught.value.faults]
    assert [fault.split(":")[0] for fault in faults] == [
        "", "/order-0/config.yaml", "/order-0/run.json", "/order-0/matrix.json",
        "/order-1/run.json",
    ]  # fmt: skip
    assert faults[0] == ": order-2 is missing"
    assert "not 'two'" in faults[2]


def test_orders_that_differ_have_no_mean(make_stream: MakeStream, tmp_path: Path) -> None:
    make_stream("lae/order-0", ROWS, **OTHERS)
    make_stream("lae/order-1", [[0.9]])
    make_stream("lae/order-2", ROWS, num_experiences=3, **OTHERS)
    with pytest.raises(DataError) as caught:
        read_stream(tmp_path / "lae")
    first, second, third = caught.value.faults
    assert "order-1: its experts are ['online'], those of order-0 ['ensemble'," in first
    assert "order-1: 1 of 2 experiences are finished, in order-0 2 of 2" in second
    assert "order-2: 2 of 3 experiences are finished, in order-0 2 of 2" in third


def test_a_stream_that_has_only_begun_is_refused(make_stream: MakeStream) -> None:
    with pytest.raises(DataError, match=r"matrix\.json: no experience is finished"):
        read_stream(make_stream("lae", []))
