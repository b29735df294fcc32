from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scalepet.data import Results
from scalepet.errors import ConfigError
from scalepet.experiments import draw_matrix, draw_stream_curves
from scalepet.experiments.style import COLOURS


def results_of(*experts: str, num_learnt: int, shift: float = 0.0) -> Results:
    results = Results({f"part {i + 1}": 50 for i in range(num_learnt + 1)})
    for i in range(num_learnt):
        row = [0.9 - 0.02 * (i - j) - shift for j in range(i + 1)]
        results = results.with_row(dict.fromkeys(experts, row))
    return results


LAE = results_of("online", "offline", "ensemble", num_learnt=3)
NAIVE = results_of("online", num_learnt=3, shift=0.3)


def share_of_colour(path: Path, colour: str) -> float:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return float((pixels == wanted).all(axis=2).mean())


def texts(path: Path) -> list[str]:
    """All that is written in an SVG: matplotlib notes each text as a comment."""
    parts = path.read_text().split("<!-- ")[1:]
    return [part.split(" -->")[0] for part in parts]


def test_a_matrix_has_a_panel_an_expert_with_its_numbers(tmp_path: Path) -> None:
    path = tmp_path / "figures" / "matrix.svg"
    draw_matrix(LAE, path)
    written = texts(path)
    for text in ("online", "offline", "ensemble", "part 2  2", "accuracy on experience"):
        assert text in written
    numbers = [text for text in written if text in ("0.90", "0.88", "0.86")]
    assert sorted(numbers) == 3 * ["0.86"] + 6 * ["0.88"] + 9 * ["0.90"]
    assert "part 4  4" not in written  # not learnt yet


def test_large_matrices_have_no_numbers(tmp_path: Path) -> None:
    def num_numbers(num_learnt: int) -> int:
        path = tmp_path / f"{num_learnt}.svg"
        draw_matrix(results_of("online", num_learnt=num_learnt), path)
        return sum(len(text) == 4 and text.startswith("0.") for text in texts(path))

    assert num_numbers(12) == 12 * 13 / 2
    assert num_numbers(13) == 0


def test_at_most_three_panels_stand_in_a_row(tmp_path: Path) -> None:
    sizes = {}
    for num in (1, 3, 4):
        experts = ["online", *(f"offline {i}" for i in range(1, num))]
        draw_matrix(results_of(*experts, num_learnt=2), tmp_path / "matrix.png")
        sizes[num] = Image.open(tmp_path / "matrix.png").size
    assert sizes[3][0] > 2 * sizes[1][0] and sizes[3][1] == sizes[1][1]
    assert sizes[4] == (sizes[3][0], 2 * sizes[3][1])


def test_the_curves_of_one_run_have_a_colour_an_expert(tmp_path: Path) -> None:
    experts = {"online": [0.7, 0.6], "ensemble": [0.9, 0.8]}
    results = Results({"a": 10, "b": 30}).with_row({"online": [0.8], "ensemble": [0.8]})
    path = tmp_path / "curves.png"
    draw_stream_curves([("lae", [results.with_row(experts)])], path)
    assert Image.open(path).size == (900, 500)
    assert share_of_colour(path, COLOURS[0]) and share_of_colour(path, COLOURS[1])
    assert not share_of_colour(path, COLOURS[2])
    draw_stream_curves([("lae", [results.with_row(experts)])], tmp_path / "curves.svg")
    assert {"online  0.625", "ensemble  0.825"} <= set(texts(tmp_path / "curves.svg"))


def test_the_curves_of_several_runs_have_a_colour_a_run(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    labelled = [("costs $1 and $2", [LAE]), ("naive", [NAIVE])]
    draw_stream_curves(labelled, path)
    assert share_of_colour(path, COLOURS[0]) and share_of_colour(path, COLOURS[1])
    assert not share_of_colour(path, COLOURS[2])
    draw_stream_curves(labelled, tmp_path / "curves.svg")
    assert {"costs $1 and $2 ensemble  0.880", "naive online  0.580"} <= set(
        texts(tmp_path / "curves.svg")
    )


def test_orders_make_a_mean_in_a_band(tmp_path: Path) -> None:
    path = tmp_path / "curves.svg"
    orders = [results_of("online", num_learnt=3, shift=shift) for shift in (0.0, 0.1, 0.5)]
    draw_stream_curves([("a", orders)], path)
    assert "experience; bands: one deviation over 3 orders" in texts(path)
    assert "online  0.680" in texts(path)
    assert path.read_text().count("FillBetween") == 1
    draw_stream_curves([("a", orders[:1])], path)
    assert "experience" in texts(path) and "online  0.880" in texts(path)
    assert "FillBetween" not in path.read_text()


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_same_results_give_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    contents = []
    for i in range(2):
        matrix, curves = tmp_path / f"matrix{i}{suffix}", tmp_path / f"curves{i}{suffix}"
        draw_matrix(LAE, matrix)
        draw_stream_curves([("lae", [LAE, LAE]), ("naive", [NAIVE])], curves)
        contents.append(matrix.read_bytes() + curves.read_bytes())
    assert contents[0] == contents[1]
    assert b"atplotlib v" not in contents[0] and b"dc:date" not in contents[0]


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    for draw in (
        lambda path: draw_matrix(LAE, path),
        lambda path: draw_stream_curves([("a", [LAE])], path),
    ):
        with pytest.raises(ConfigError, match=r"'\.png', '\.svg'"):
            draw(tmp_path / "figure.gif")
    with pytest.raises(ConfigError, match="no experience is finished"):
        draw_matrix(LAE.first(0), tmp_path / "figure.png")
    with pytest.raises(ConfigError, match="no runs"):
        draw_stream_curves([], tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())
