from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgtool.machine.process import ProcessId, boot_identity, parse_stat


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["/bin/sleep", "60"]) as child:
        yield child
        child.kill()


def test_a_process_is_known_by_its_pid_and_start(sleeper: subprocess.Popen[bytes]) -> None:
    process = ProcessId.of(sleeper.pid)
    assert process is not None
    assert process.pid == sleeper.pid
    assert process.alive


def test_the_same_pid_with_another_start_is_another_process(sleeper: subprocess.Popen[bytes]) -> None:
    process = ProcessId.of(sleeper.pid)
    assert process is not None
    assert process.started is not None
    earlier = ProcessId(process.pid, process.started - 1)
    assert not earlier.alive
    assert not earlier.send(signal.SIGKILL)
    assert sleeper.poll() is None


def test_a_signal_reaches_the_process_and_waiting_sees_its_end(sleeper: subprocess.Popen[bytes]) -> None:
    process = ProcessId.of(sleeper.pid)
    assert process is not None
    assert not process.wait(0.02)
    assert process.send(signal.SIGTERM)
    assert process.wait(20)
    assert not process.alive


def test_a_zombie_is_no_longer_alive(sleeper: subprocess.Popen[bytes]) -> None:
    process = ProcessId.of(sleeper.pid)
    assert process is not None
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert not process.alive


def test_a_process_without_its_first_thread_lives_until_the_last_has_ended() -> None:
    """As QEMU is for a moment when it is killed: called a zombie, with its images and taps still open."""
    number = {"x86_64": 60, "aarch64": 93}[os.uname().machine]
    program = f"""
import ctypes, threading, time
threading.Thread(target=time.sleep, args=[60]).start()
print(flush=True)
ctypes.CDLL(None).syscall({number}, 0)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            while b") Z " not in Path(f"/proc/{child.pid}/stat").read_bytes():
                time.sleep(0.01)
            process = ProcessId.of(child.pid)
            assert process is not None
            assert not process.wait(0.1)
            assert process.send(signal.SIGKILL)
            assert process.wait(20)
        finally:
            child.kill()


def test_a_command_name_with_parentheses_and_spaces_does_not_mislead() -> None:
    fields = b"S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 9 9"
    assert parse_stat(b"42 (a) b (c)) " + fields) == ProcessId(42, 4711)


@pytest.mark.parametrize("content", [b"", b"42", b"42 (x) Z 1 1", b"x) S"])
def test_anything_else_is_no_process(content: bytes) -> None:
    assert parse_stat(content) is None


def test_the_host_says_which_boot_this_is() -> None:
    assert boot_identity()
    assert boot_identity() == boot_identity()


@pytest.mark.parametrize("seconds", [3e6, 1e20, float("inf")])
def test_the_end_may_be_waited_for_longer_than_the_system_can_wait(seconds: float) -> None:
    with subprocess.Popen(["/bin/sleep", "0.05"]) as child:
        process = ProcessId.of(child.pid)
        assert process is not None
        assert process.wait(seconds)
