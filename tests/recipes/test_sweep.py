"""A study: which runs there are, that each runs once, and that nothing ends it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from running import SCALEPET, read_result, run

from scalepet.config.study_check import check_study
from scalepet.errors import ConfigError, DataError, ScalepetError
from scalepet.recipes import sweep as sweep_module
from scalepet.recipes.lock import take
from scalepet.recipes.study import Cell, CellPlan, best_factor
from scalepet.recipes.study_folder import STUDY, open_study
from scalepet.recipes.study_plan import plan_study
from scalepet.recipes.sweep import FAILED, Sweep, chosen_factor, num_left, runs_known, standing
from scalepet.signals import Stopped, StopRequest
from scalepet.tracking import seal

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]

KILLED = Path(__file__).with_name("killed.py")
FACTORS = (0.5, 2.0)
NUM_RUNS = 10

Content = dict[str, Any]


@pytest.fixture
def plans(study_content: Callable[..., Content], tmp_path: Path) -> Callable[..., list[CellPlan]]:
    """``plans(methods={...})``: the cells of the study in ``tmp_path / "study"``."""
    return lambda **fields: plan_study(check_study(study_content(tmp_path / "study", **fields)))


def write(content: Content) -> Path:
    path = Path(content["output"]).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(content))
    return path


def folders_of_runs(study: Path) -> list[Path]:
    return sorted(path.parent for path in study.glob("runs/*/*/*/*/result.json"))


def bytes_of(folder: Path) -> dict[str, bytes]:
    """What a finished run has learnt; times and paths apart."""
    metrics = json.dumps(read_result(folder)["metrics"])
    tensors = (folder / "adapter" / "tensors.safetensors").read_bytes()
    return {"metrics": metrics.encode(), "tensors": tensors}


def all_bytes(study: Path) -> dict[str, dict[str, bytes]]:
    return {str(f.relative_to(study)): bytes_of(f) for f in folders_of_runs(study)}


# Planning: nothing runs.


def test_the_best_factor_is_the_highest_then_the_nearest_to_one_then_the_smaller() -> None:
    assert best_factor({0.3: 0.5, 1: 0.4, 3: 0.6}) == 3
    assert best_factor({0.1: 0.5, 3: 0.5, 10: 0.4}) == 3
    assert best_factor({0.5: 0.5, 2: 0.5}) == 0.5


def test_runs_are_tries_and_repeats_with_the_rate_and_the_seeds_in_their_folders(plans) -> None:
    apet, matched, lora, head = plans(data_seeds=[4, 5])
    names = [run.folder.relative_to(apet.study.output).as_posix() for run in apet.tries]
    rate = apet.study.methods["apet"].rate(50)
    assert names == [f"runs/tiny/colour/apet-50/lr{factor * rate:g}-p0-d4" for factor in FACTORS]
    assert [run.folder.name[-6:] for run in apet.repeats(2.0)] == ["-p1-d4", "-p0-d5", "-p1-d5"]
    assert [run.folder.name for run in lora.repeats(2.0)] == ["lr0.02-p0-d5"]
    assert [cell.num_runs for cell in (apet, matched, lora, head)] == [5, 5, 3, 3]
    repeat = apet.repeats(2.0)[2]
    assert repeat.config.method.options == {"budget": 50, "seed": 1}
    assert (repeat.config.seed, repeat.config.task.source.seed) == (5, 5)
    assert lora.repeats(2.0)[0].config.method.options == {"r": 2, "seed": 5}
    assert repeat.cell == Cell(
        study="study",
        backbone="tiny",
        task="colour",
        method="apet",
        budget=50,
        matches=None,
        position_seed=1,
        data_seed=5,
        learning_rate=repeat.config.train.learning_rate,
        factor=2.0,
    )


def test_a_match_has_exactly_the_count_of_the_other_and_its_rate(plans) -> None:
    apet, matched, lora, head = plans()
    assert matched.num_masked == lora.num_masked > 100
    run = matched.tries[0]
    assert run.config.method.options["budget"] == run.cell.budget == lora.num_masked
    assert (run.cell.matches, lora.tries[0].cell.budget, head.num_masked) == ("lora", None, 0)
    expected = 0.5 * apet.study.methods["apet"].rate(lora.num_masked)
    assert run.cell.learning_rate == pytest.approx(expected, rel=1e-5)
    assert run.config.train.head_learning_rate == 1e-3
    assert head.tries[0].config.train.head_learning_rate == 0.005


def test_a_match_leaves_out_what_the_methods_beside_it_train(plans) -> None:
    mix = {
        "method": {"name": "apet", "also": [{"name": "prompt", "length": 2}]},
        "budgets": [50],
        "matches": ["lora"],
        "learning_rate": {10: 0.1, 1000: 0.02},
    }
    methods = {"lora": {"method": {"name": "lora", "r": 2}, "learning_rate": 0.01}}
    plain, matched, lora = plans(methods={"mix": mix, **methods})
    beside = plain.num_masked - 50
    assert 0 < beside < lora.num_masked == matched.num_masked
    run = matched.tries[0]
    assert run.config.method.options["budget"] == lora.num_masked - beside
    assert run.cell.budget == lora.num_masked
    expected = 0.5 * plain.study.methods["mix"].rate(lora.num_masked)
    assert run.cell.learning_rate == pytest.approx(expected, rel=1e-5)

    length = mix["method"]["also"][0]["length"] = -(-2 * lora.num_masked // beside)
    with pytest.raises(ConfigError) as caught:
        plans(methods={"mix": mix, **methods})
    (fault,) = caught.value.faults
    assert fault == (
        "methods.mix on backbones.tiny: matches: 'lora', which trains"
        f" {lora.num_masked:,}: nothing is left beside the {length * beside // 2:,} of prompt"
        " in also; allowed: a method that trains more, or less in also"
    )


def test_seeds_reach_every_method_of_a_run(plans) -> None:
    method = {
        "name": "prompt",
        "length": 1,
        "also": [{"name": "apet", "budget": 9}, {"name": "lora"}, {"name": "bitfit"}],
    }
    (cell,) = plans(data_seeds=[4, 5], methods={"all": {"method": method, "learning_rate": 0.01}})
    assert [run.folder.name[-6:] for run in cell.repeats(2.0)] == ["-p1-d4", "-p0-d5", "-p1-d5"]
    prompt, apet, lora, bitfit = cell.repeats(2.0)[2].config.method.all
    assert (prompt.options["seed"], lora.options["seed"]) == (5, 5)
    assert (apet.options, bitfit.options) == ({"budget": 9, "seed": 1}, {})


def test_a_cell_is_read_as_it_was_written(plans, tmp_path) -> None:
    cell = plans()[1].tries[0].cell
    cell.write(tmp_path)
    assert Cell.read(tmp_path) == cell
    (tmp_path / "cell.json").write_text("{}")
    with pytest.raises(DataError, match="holds no cell"):
        Cell.read(tmp_path)
    with pytest.raises(DataError, match="No such file"):
        Cell.read(tmp_path / "nowhere")


def test_what_is_impossible_is_refused_as_a_whole_with_all_faults(
    plans, study_content, backbones_with_tokenizers, tmp_path
) -> None:
    study = study_content(tmp_path / "study")
    tasks = {
        **study["tasks"],
        "lost": {**study["tasks"]["colour"], "source": {**study["tasks"]["colour"]["source"]}},
        "texts": {
            **study["tasks"]["colour"],
            "kind": "sequence_to_sequence",
            "metrics": ["exact_match"],
        },
    }
    tasks["lost"]["source"]["files"] = {"train": "no.jsonl", "validation": "no.jsonl"}
    tasks["unlike"] = {**study["tasks"]["colour"], "labels": ["warm", "hot"]}
    methods = {
        **study["methods"],
        "apet": {**study["methods"]["apet"], "budgets": [50, 10**7], "matches": ["lora", "head"]},
    }
    with pytest.raises(ConfigError) as caught:
        plans(
            tasks=tasks,
            methods=methods,
            backbones={
                **study["backbones"],
                "t5": {"path": str(backbones_with_tokenizers / "t5")},
                "nowhere": {"path": str(tmp_path / "nowhere")},
            },
        )
    faults = "\n".join(caught.value.faults)
    for words in (
        "tasks.lost.source.files.train 'no.jsonl' does not exist",
        "backbones.tiny with tasks.texts: task.kind: a bert backbone cannot do",
        "backbones.nowhere.path: ",
        "tasks.unlike: train: column 'label': 36 of 61 rows cannot be used",
        "tasks.unlike: test: column 'label': ",
        "methods.apet on backbones.tiny: budget: 10000000 is 10,000,000 entries but",
        "methods.apet on backbones.t5: budget: 10000000 is 10,000,000 entries but",
        "methods.apet on backbones.tiny: matches: 'head', which trains nothing",
        "methods.head on backbones.t5: it trains nothing there",
    ):
        assert faults.count(words) == 1, faults
    assert not (tmp_path / "study").exists()


def test_cells_that_are_not_there_are_refused(study_content, tmp_path) -> None:
    study = check_study(study_content(tmp_path / "study"))
    (cell,) = plan_study(study, only=["tiny/colour/lora"])
    assert cell.name == "tiny/colour/lora"
    some = plan_study(study, only=["*/apet-*", "tiny/colour/l*a", "tiny/colour/apet-50"])
    assert [cell.name for cell in some] == [
        "tiny/colour/apet-50",
        "tiny/colour/apet-as-lora",
        "tiny/colour/lora",
    ]
    with pytest.raises(ConfigError, match="--only: 'lora'; allowed: tiny/colour/apet-50, "):
        plan_study(study, only=["lora"])


# The folder of a study.


def test_a_study_may_grow_but_not_change_what_has_run(study_content, tmp_path) -> None:
    folder = tmp_path / "study"
    study = study_content(folder)
    open_study(check_study(study))
    untouched = (folder / STUDY).read_bytes()
    for cell in plan_study(check_study(study), only=["tiny/colour/apet-50"]):
        cell.tries[0].cell.write(cell.tries[0].folder)

    methods = study["methods"]
    changed = study_content(
        folder,
        base={**study["base"], "train": {"steps": 7}},
        rate_factors=[0.5],
        position_seeds=[1, 0],
        methods={
            "apet": {**methods["apet"], "learning_rate": {10: 0.1, 1000: 0.01}},
            "lora": {**methods["lora"], "method": {"name": "lora", "r": 3}},
        },
    )
    with pytest.raises(ConfigError) as caught:
        open_study(check_study(changed))
    fields = sorted(fault.partition(":")[0] for fault in caught.value.faults)
    assert fields == [
        "base.train",
        "methods.apet, first seeds",
        "methods.apet.learning_rate",
        "rate_factors",
    ]
    with pytest.raises(ConfigError, match="tiny/colour/apet-50: missing"):
        open_study(check_study(study_content(folder, methods={"lora": methods["lora"]})))
    assert (folder / STUDY).read_bytes() == untouched

    grown = study_content(
        folder,
        rate_factors=[0.5, 1, 2],
        position_seeds=[0, 1, 2],
        methods={
            "apet": {**methods["apet"], "budgets": [50, 60]},
            "lora": {**methods["lora"], "method": {"name": "lora", "r": 3}},
            "bitfit": {"method": {"name": "bitfit"}, "learning_rate": 0.01},
        },
    )
    open_study(check_study(grown))
    assert yaml.safe_load((folder / STUDY).read_text())["position_seeds"] == [0, 1, 2]


# The order of things, with runs that take no time.


class Trained:
    """In place of finetune: scores by learning rate; what is in ``failing`` raises."""

    def __init__(self) -> None:
        self.folders: list[str] = []
        self.failing: dict[str, BaseException] = {}

    def __call__(self, config: Any, *, resume: bool, console: Console, stop: Any) -> None:
        assert resume
        name = f"{config.output.parent.name}/{config.output.name}"
        self.folders.append(name)
        if name in self.failing:
            raise self.failing[name]
        score = -config.train.learning_rate
        (config.output / "result.json").write_text(
            json.dumps({"metrics": {"eval/accuracy": score}, "seconds": 2.0})
        )
        seal(config.output, ["cell.json", "result.json"])


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    trained = Trained()
    monkeypatch.setattr(sweep_module, "finetune", trained)
    return trained


def run_all(cells: list[CellPlan], stop: StopRequest | None = None) -> None:
    Sweep(Console(quiet=True), stop or StopRequest()).run(cells)


def test_every_cell_has_equal_tries_and_repeats_at_the_best(plans, trained) -> None:
    cells = plans()
    assert [num_left(cell) for cell in cells] == [3, 3, 2, 2]
    run_all(cells)
    assert trained.folders == [
        *(
            f"{cell.place.folder_of_method}/{run.folder.name}"
            for cell in cells
            for run in runs_known(cell)
        )
    ]
    assert len(trained.folders) == NUM_RUNS
    assert {chosen_factor(cell) for cell in cells} == {0.5}
    assert sum(num_left(cell) for cell in cells) == 0
    run_all(cells)
    assert len(trained.folders) == NUM_RUNS


@pytest.mark.parametrize("error", [ScalepetError("the loss is nan"), RuntimeError("no memory")])
def test_a_failed_run_is_named_and_the_others_go_on(plans, trained, error) -> None:
    cells = plans()
    broken = cells[2].tries[0]
    trained.failing = {f"lora/{broken.folder.name}": error}
    run_all(cells)
    assert len(trained.folders) == NUM_RUNS
    assert standing(broken.folder) == "failed"
    (fault,) = json.loads((broken.folder / FAILED).read_text())["faults"]
    assert str(error) in fault
    assert chosen_factor(cells[2]) == 2.0, "a try that failed is the worst"
    trained.failing = {}
    run_all(cells)
    assert len(trained.folders) == NUM_RUNS + 1
    assert standing(broken.folder) == "finished"
    assert not (broken.folder / FAILED).exists()


def test_a_stop_passes_and_the_next_sweep_goes_on(plans, trained) -> None:
    cells = plans()
    trained.failing = {f"apet-as-lora/{cells[1].tries[1].folder.name}": Stopped("after step 1")}
    with pytest.raises(Stopped, match=r"as asked in .*/apet-as-lora/.*; the same command goes on"):
        run_all(cells)
    assert len(trained.folders) == 5
    assert standing(cells[1].tries[1].folder) == "to do"
    trained.failing = {}
    stop = StopRequest()
    stop.is_made = True
    with pytest.raises(Stopped, match="between two runs"):
        run_all(cells, stop)
    run_all(cells)
    assert len(trained.folders) == NUM_RUNS + 1


def test_what_was_changed_after_its_end_is_trained_again_from_its_start(plans, trained) -> None:
    cells = plans()
    run_all(cells)
    first, second, third = (cell.tries[0].folder for cell in cells[:3])
    (first / "result.json").unlink()
    (second / "cell.json").write_text("{}")
    (second / "other").write_text("of the user")
    (third / "seal.json").unlink()
    assert [standing(folder) for folder in (first, second, third)] == ["to do"] * 3
    run_all(cells)
    assert len(trained.folders) == NUM_RUNS + 3
    assert (second / "other").read_text() == "of the user"
    assert (third / "result.json").exists()


# With real runs.


@pytest.fixture(scope="module")
def whole(study_content, tmp_path_factory) -> tuple[Path, str]:
    """A study that nothing has disturbed, and what was shown."""
    folder = tmp_path_factory.mktemp("whole") / "study"
    return folder, run([*SCALEPET, "sweep", write(study_content(folder))])


def test_a_sweep_runs_every_run_and_says_so_in_a_line(whole) -> None:
    folder, shown = whole
    assert len(folders_of_runs(folder)) == NUM_RUNS
    lines = [line for line in shown.splitlines() if line.startswith("tiny/colour/")]
    assert len(lines) == NUM_RUNS
    assert all("accuracy 0." in line or "accuracy 1." in line for line in lines)
    for path in folders_of_runs(folder):
        assert standing(path) == "finished"
        record = json.loads((path / "run.json").read_text())
        cell = Cell.read(path)
        assert cell.budget in (None, record["counts"]["masked"])
        assert "cell.json" in json.loads((path / "seal.json").read_text())
        assert not (path / "states").exists()


def test_what_is_finished_stays_and_what_is_broken_is_mended(
    whole, study_content, tmp_path
) -> None:
    folder = tmp_path / "study"
    shutil.copytree(whole[0], folder)
    unsealed, damaged, tampered, in_use, *untouched = folders_of_runs(folder)
    (unsealed / "seal.json").unlink()
    (unsealed / "result.json").unlink()
    (damaged / "states" / "00000003").mkdir(parents=True)
    (damaged / "states" / "00000003" / "tensors.safetensors").write_bytes(b"cut")
    (damaged / "seal.json").unlink()
    metrics = tampered / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("0.", "1.", 1))
    (in_use / "seal.json").unlink()
    lock = take(in_use, say=print)
    before = {path: path.stat().st_mtime_ns for f in untouched for path in f.rglob("*")}
    path = write(study_content(folder))
    shown = subprocess.run([*SCALEPET, "sweep", path], capture_output=True, text=True, timeout=240)
    lock.release()
    assert shown.returncode == 1, shown.stderr
    assert shown.stdout.count("begins again") == 2
    assert "is in use by process" in shown.stdout.splitlines()[-1]
    assert standing(in_use) == "failed"
    assert before == {path: path.stat().st_mtime_ns for f in untouched for path in f.rglob("*")}
    assert all_bytes(folder) == all_bytes(whole[0])


def test_stopped_and_killed_and_finished_by_others_it_is_the_same_study(
    whole, study_content, tmp_path
) -> None:
    """Two processes, stopped; one that is killed in its second save; then one to the end."""
    folder = tmp_path / "study"
    path = write(study_content(folder))
    both = subprocess.Popen(
        [*SCALEPET, "sweep", str(path), "--processes", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end = time.monotonic() + 200
    while not folders_of_runs(folder) and time.monotonic() < end and both.poll() is None:
        time.sleep(0.05)
    both.send_signal(signal.SIGUSR1)
    shown, _ = both.communicate(timeout=200)
    assert both.returncode == 75, shown
    num_finished = len(folders_of_runs(folder))
    assert 0 < num_finished < NUM_RUNS
    assert {p.name for p in (folder / "logs").iterdir()} == {"worker-0.log", "worker-1.log"}
    # Who is stopped while it loads may leave its lock, which whoever comes next takes over.
    left = [json.loads(path.read_text())["pid"] for path in folder.rglob("run.lock")]
    assert not any(Path(f"/proc/{pid}").exists() for pid in left), "a worker lives on"

    run([sys.executable, KILLED, "2", "sweep", path], code=-signal.SIGKILL)
    run([*SCALEPET, "sweep", path])
    assert all_bytes(folder) == all_bytes(whole[0])
