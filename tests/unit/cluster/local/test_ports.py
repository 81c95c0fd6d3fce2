import socket

import psutil
import pytest

from qwenfleet.cluster.errors import MachineError
from qwenfleet.cluster.local.ports import check_port, free_port_range, free_ports

HOST = "127.0.0.1"


def test_a_free_port_passes() -> None:
    check_port(HOST, free_ports(1, HOST)[0])


def test_the_error_for_a_port_in_use_names_the_port_its_holder_and_a_remedy() -> None:
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(MachineError) as caught:
            check_port(HOST, port)
    me = psutil.Process()
    assert caught.value.problem == f"port {port} on {HOST} is in use by {me.name()} (pid {me.pid})"
    assert "--port" in caught.value.remedy


def test_a_holder_of_the_port_on_all_addresses_is_named() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(MachineError, match=rf"in use by .*pid {psutil.Process().pid}"):
            check_port(HOST, port)


def test_a_listener_on_another_address_is_not_the_holder() -> None:
    with socket.create_server(("127.0.0.2", 0)) as other:
        check_port(HOST, other.getsockname()[1])


def test_a_holder_that_this_user_may_not_see_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(kind: str) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "net_connections", refuse)
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(MachineError) as caught:
            check_port(HOST, port)
    assert caught.value.problem == f"port {port} on {HOST} is in use"


def test_the_error_for_another_machines_address_suggests_the_host_option() -> None:
    with pytest.raises(MachineError, match=r"host '192\.0\.2\.1' is not an address .* --host"):
        check_port("192.0.2.1", 8000)  # TEST-NET-1: no machine has it


def test_the_error_for_an_unresolvable_host_suggests_the_host_option() -> None:
    with pytest.raises(MachineError, match=r"host 'a\.\.b' .* --host"):
        check_port("a..b", 8000)


def test_free_ports_are_different_and_can_be_bound() -> None:
    ports = free_ports(5, HOST)
    assert len(set(ports)) == 5
    for port in ports:
        check_port(HOST, port)


def test_a_range_of_free_ports_contains_no_port_in_use() -> None:
    ports = free_port_range(50, "127.0.0.1")
    assert len(ports) == 50
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports[25]))
        taken.listen()
        other = free_port_range(50, "127.0.0.1")
    assert ports[25] not in other
