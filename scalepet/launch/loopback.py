"""Where one machine is enough, its processes meet where no other machine reaches them: what torch
lets them meet at asks nobody who they are, and listens at all networks of the machine.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator, MutableMapping
from typing import Any

from torch.distributed import HashStore, Store, TCPStore, register_rendezvous_handler

_ALONE = "scalepet-alone"


def is_loopback(address: str) -> bool:
    """Whether processes that meet there are of one machine; a name of the machine does not say
    so, also where the machine itself finds it on its loopback.
    """
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def open_store(address: str, port: int, *, is_master: bool, **options: Any) -> TCPStore:
    """A store of torch's; at a loopback address the one who keeps it listens there alone.

    Args:
        options: of ``TCPStore``.

    Raises:
        OSError, RuntimeError: the port is taken (the one who keeps it), or nobody is reached there
            in time (the others).
    """
    if is_master and is_loopback(address):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        server = socket.create_server((address, port), family=family)
        options["master_listen_fd"] = server.detach()
    return TCPStore(address, port, is_master=is_master, **options)


def keep_to_loopback(
    *, is_alone: bool, environment: MutableMapping[str, str] = os.environ
) -> str | None:
    """The ``init_method`` of a process group: of one process that is alone, which needs no port at
    all, or torch's own for the others, which have met by then.

    Where MASTER_ADDR is a loopback address, gloo keeps to it, too, unless the user has chosen.
    """
    if is_loopback(environment["MASTER_ADDR"]):
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return f"{_ALONE}://" if is_alone else None


def _meet_nobody(_url: str, **_: Any) -> Iterator[tuple[Store, int, int]]:
    yield HashStore(), 0, 1


register_rendezvous_handler(_ALONE, _meet_nobody)
