"""Where the processes of one machine meet, no other machine can take part."""

from __future__ import annotations

import socket
from datetime import timedelta
from pathlib import Path

import pytest
from running import SCALEPET, free_port, run
from torch.distributed import TCPStore

from scalepet.launch.loopback import is_loopback, keep_to_loopback, open_store


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("10.99.88.1", False),
        ("0.0.0.0", False),
        ("node1", False),
        (socket.gethostname(), False),
    ],
)
def test_what_says_that_one_machine_is_enough(address: str, expected: bool) -> None:
    environment = {"MASTER_ADDR": address}
    assert is_loopback(address) is expected
    assert keep_to_loopback(is_alone=False, environment=environment) is None
    assert environment.get("GLOO_SOCKET_IFNAME") == ("lo" if expected else None)


def test_what_the_user_has_chosen_stays() -> None:
    environment = {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "eth0"}
    keep_to_loopback(is_alone=True, environment=environment)
    assert environment["GLOO_SOCKET_IFNAME"] == "eth0"


def test_a_store_is_reached_at_its_address_and_no_other() -> None:
    port, options = free_port(), {"wait_for_workers": False, "timeout": timedelta(seconds=5)}
    store = open_store("127.0.0.1", port, is_master=True, **options)
    other = open_store("127.0.0.1", port, is_master=False, **options)
    other.set("here", "yes")
    assert store.get("here") == b"yes"
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", port), timeout=5)
    with pytest.raises(OSError, match="in use"):
        open_store("127.0.0.1", port, is_master=True, **options)
    of_torch = TCPStore("127.0.0.1", 0, is_master=True, **options)
    socket.create_connection(("127.0.0.2", of_torch.port), timeout=5).close()


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_group_of_one_machine_is_closed_to_others(num_ranks: int) -> None:
    script = Path(__file__).with_name("listening.py")
    assert run([SCALEPET[0], script], num_ranks=num_ranks).split() == ["open"] * num_ranks
