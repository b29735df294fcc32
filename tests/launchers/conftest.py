"""Two hosts and a SLURM cluster on this machine, or a word why they cannot be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Host, Slurm, program, slurm_cluster, two_hosts
from recipes.conftest import backbones_with_tokenizers, colour_rows, write_run

__all__ = ["backbones_with_tokenizers", "colour_rows", "write_run"]

LAUNCHERS = Path(__file__).parents[2] / "launchers"
PACKAGES = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "srun": "slurm-client",
    "pdsh": "pdsh",
    "sshd": "openssh-server",
    "ip": "iproute2",
}
INSTALL = ["apt-get", "install", "--yes", "--no-install-recommends"]


@pytest.fixture(scope="session")
def programs() -> None:
    """What the hosts need; installed where this machine is a container and we are root."""
    if os.geteuid() != 0:
        pytest.skip("making hosts needs root")
    apart = ["unshare", "--net", "--uts", "--ipc", "--pid", "--mount", "--fork", "true"]
    if shutil.which("unshare") is None or subprocess.run(apart, capture_output=True).returncode:
        pytest.skip("this machine does not allow namespaces (unshare)")
    missing = sorted({package for name, package in PACKAGES.items() if program(name) is None})
    if not missing:
        return
    words = " ".join(missing)
    if Path("/run/systemd/system").exists():  # where their services would start
        pytest.skip(f"this is no container; to run this: {' '.join(INSTALL)} {words}")
    if shutil.which("apt-get") is None:
        pytest.skip(f"no apt-get to install {words}")
    subprocess.run(["apt-get", "update", "--quiet"], capture_output=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        [*INSTALL, *missing], env=environment, stdin=subprocess.DEVNULL, capture_output=True
    )
    if done.returncode != 0:
        last = done.stderr.decode().strip().splitlines()[-1:]
        pytest.skip(f"the Debian packages {words} cannot be installed: {' '.join(last)}")


@pytest.fixture(scope="module")
def lab(programs: None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="scalepet-lab-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def hosts(lab: Path) -> Iterator[tuple[Host, Host]]:
    with two_hosts(lab) as both:
        yield both


@pytest.fixture(scope="module")
def slurm(lab: Path, hosts: tuple[Host, Host]) -> Iterator[Slurm]:
    with slurm_cluster(lab, hosts) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, with launchers/ in it, and the environment of this test for them."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "launchers").symlink_to(LAUNCHERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SCALEPET_VENV", sys.prefix)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("SCALEPET_RESTARTS", "1")
        yield folder


@pytest.fixture(scope="module")
def stand_in(checkout: Path) -> dict[str, str]:
    """The environment, but ``python -m scalepet`` is the stand-in."""
    path = [str(Path(__file__).with_name("stand_in")), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
