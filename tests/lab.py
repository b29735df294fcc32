"""Two hosts on one machine, as SLURM and ssh see them, and a SLURM cluster on top.

A host is a process with its own network, host name, processes, mounts and shared memory. Nothing is
added to the machine's own network, and all of a host goes when its first process does, also when
the tests are killed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NAMESPACES = ("--net", "--uts", "--ipc", "--pid", "--mount")
ADDRESSES = {"node1": "10.99.88.1", "node2": "10.99.88.2"}

# The first process of a host: makes it one, then takes in orphans.
FIRST_PROCESS = """
set -eu
hostname "$1"
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount --bind "$2/hosts" /etc/hosts
touch "/run/ready" "$2/$1.ready"
while :; do sleep 3600 & wait $! || true; done
"""

SSH_CONFIG = """
Host *
  IdentityFile {lab}/key
  UserKnownHostsFile {lab}/known_hosts
  BatchMode yes
  ConnectTimeout 5
"""

SSHD_CONFIG = """
HostKey {lab}/key
AuthorizedKeysFile {lab}/key.pub
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
MaxStartups 100
"""

SLURM_CONFIG = """
ClusterName=lab
SlurmctldHost=node1
SlurmUser=root
AuthType=auth/none
CredType=cred/none
# a requeued job waits for so many seconds; fewer are refused
AuthInfo=cred_expire=5
StateSaveLocation={lab}/slurmctld
SlurmctldPidFile=/run/slurmctld.pid
SlurmctldLogFile={lab}/slurmctld.log
SlurmdPidFile=/run/slurmd.pid
SlurmdSpoolDir={lab}/spool-%n
SlurmdLogFile={lab}/slurmd-%n.log
# no cgroups
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# without it, a job takes all memory of its nodes and jobs run one by one
DefMemPerNode=100
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
MpiDefault=none
ReturnToService=2
KillWait=10
SlurmdTimeout=10
MinJobAge=3600
# nodes may claim more than there is
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=node[1-2] CPUs=64 RealMemory=100000 Gres=gpu:8 State=UNKNOWN
PartitionName=gpu Nodes=ALL Default=YES State=UP
"""


def program(name: str) -> str | None:
    """Where it is, also outside of a user's PATH."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def wait_until(happens: Callable[[], object], *, seconds: float, what: str) -> None:
    """Returns once it happens.

    Raises:
        AssertionError: not within so many seconds.
    """
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)


@dataclass(frozen=True)
class Host:
    """One of the two; ``pid`` is that of its first process."""

    name: str
    process: subprocess.Popen[bytes]
    pid: int

    def command(self, *words: object) -> list[str]:
        """What runs these words on this host, in the current folder and environment."""
        enter = ["nsenter", "--target", str(self.pid), *NAMESPACES, f"--wd={os.getcwd()}", "--"]
        return [*enter, *map(str, words)]

    def run(self, *words: object, environment: dict[str, str] | None = None) -> str:
        """The stdout of a command that succeeds on this host."""
        done = subprocess.run(
            self.command(*words), env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{words} on {self.name}: {done.stdout}{done.stderr}"
        return done.stdout

    def die(self) -> None:
        """As when the power fails."""
        self.process.kill()
        self.process.wait()


@contextmanager
def two_hosts(lab: Path) -> Iterator[tuple[Host, Host]]:
    """Two hosts joined by a wire, with an ssh server each.

    Args:
        lab: an empty folder for their files.
    """
    _write_files(lab)
    hosts: list[Host] = []
    processes = [_start(name, lab) for name in ADDRESSES]
    try:
        for name, process in zip(ADDRESSES, processes, strict=True):
            wait_until((lab / f"{name}.ready").exists, seconds=20, what=f"{name} is up")
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            hosts.append(Host(name, process, int(children)))
        _join(*hosts)
        for host in hosts:
            host.run("mkdir", "/run/sshd")
            host.run("mount", "--bind", lab / "ssh_config", "/etc/ssh/ssh_config")
            host.run(program("sshd"), "-f", lab / "sshd_config", "-E", lab / "sshd.log")
        yield hosts[0], hosts[1]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _write_files(lab: Path) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(lab / "key")], check=True
    )
    public = " ".join((lab / "key.pub").read_text().split()[:2])
    lines = [f"{address} {name}\n" for name, address in ADDRESSES.items()]
    (lab / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
    known = [f"{name},{address} {public}\n" for name, address in ADDRESSES.items()]
    (lab / "known_hosts").write_text("".join(known))
    (lab / "ssh_config").write_text(SSH_CONFIG.format(lab=lab))
    (lab / "sshd_config").write_text(SSHD_CONFIG.format(lab=lab))


def _start(name: str, lab: Path) -> subprocess.Popen[bytes]:
    with_us = ["setpriv", "--pdeathsig", "KILL"]
    apart = ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc"]
    first = ["bash", "-c", FIRST_PROCESS, "bash", name, str(lab)]
    return subprocess.Popen([*with_us, *apart, *first], stdin=subprocess.DEVNULL)


def _join(first: Host, second: Host) -> None:
    """A wire from the second to a switch in the first, which keeps its address when the other dies.

    Pids are those of this machine, so only the network is entered.
    """
    wire = ["type", "veth", "peer", "name", "eth0", "netns", str(second.pid)]
    _in_network(first, "ip", "link", "add", "switch", "type", "bridge")
    _in_network(first, "ip", "link", "add", "wire", *wire)
    _in_network(first, "ip", "link", "set", "wire", "master", "switch")
    for host, devices in ((first, ("switch", "wire")), (second, ("eth0",))):
        address = f"{ADDRESSES[host.name]}/30"
        _in_network(host, "ip", "address", "add", address, "dev", devices[0])
        for device in ("lo", *devices):
            _in_network(host, "ip", "link", "set", device, "up")


def _in_network(host: Host, *words: str) -> None:
    enter = ["nsenter", "--target", str(host.pid), "--net", "--", str(program(words[0]))]
    subprocess.run([*enter, *words[1:]], check=True)


@dataclass(frozen=True)
class Slurm:
    """A cluster of two nodes; commands are given on the first one."""

    nodes: tuple[Host, Host]

    def submit(self, *words: object, environment: dict[str, str] | None = None) -> str:
        """The number of a job that ``sbatch`` has taken."""
        return self.nodes[0].run("sbatch", "--parsable", *words, environment=environment).strip()

    def state(self, job: str) -> str:
        """As in RUNNING or COMPLETED."""
        return self._field(job, "JobState")

    def exit_code(self, job: str) -> int:
        return int(self._field(job, "ExitCode").split(":")[0])

    def num_restarts(self, job: str) -> int:
        return int(self._field(job, "Restarts"))

    def wait(self, job: str, *states: str, seconds: float) -> str:
        """The state of a job, once it is one of these."""
        what = f"job {job} is {' or '.join(states)}"
        wait_until(lambda: self.state(job) in states, seconds=seconds, what=what)
        return self.state(job)

    def _field(self, job: str, name: str) -> str:
        words = self.nodes[0].run("scontrol", "show", "job", "--oneliner", job).split()
        return next(word.split("=", 1)[1] for word in words if word.startswith(f"{name}="))


@contextmanager
def slurm_cluster(lab: Path, nodes: tuple[Host, Host]) -> Iterator[Slurm]:
    """slurmctld on the first host and a slurmd on each; they end with their hosts."""
    folder = lab / "slurm"
    (folder / "etc").mkdir(parents=True)
    (folder / "etc" / "slurm.conf").write_text(SLURM_CONFIG.format(lab=folder))
    for index in range(8):  # all that SLURM asks of a GPU is a file
        (folder / f"gpu{index}").touch()
    (folder / "etc" / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")
    for host in nodes:
        host.run("mount", "--bind", folder / "etc", "/etc/slurm")
    nodes[0].run(program("slurmctld"))
    for host in nodes:
        (folder / f"spool-{host.name}").mkdir()
        host.run(program("slurmd"), "-N", host.name)
    wait_until(lambda: _num_idle(nodes[0]) == len(nodes), seconds=30, what="both nodes are idle")
    yield Slurm(nodes)


def _num_idle(host: Host) -> int:
    asked: Sequence[str] = host.command("sinfo", "--noheader", "--Node", "--format=%T")
    return subprocess.run(asked, capture_output=True, text=True).stdout.split().count("idle")
