"""The SLURM launchers, as they are shipped, with a real slurmctld and two slurmd."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab import Host, Slurm, wait_until
from running import newest_state, read_metrics
from safetensors.torch import load_file

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(200)]

JOB, ARRAY = "launchers/slurm-job.sh", "launchers/slurm-array.sh"
ONE_A_NODE = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1"]
SECONDS = 60

# what the ranks do at each start -> how the job ends, its exit code, and how often it came back
ENDINGS = {
    "done": (["0"], "COMPLETED", 0, 0),
    "refused": (["refuse"], "FAILED", 2, 0),
    "crashed": (["1"], "FAILED", 1, 1),
    "recovered": (["die", "0"], "COMPLETED", 0, 1),
    "warned": (["wait", "0"], "COMPLETED", 0, 1),
    "terminated": (["wait", "wait", "0"], "COMPLETED", 0, 2),
    "cancelled": (["wait", "0"], "CANCELLED", 75, 0),
    "out-of-time": (["wait", "0"], "COMPLETED", 0, 1),
}


@pytest.fixture(scope="module")
def jobs(slurm: Slurm, stand_in: dict[str, str]) -> dict[str, str]:
    """All of them at once: most of their time they wait for their turn."""
    environment = {**stand_in, "SCALEPET_WAIT_SECONDS": "5"}
    options = {"out-of-time": ["--time=1"]}  # less than the two minutes of the early warning
    found = {}
    for name, (words, *_) in ENDINGS.items():
        command = [*ONE_A_NODE, *options.get(name, []), JOB, "train", name, *words]
        found[name] = slurm.submit(*command, environment=environment)
    return found


def starts(name: str, rank: int = 0) -> list[dict[str, Any]]:
    """What a rank was given at every start of a job."""
    path = Path(f"{name}.{rank}")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_start(number: int, name: str) -> None:
    """Until both ranks have started so many times, and once more."""
    started = lambda: all(len(starts(name, rank)) > number for rank in range(2))  # noqa: E731
    wait_until(started, seconds=SECONDS, what=f"start {number} of {name}")


def said(name: str, job: str) -> str:
    return Path(f"{name}-{job}.out").read_text()


@pytest.mark.parametrize("name", ["done", "refused", "crashed", "recovered"])
def test_how_a_job_ends_by_itself(slurm: Slurm, jobs: dict[str, str], name: str) -> None:
    check_ending(slurm, jobs[name], name)
    if name == "recovered":
        assert "task 1: Killed" in said("scalepet", jobs[name])  # by whom it failed


@pytest.mark.parametrize(
    ("name", "signal"),
    [("warned", ["--batch", "--signal=USR1"]), ("terminated", ["--batch", "--signal=TERM"])],
)
def test_a_job_that_is_preempted_comes_back(
    slurm: Slurm, jobs: dict[str, str], name: str, signal: list[str]
) -> None:
    """Also more often than a job may fail."""
    for number in range(ENDINGS[name][3]):
        wait_until(
            lambda n=number: len(starts(name, 1)) > n, seconds=SECONDS, what=f"{name} starts"
        )
        slurm.nodes[0].run("scancel", *signal, jobs[name])
    check_ending(slurm, jobs[name], name)


def test_a_job_that_is_cancelled_saves_and_stays_away(slurm: Slurm, jobs: dict[str, str]) -> None:
    wait_for_start(0, "cancelled")
    slurm.nodes[0].run("scancel", jobs["cancelled"])
    check_ending(slurm, jobs["cancelled"], "cancelled")
    assert "not queued again" in said("scalepet", jobs["cancelled"])


def check_ending(slurm: Slurm, job: str, name: str) -> None:
    words, state, code, num_restarts = ENDINGS[name]
    slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", seconds=SECONDS)
    found = (slurm.state(job), slurm.exit_code(job), len(starts(name)) - 1)
    assert found == (state, code, num_restarts), said("scalepet", job)
    for start in starts(name):
        assert start["arguments"] == ["train", name, *words, "--resume"]
    assert not Path(f".scalepet-{job}.starts").exists()


def test_one_process_a_gpu(slurm: Slurm, stand_in: dict[str, str]) -> None:
    size = ["--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1"]
    interactive = slurm.nodes[0].command(
        "bash", "launchers/interactive.sh", *size, "bash", "launchers/srun.sh", "train", "four", "0"
    )
    subprocess.run(interactive, env=stand_in, check=True, capture_output=True, timeout=60)
    ranks = [starts("four", rank)[0] for rank in range(4)]
    assert [rank["host"] for rank in ranks] == ["node1", "node1", "node2", "node2"]
    assert [rank["LOCAL_RANK"] for rank in ranks] == ["0", "1", "0", "1"]
    assert {(rank["WORLD_SIZE"], rank["MASTER_ADDR"]) for rank in ranks} == {("4", "node1")}
    assert len({rank["MASTER_PORT"] for rank in ranks}) == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=2"],
        ["--nodes=1", "--ntasks=2", "--gpus-per-task=1"],
        ["--nodes=1", "--ntasks=2", "--gres=gpu:2", "--gpu-bind=single:1"],
    ],
    ids=["a-node", "a-task", "bound"],
)
def test_each_process_sees_all_gpus_of_its_node(
    options: list[str], slurm: Slurm, stand_in: dict[str, str], request: pytest.FixtureRequest
) -> None:
    """SLURM would give each its own alone, as number 0, and NCCL could not reach the others. Its
    fake GPUs have no CUDA_VISIBLE_DEVICES; what it says is how it binds them.
    """
    name = f"gpus-{request.node.callspec.id}"
    command = slurm.nodes[0].command(
        *("salloc", *options, "--cpus-per-task=1", "bash", "launchers/srun.sh", "train", name, "0")
    )
    subprocess.run(command, env=stand_in, check=True, capture_output=True, timeout=60)
    ranks = [starts(name, rank)[0] for rank in range(2)]
    assert [rank["LOCAL_RANK"] for rank in ranks] == ["0", "1"]
    assert [rank["SLURMD_TRES_BIND"] for rank in ranks] == ["gpu:none", "gpu:none"]


def test_srun_outside_of_an_allocation_is_refused(checkout: Path) -> None:
    done = subprocess.run(
        ["bash", "launchers/srun.sh", "train"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert "no SLURM allocation" in done.stderr


def test_an_array_is_a_run_a_line(slurm: Slurm, stand_in: dict[str, str]) -> None:
    lines = ["train array-1 0", """train array-2 0 "method={name: lora, r: 4}" 'a b'""", ""]
    lines += ["train not-started task.template=It's_{text} 0", "train array-5 wait 0"]
    Path("runs.txt").write_text("\n".join(lines))
    size = ["--array=1-5", "--cpus-per-task=1"]
    array = slurm.submit(*size, ARRAY, "runs.txt", environment=stand_in)
    ended = [f"{array}_{index}" for index in range(1, 6)]
    # The last task has the job number of the whole array, and comes back alone.
    wait_until(lambda: starts("array-5"), seconds=SECONDS, what="the last task starts")
    slurm.nodes[0].run("scancel", "--batch", "--signal=USR1", ended[-1])
    states = [slurm.wait(job, "COMPLETED", "FAILED", seconds=SECONDS) for job in ended]
    assert states == ["COMPLETED", "COMPLETED", "FAILED", "FAILED", "COMPLETED"]
    assert "runs.txt has no line 3" in said("scalepet", f"{array}_3")
    assert "line 4 of runs.txt cannot be read: train not-started" in said("scalepet", f"{array}_4")
    assert not starts("not-started")
    assert [len(starts(f"array-{index}")) for index in (1, 2, 5)] == [1, 1, 2]
    assert starts("array-1")[0]["arguments"] == ["train", "array-1", "0", "--resume"]
    arguments = ["train", "array-2", "0", "method={name: lora, r: 4}", "a b", "--resume"]
    assert starts("array-2")[0]["arguments"] == arguments


@pytest.mark.slow
def test_the_check_over_two_nodes(slurm: Slurm, checkout: Path) -> None:
    check = ["bash", "launchers/srun.sh", "launch", "--check", "--output", "checked"]
    said = slurm.nodes[0].run("salloc", *ONE_A_NODE, *check)
    names = ["processes", "devices", "versions", "folder", "network"]
    assert [line.split()[1] for line in said.splitlines() if line.startswith("ok")] == names
    assert "node1, node2: 1 process, no GPU" in said
    assert not Path("checked").exists()


def test_a_preempted_run_ends_as_one_that_was_left_alone(
    slurm: Slurm, checkout: Path, write_run: Any
) -> None:
    train = {"steps": 60, "evaluate_every": 30}
    folders = {name: checkout / name for name in ("left-alone", "preempted")}
    jobs = {}
    for name, folder in folders.items():
        config = write_run(folder, "bert", deepspeed="zero3", train=train)
        assert yaml.safe_load(config.read_text())["deepspeed"] == "zero3"
        jobs[name] = slurm.submit(*ONE_A_NODE, f"--job-name={name}", JOB, "train", config)
    metrics = folders["preempted"] / "metrics.jsonl"
    has_begun = lambda: metrics.exists() and '"train"' in metrics.read_text()  # noqa: E731
    wait_until(has_begun, seconds=90, what="the run has done a step")
    slurm.nodes[0].run("scancel", "--batch", "--signal=USR1", jobs["preempted"])
    for name, job in jobs.items():
        state = slurm.wait(job, "COMPLETED", "FAILED", seconds=120)
        assert state == "COMPLETED", said(name, job)
        assert slurm.num_restarts(job) == (name == "preempted")
    one, other = (read_metrics(folder) for folder in folders.values())
    one, other = ({key: of[key] for key in of if key[0] != "save"} for of in (one, other))
    assert one.keys() == other.keys()
    assert [one[key].get("loss") for key in one] == [other[key].get("loss") for key in one]
    for part in ("adapter", f"states/{newest_state(folders['left-alone']).name}"):
        name = f"{part}/tensors.safetensors"
        whole, resumed = (load_file(folder / name) for folder in folders.values())
        assert whole.keys() == resumed.keys()
        assert all((whole[key] == resumed[key]).all() for key in whole)


def test_a_job_that_reaches_its_time_limit_comes_back(slurm: Slurm, jobs: dict[str, str]) -> None:
    """Last but one: SLURM looks at time limits twice a minute."""
    check_ending(slurm, jobs["out-of-time"], "out-of-time")


@pytest.mark.slow
def test_a_job_of_a_dead_node_starts_on_another(
    slurm: Slurm, hosts: tuple[Host, Host], stand_in: dict[str, str]
) -> None:
    """Last: there is one node less."""
    wall = slurm.submit("--nodelist=node1", "--exclusive", "--wrap=sleep 100")
    slurm.wait(wall, "RUNNING", seconds=SECONDS)
    size = ["--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1"]
    job = slurm.submit(*size, JOB, "train", "orphan", "wait", "0", environment=stand_in)
    wait_until(lambda: starts("orphan"), seconds=SECONDS, what="it starts")
    hosts[1].die()
    slurm.nodes[0].run("scancel", wall)
    assert slurm.wait(job, "COMPLETED", "FAILED", seconds=SECONDS) == "COMPLETED"
    assert [start["host"] for start in starts("orphan")] == ["node2", "node1"]
    assert "failures in a row: 1" in said("scalepet", job)
