from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imgtool.errors import CommandCrashed, CommandError, ProgramError
from imgtool.qemu.system import start


def test_a_program_that_ends_by_itself_leaves_its_status() -> None:
    process = start(["/bin/sh", "-c", "exit 7"], detached=False)
    assert process.wait(10) == 7
    assert process.poll() == 7
    process.close()


def test_waiting_for_less_than_the_program_takes_says_that_it_runs() -> None:
    process = start(["/bin/sleep", "60"], detached=False)
    assert process.wait(0.05) is None
    assert process.end() == -signal.SIGTERM
    process.close()


def test_a_program_that_ignores_sigterm_is_killed_after_the_grace() -> None:
    process = start(["/bin/sh", "-c", "trap '' TERM; echo armed >&2; while :; do sleep 0.05; done"], detached=False)
    while b"armed" not in process.stderr():
        time.sleep(0.01)
    assert process.end(grace=0.1) == -signal.SIGKILL
    process.close()


def test_the_error_of_a_failed_start_is_what_the_program_said() -> None:
    process = start(["/bin/sh", "-c", "echo 'no such\x1b[2Jmachine' >&2; exit 1"], detached=False)
    process.wait(10)
    error = process.failure(hint="try another")
    process.close()
    assert isinstance(error, CommandError)
    assert error.message == "sh: no such\\x1b[2Jmachine"
    assert error.status == 1
    assert error.hint == "try another"


def test_a_crash_is_told_from_a_failure() -> None:
    process = start(["/bin/sh", "-c", "kill -SEGV $$"], detached=False)
    process.wait(10)
    error = process.failure()
    process.close()
    assert isinstance(error, CommandCrashed)
    assert error.status == -signal.SIGSEGV


def test_a_program_that_is_missing_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match=r"cannot start .*/none: No such file or directory"):
        start([str(tmp_path / "none")], detached=False)


def test_stderr_goes_to_the_named_file_which_only_its_owner_reads(tmp_path: Path) -> None:
    log = tmp_path / "qemu.log"
    process = start(["/bin/sh", "-c", "echo out; echo err >&2"], detached=False, stderr=str(log))
    process.wait(10)
    process.close()
    assert sorted(log.read_text().split()) == ["err", "out"]
    assert log.stat().st_mode & 0o777 == 0o600


def test_no_other_descriptors_are_handed_on() -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    process = start(["/bin/sleep", "60"], detached=True)
    os.close(writing)
    assert os.read(reading, 1) == b""  # the program, which still runs, has no writing end
    os.close(reading)
    process.end()
    process.close()
    process.close()


def test_standard_streams_that_are_closed_are_not_taken_by_the_log() -> None:
    code = (
        "import os, sys; from imgtool.qemu.system import start; os.closerange(0, 2);"
        "process = start(['/bin/sh', '-c', 'cat; echo out; echo err >&2'], detached=False);"
        "process.wait(10); os.write(2, process.stderr())"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, check=True)
    assert done.stderr == b"out\nerr\n"


def test_descriptors_are_handed_on_under_their_numbers() -> None:
    reading, writing = os.pipe()
    process = start(["/bin/sh", "-c", f"echo hello >/dev/fd/{writing}"], detached=False, pass_fds=[writing])
    os.close(writing)
    assert os.read(reading, 100) == b"hello\n"
    os.close(reading)
    process.wait(10)
    process.close()


PARENT = """
import sys, time
from imgtool.qemu.system import start
how = sys.argv[1]
place = {"detached": how in ("tied", "detached"), "tied": how == "tied", "terminal": how == "terminal"}
closing = [sys.executable, "-c", "import os, time; os.closerange(3, 256); os.write(2, b'closed'); time.sleep(60)"]
process = start(closing if "closes" in how else ["/bin/sleep", "60"], **place)
while "closes" in how and process.stderr() != b"closed":
    time.sleep(0.01)
if "let go" in how:
    process.close()
print(process.pid, flush=True)
time.sleep(60)
"""


def _gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _start_under_a_parent_that_is_killed(how: str) -> int:
    with subprocess.Popen([sys.executable, "-c", PARENT, how], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    return pid


@pytest.mark.parametrize(
    "how", ["foreground", "terminal", "tied", "let go", "closes what it has", "closes it, let go"]
)
def test_a_program_in_the_foreground_or_tied_to_imgtool_ends_with_it_even_by_kill_9(how: str) -> None:
    pid = _start_under_a_parent_that_is_killed(how)
    deadline = time.monotonic() + 20
    while not _gone(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert _gone(pid)


def test_a_detached_program_outlives_imgtool_in_a_session_of_its_own() -> None:
    pid = _start_under_a_parent_that_is_killed("detached")
    try:
        assert not _gone(pid)
        assert os.getsid(pid) == pid
    finally:
        os.kill(pid, signal.SIGKILL)


def test_the_process_is_recorded_before_the_program_begins(tmp_path: Path) -> None:
    record = tmp_path / "pid"
    process = start(["/bin/cat", str(record)], detached=True, record=str(record))
    process.wait(10)
    said = process.stderr()
    process.close()
    assert said == record.read_bytes()
    assert said.startswith(f"{process.pid} (".encode())
