import socket

import psutil
import pytest

from qwenfleet.cluster.errors import MachineError
from qwenfleet.cluster.local.ports import check_port, free_port_range, free_ports

HOST = "127.0.0.1"


def test_a_free_port_passes() -> None:
    check_port(HOST, free_ports(1, HOST)[0])


def test_a_port_in_use_names_the_port_the_holder_and_the_way_out() -> None:
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(MachineError) as caught:
            check_port(HOST, port)
    me = psutil.Process()
    assert caught.value.problem == f"port {port} on {HOST} is in use by {me.name()} (pid {me.pid})"
    assert "--port" in caught.value.remedy


def test_a_holder_on_every_address_is_named_for_one_of_them() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(MachineError, match=rf"in use by .*pid {psutil.Process().pid}"):
            check_port(HOST, port)


def test_a_listener_on_another_address_is_not_the_holder() -> None:
    with socket.create_server(("127.0.0.2", 0)) as other:
        check_port(HOST, other.getsockname()[1])


def test_a_holder_that_may_not_be_seen_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(kind: str) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "net_connections", refuse)
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(MachineError) as caught:
            check_port(HOST, port)
    assert caught.value.problem == f"port {port} on {HOST} is in use"


def test_an_address_of_another_machine_points_at_the_host_option() -> None:
    with pytest.raises(MachineError, match=r"host '192\.0\.2\.1' is no address .* --host"):
        check_port("192.0.2.1", 8000)  # TEST-NET-1: no machine has it


def test_a_host_that_is_no_name_points_at_the_host_option() -> None:
    with pytest.raises(MachineError, match=r"host 'a\.\.b' .* --host"):
        check_port("a..b", 8000)


def test_free_ports_are_different_and_can_be_bound() -> None:
    ports = free_ports(5, HOST)
    assert len(set(ports)) == 5
    for port in ports:
        check_port(HOST, port)


def test_a_range_of_free_ports_holds_none_that_is_taken() -> None:
    ports = free_port_range(50, "127.0.0.1")
    assert len(ports) == 50
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports[25]))
        taken.listen()
        other = free_port_range(50, "127.0.0.1")
    assert ports[25] not in other
