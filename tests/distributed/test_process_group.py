"""Where the process group of a training listens."""

import socket

import psutil
import pytest

from raycrt.distributed.training import process_group


@pytest.fixture(autouse=True)
def ended():
    yield
    process_group._listening.clear()


def listening(port: int) -> list[str]:
    ours = psutil.Process().net_connections("tcp")
    return [
        use.laddr.ip for use in ours if use.status == psutil.CONN_LISTEN and use.laddr.port == port
    ]


def test_the_store_listens_on_one_address_alone():
    port = process_group._listen("127.0.0.1")
    assert port in process_group.PORTS
    assert listening(port) == ["127.0.0.1"]


def test_a_port_that_is_taken_is_passed_over(monkeypatch):
    with (
        socket.create_server(("127.0.0.1", 0)) as first,
        socket.create_server(("127.0.0.1", 0)) as second,
    ):
        taken = first.getsockname()[1]
        free = second.getsockname()[1]
        second.close()
        monkeypatch.setattr(process_group, "PORTS", [taken, free])
        assert process_group._listen("127.0.0.1") == free


def test_no_free_port_is_an_error_that_names_the_range(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(process_group, "PORTS", range(port, port + 1))
        with pytest.raises(RuntimeError, match=f"no port of {port} to {port} is free on 127.0.0.1"):
            process_group._listen("127.0.0.1")


def test_an_interface_is_found_by_its_address():
    assert process_group.interface("127.0.0.1") == "lo"
    with pytest.raises(RuntimeError, match=r"has the address 192\.0\.2\.77"):
        process_group.interface("192.0.2.77")
