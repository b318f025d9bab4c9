from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgtool.qemu.interview import none_monitor
from imgtool.qemu.programs import Programs
from imgtool.qemu.qmp import Monitor, QmpCommandError, QmpUnreachable, knock
from imgtool.qemu.system import start

pytestmark = pytest.mark.matrix


@pytest.fixture(scope="module")
def program() -> str:
    return Programs().find("qemu-system-x86_64")


@pytest.fixture(scope="module")
def monitor(program: str) -> Iterator[Monitor]:
    with none_monitor(program) as monitor:
        yield monitor


def test_a_command_returns_what_qemu_answers(monitor: Monitor) -> None:
    assert monitor.execute("query-status")["running"] is True
    assert monitor.execute("query-kvm", {})["enabled"] is False


def test_the_greeting_names_the_version_that_the_program_names(monitor: Monitor, program: str) -> None:
    assert Programs().version("qemu-system-x86_64").text.startswith(monitor.version.removesuffix(".0"))


def test_a_refusal_keeps_qapis_class_and_qemus_sentence(monitor: Monitor) -> None:
    with pytest.raises(QmpCommandError) as caught:
        monitor.execute("no-such-command")
    assert caught.value.error_class == "CommandNotFound"
    assert "no-such-command" in caught.value.description
    assert monitor.execute("query-status")["running"] is True


def test_a_program_that_is_asynchronous_itself_may_ask(program: str) -> None:
    async def ask() -> None:
        with none_monitor(program) as monitor:
            assert monitor.execute("query-status")["running"] is True
            with pytest.raises(QmpCommandError):
                monitor.execute("no-such-command")
            monitor.execute("stop")
            assert monitor.wait_event(["STOP"], seconds=10) is not None
            assert monitor.alive

    asyncio.run(ask())


def test_an_awaited_event_comes_and_others_are_passed_over(monitor: Monitor) -> None:
    monitor.execute("stop")
    monitor.execute("cont")
    event = monitor.wait_event(["RESUME"], seconds=10)
    assert event is not None
    assert event["event"] == "RESUME"


def test_waiting_for_an_event_ends_at_its_limit(monitor: Monitor) -> None:
    assert monitor.wait_event(["SHUTDOWN"], seconds=0.05) is None
    assert monitor.alive


def test_a_qemu_that_ends_is_unreachable_and_not_a_hang(program: str) -> None:
    with none_monitor(program) as monitor:
        monitor.execute("quit")
        assert monitor.wait_event(["NEVER"], seconds=20) is None
        assert not monitor.alive
        with pytest.raises(QmpUnreachable):
            monitor.execute("query-status", seconds=5)


@pytest.fixture
def listening(program: str) -> Iterator[str]:
    """The socket at which a QEMU of its own waits for QMP clients."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "qmp")
        process = start(
            [program, "-machine", "none", "-display", "none", "-qmp", f"unix:{path},server=on,wait=off"],
            detached=False,
        )
        try:
            while not os.path.exists(path) and process.poll() is None:
                process.wait(0.02)
            yield path
        finally:
            process.end()
            process.close()


def test_a_second_client_gets_an_error_instead_of_waiting_for_ever(listening: str) -> None:
    with Monitor.connect(listening):
        with pytest.raises(QmpUnreachable, match="did not answer within") as caught:
            Monitor.connect(listening, seconds=0.3)
        assert "one QMP client at a time" in str(caught.value.hint)
    with Monitor.connect(listening) as again:
        assert again.execute("query-status")


def test_who_knocks_hears_from_a_qemu_and_lets_the_next_client_in(listening: str) -> None:
    for _ in range(2):
        knock(listening, seconds=20)
    with Monitor.connect(listening) as monitor:
        with pytest.raises(QmpUnreachable, match="did not answer within"):
            knock(listening, seconds=0.3)
        assert monitor.execute("query-status")


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH_9.2\r\n"])
def test_who_knocks_where_no_qemu_answers_is_told(tmp_path: Path, said: bytes) -> None:
    path = str(tmp_path / "qmp")
    with pytest.raises(QmpUnreachable, match="No such file"):
        knock(path, seconds=5)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            connection.sendall(said)
            connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(QmpUnreachable, match=r"hung up|reset|Broken pipe"):
            knock(path, seconds=20)
        thread.join()
    with pytest.raises(QmpUnreachable, match="refused"):
        knock(path, seconds=5)


def test_a_server_that_never_answers_a_command_meets_the_time_limit() -> None:
    ours, theirs = socket.socketpair()

    def serve() -> None:
        theirs.sendall(b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 1}}, "capabilities": []}}\n')
        asked = theirs.recv(4096)
        identity = asked.partition(b'"id": "')[2].partition(b'"')[0]
        theirs.sendall(b'{"return": {}, "id": "' + identity + b'"}\n')

    server = threading.Thread(target=serve)
    server.start()
    with theirs, Monitor.connect(ours, seconds=10) as monitor:
        server.join()
        with pytest.raises(QmpUnreachable, match="did not answer query-status within"):
            monitor.execute("query-status", seconds=0.1)


def test_something_else_on_the_socket_is_unreachable() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
        with pytest.raises(QmpUnreachable, match="cannot be reached"):
            Monitor.connect(ours, seconds=5)


def test_a_socket_that_is_not_there_is_unreachable() -> None:
    with pytest.raises(QmpUnreachable, match="No such file"):
        Monitor.connect("/nonexistent/vm/qmp.sock")
