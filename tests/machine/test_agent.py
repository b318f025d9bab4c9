"""The agent's client against the real qemu-ga, which here takes this host for its guest."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator

import pytest

from imgtool.machine.agent import Agent, AgentError, AgentUnavailable, NoSuchProgramError, session
from imgtool.qemu.system import start
from tests.machine.impostor import impostor


@pytest.fixture(scope="module")
def agent_socket() -> Iterator[str]:
    program = shutil.which("qemu-ga") or "/usr/sbin/qemu-ga"
    with tempfile.TemporaryDirectory(prefix="it-", dir="/tmp") as folder:
        path = os.path.join(folder, "agent.sock")
        argv = [program, "-m", "unix-listen", "-p", path, "-t", folder, "-f", os.path.join(folder, "pid")]
        process = start(argv, detached=False)
        deadline = time.monotonic() + 30
        while not os.path.exists(path) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        yield path
        process.end()
        process.close()


def test_a_command_runs_and_its_streams_and_status_come_back(agent_socket: str) -> None:
    with session(agent_socket) as guest:
        done = guest.execute(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (done.status, done.stdout, done.stderr, done.truncated) == (3, b"out\n", b"err\n", False)


def test_bytes_and_stdin_pass_unharmed(agent_socket: str) -> None:
    payload = bytes(range(256)) * 300
    with session(agent_socket) as guest:
        assert guest.execute(["cat"], stdin=payload).stdout == payload


def test_a_command_that_a_signal_ended_has_the_status_a_shell_gives_it(agent_socket: str) -> None:
    with session(agent_socket) as guest:
        assert guest.execute(["sh", "-c", "kill -TERM $$"]).status == 128 + 15


def test_a_command_that_is_not_there_ends_as_in_a_shell(agent_socket: str) -> None:
    with session(agent_socket) as guest, pytest.raises(NoSuchProgramError) as caught:
        guest.execute(["/nonexistent/program"])
    assert caught.value.message == "the guest has no program /nonexistent/program"
    assert caught.value.exit_status == 127


def test_a_command_that_may_not_run_is_the_agents_own_error(agent_socket: str) -> None:
    with session(agent_socket) as guest, pytest.raises(AgentError, match="the guest agent refused guest-exec"):
        guest.execute(["/etc/passwd"])


def test_a_command_that_takes_too_long_is_given_up(agent_socket: str) -> None:
    with session(agent_socket) as guest, pytest.raises(AgentError, match="still runs in the guest after"):
        guest.execute(["sleep", "2"], seconds=0.1)


def test_what_a_broken_off_session_left_does_not_disturb_the_next(agent_socket: str) -> None:
    with socket.socket(socket.AF_UNIX) as rude:
        rude.connect(agent_socket)
        rude.sendall(b'{"execute": "guest-ping"}\n{"execute": "guest-i')
        rude.recv(100)  # a socket closed on unread data would end this qemu-ga, which no virtio port does
    with session(agent_socket) as guest:
        assert guest.call("guest-ping") == {}
        assert "version" in guest.call("guest-info")


def test_of_two_sessions_the_second_waits_and_then_says_why_not(agent_socket: str) -> None:
    second = session(agent_socket, seconds=0.2)
    with session(agent_socket), pytest.raises(AgentUnavailable, match="another imgtool is talking"):
        second.__enter__()
    with session(agent_socket) as guest:
        assert guest.call("guest-ping") == {}


def test_an_answer_to_an_earlier_sync_is_passed_over() -> None:
    ours, theirs = socket.socketpair()

    def serve() -> None:
        asked = theirs.recv(4096)
        mark = asked.partition(b'"id": ')[2].partition(b"}")[0]
        theirs.sendall(b'{"return": {}}\n\xff{"return": 1}\n' + b'\xff{"return": ' + mark + b"}\n")

    server = threading.Thread(target=serve)
    server.start()
    with ours, theirs:
        Agent(ours).sync(seconds=10)
        server.join()


def test_silence_and_nonsense_are_no_agent() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(AgentUnavailable, match="does not answer"):
            Agent(ours).sync(seconds=0.05)
        theirs.sendall(b"\xffSSH-2.0\n")
        with pytest.raises(AgentUnavailable, match="is not a guest agent"):
            Agent(ours).sync(seconds=5)


def test_a_channel_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(AgentUnavailable) as caught, session("/nonexistent/agent.sock"):
        pass
    assert (caught.value.message, caught.value.hint) == (
        "there is no channel to a guest agent",
        "boot it with --agent, and with qemu-guest-agent running in the guest",
    )


@pytest.mark.parametrize(
    "started", [b'{"return": {}}', b'{"return": []}', b'{"return": {"pid": "x"}}', b"{}", b"[]", b"[" * 10**6]
)
def test_an_answer_of_another_shape_is_no_agents(started: bytes) -> None:
    with (
        impostor({"guest-exec": started}) as folder,
        session(f"{folder}/agent.sock") as guest,
        pytest.raises(AgentUnavailable, match="is not a guest agent"),
    ):
        guest.execute(["true"])


@pytest.mark.parametrize("ended", [b"{}", b'{"exited": 1}', b'{"exited": true, "out-data": "?"}'])
def test_an_end_of_another_shape_is_no_agents(ended: bytes) -> None:
    answers = {"guest-exec": b'{"return": {"pid": 1}}', "guest-exec-status": b'{"return": ' + ended + b"}"}
    with (
        impostor(answers) as folder,
        session(f"{folder}/agent.sock") as guest,
        pytest.raises(AgentUnavailable, match="is not a guest agent"),
    ):
        guest.execute(["true"])


@pytest.mark.parametrize("error", [b'"no\\u001b[2J"', b'{"desc": "no\\u001b[2J"}'])
def test_a_refusal_is_shown_without_what_moves_a_cursor(error: bytes) -> None:
    with (
        impostor({"guest-ping": b'{"error": ' + error + b"}"}) as folder,
        session(f"{folder}/agent.sock") as guest,
        pytest.raises(AgentError) as caught,
    ):
        guest.call("guest-ping")
    assert caught.value.message == r"the guest agent refused guest-ping: no\x1b[2J"


def test_an_endless_answer_is_no_agents() -> None:
    ours, theirs = socket.socketpair()

    def flood() -> None:
        with contextlib.suppress(OSError):
            while True:
                theirs.sendall(bytes(1 << 20))

    flooder = threading.Thread(target=flood)
    flooder.start()
    with theirs:
        with ours, pytest.raises(AgentUnavailable, match="is not a guest agent"):
            Agent(ours).sync(seconds=600)
        flooder.join()
