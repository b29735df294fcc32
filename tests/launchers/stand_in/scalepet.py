"""Stands in for scalepet, where only the launchers are looked at: ``train NAME FIRST SECOND ...``

At its first start each rank does FIRST, and so on; the last one again and again:

    a number   end with this exit code
    refuse     rank 0 ends with code 2 at once and the others a little later, as scalepet's do
    wait       until a signal asks for an end, then end with code 75
    die        rank 1 is killed without a word, the others wait
    TEXT       end with code 0

``launch --gpus`` prints STAND_IN_GPUS, or ends with code 2 where it is none.

What a rank was given is appended to NAME.RANK as a line of JSON, with all variables that end with
OF_TEST. As one of scalepet's it is asked to stop when its launcher has ended.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

GIVEN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
MAY_BE_GIVEN = ("DS_ACCELERATOR", "SLURMD_TRES_BIND")
ASKING = [signal.SIGUSR1, signal.SIGTERM]


def act(word: str, rank: int) -> NoReturn:
    if word.isdecimal():
        sys.exit(int(word))
    if word == "refuse":
        time.sleep(2 if rank else 0)
        sys.exit(2)
    if word == "wait":
        signal.sigtimedwait(ASKING, 60)
        time.sleep(1)  # a second signal comes while it saves
        sys.exit(75)
    if word == "die":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
        time.sleep(1)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    sys.exit(0)


def main() -> NoReturn:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    if words == ["launch", "--gpus"]:
        num_gpus = os.environ.get("STAND_IN_GPUS", "0")
        print(num_gpus)
        sys.exit(0 if num_gpus.isdecimal() else 2)
    if words[0] != "train":
        sys.exit(0)
    rank = int(os.environ["RANK"])
    notes = Path(f"{words[1]}.{rank}")
    num_before = len(notes.read_text().splitlines()) if notes.exists() else 0
    acts = [word for word in words[2:] if word != "--resume"]
    given = {name: os.environ[name] for name in GIVEN}
    given |= {name: os.environ[name] for name in MAY_BE_GIVEN if name in os.environ}
    given["safe path"] = os.environ.get("PYTHONSAFEPATH", "")
    given |= {name: text for name, text in os.environ.items() if name.endswith("OF_TEST")}
    with notes.open("a") as file:
        file.write(json.dumps({**given, "arguments": words, "host": os.uname().nodename}) + "\n")
    act(acts[min(num_before, len(acts) - 1)], rank)


if __name__ == "__main__":
    main()
