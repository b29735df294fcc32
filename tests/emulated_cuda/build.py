"""Builds the emulated device for the torch of this Python: ``python tests/emulated_cuda/build.py``.

Prints the folder to which SCALEPET_EMULATED_CUDA must be set; nothing under a CUDA build of torch,
where the tests on the device skip themselves. It is built once for each torch and source, into the
folder of this environment, in half a minute.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).parent
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-shared", "-Wall", "-Wno-unknown-pragmas"]


def main() -> None:
    import torch

    if torch.version.cuda is not None or torch.version.hip is not None:
        return
    source = b"".join(path.read_bytes() for path in sorted(sources()))
    key = f"{torch.__version__}-{hashlib.sha256(source).hexdigest()[:16]}"
    folder = Path(sys.prefix, "emulated-cuda", key)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "device.so").exists():
            build(folder / "device.so", Path(torch.__file__).parent)
    print(folder)


def sources() -> list[Path]:
    return [Path(__file__), HERE / "device.cpp", *HERE.glob("cpp/*.h")]


def build(library: Path, torch: Path) -> None:
    """
    Raises:
        SystemExit: there is no compiler, or it failed.
    """
    if shutil.which("g++") is None:
        fail("g++ is not found; it builds the CUDA device that the tests emulate")
    print("scalepet: building the emulated CUDA device (half a minute)", file=sys.stderr)
    unfinished = library.with_suffix(f".{os.getpid()}")
    includes = [f"-isystem{torch}/include{more}" for more in ("", "/torch/csrc/api/include")]
    libraries = [f"-L{torch}/lib", f"-Wl,-rpath,{torch}/lib", "-ltorch", "-ltorch_cpu", "-lc10"]
    command = ["g++", *FLAGS, *includes, str(HERE / "device.cpp"), "-o", str(unfinished)]
    if subprocess.run([*command, *libraries]).returncode:
        fail(f"the emulated CUDA device does not compile against the torch in {torch}")
    unfinished.rename(library)


def fail(message: str) -> NoReturn:
    print(f"scalepet: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
