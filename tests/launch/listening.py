"""Joins the processes of a group, and prints where this process then listens for other machines."""

from __future__ import annotations

from pathlib import Path

from scalepet import engine

LOOPBACK = ("0100007F:", "00000000000000000000000001000000:", "0000000000000000FFFF00000100007F:")


def open_to_others() -> list[str]:
    """As in 00000000:1F90, of /proc/net/tcp."""
    own = {path.readlink().name for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            _, address, _, state, *_, inode = line.split()[:10]
            is_ours = state == "0A" and f"socket:[{inode}]" in own
            if is_ours and not address.startswith(LOOPBACK):
                found.append(address)
    return found


if __name__ == "__main__":
    engine.join_processes(timeout_seconds=30)
    print("open", *open_to_others())
    engine.leave_processes()
    engine.end_process(0)
