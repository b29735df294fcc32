from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scalepet.errors import ConfigError
from scalepet.experiments import Run, draw_curves, read_run
from scalepet.experiments.curves import _moving_mean
from scalepet.experiments.style import COLOURS

MakeRun = Callable[..., Path]
METRIC = "eval/accuracy"


@pytest.fixture
def runs(make_run: MakeRun) -> list[Run]:
    return [
        read_run(make_run("a", name="apet 20,000", score=0.8)),
        read_run(make_run("b", name="head only", score=0.6)),
    ]


def has_colour(path: Path, colour: str) -> bool:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return bool((pixels == wanted).all(axis=2).any())


def test_a_png_of_readme_size_shows_both_runs(runs: list[Run], tmp_path: Path) -> None:
    path = tmp_path / "figures" / "curves.png"
    draw_curves(runs, path, METRIC)
    assert Image.open(path).size == (1200, 500)
    assert has_colour(path, COLOURS[0]) and has_colour(path, COLOURS[1])
    assert not has_colour(path, COLOURS[2])


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_same_runs_give_the_same_bytes(runs: list[Run], tmp_path: Path, suffix: str) -> None:
    paths = [tmp_path / f"{name}{suffix}" for name in ("first", "second")]
    for path in paths:
        draw_curves(runs, path, METRIC)
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert b"atplotlib v" not in first and b"dc:date" not in first
    assert b"Software" not in first


def test_the_majority_guess_stands_beside_an_accuracy_only(runs: list[Run], tmp_path: Path) -> None:
    path = tmp_path / "curves.svg"
    draw_curves(runs, path, METRIC)
    assert "majority guess 0.250" in path.read_text()
    draw_curves(runs, path, "eval/loss")
    assert "majority guess" not in path.read_text()


def test_names_and_scores_stand_at_the_lines(make_run: MakeRun, tmp_path: Path) -> None:
    run = read_run(make_run("a", name="from $10 to $20", score=0.8125))
    draw_curves([run], tmp_path / "curves.svg", METRIC)
    assert "<!-- from $10 to $20  0.812 -->" in (tmp_path / "curves.svg").read_text()


def test_a_diverged_run_is_drawn(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("a")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines = [line.replace('"loss": ', '"loss": NaN, "was": ') for line in lines[:-1]]
    broken = json.loads(lines[-1]) | {"step": 40, "kind": "eval", "eval/accuracy": float("nan")}
    (folder / "metrics.jsonl").write_text("\n".join([*lines, json.dumps(broken)]) + "\n")
    draw_curves([read_run(folder)], tmp_path / "curves.png", METRIC)
    assert has_colour(tmp_path / "curves.png", COLOURS[0])


def test_what_cannot_be_drawn_is_refused(runs: list[Run], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'eval/f1'"):
        draw_curves(runs, tmp_path / "curves.png", "eval/f1")
    with pytest.raises(ConfigError, match=r"'\.png', '\.svg'"):
        draw_curves(runs, tmp_path / "curves.gif", METRIC)
    assert not list(tmp_path.glob("curves*"))


def test_a_moving_mean_starts_with_what_there_is() -> None:
    values = [float(x) for x in range(60)]
    mean = _moving_mean(values)
    assert mean[:3] == [0.0, 0.5, 1.0]
    assert mean[-1] == 58.0
    assert _moving_mean([2.0, 4.0]) == [2.0, 4.0]
    assert _moving_mean([]) == []
