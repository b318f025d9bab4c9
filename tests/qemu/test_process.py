import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from imgtool.errors import CommandCrashed, CommandError, CommandTimeout, ProgramError
from imgtool.qemu.process import Limits, failure, run


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", textwrap.dedent(code)]


def alive(pid: int) -> bool:
    """Whether `pid` runs; one that has ended and only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(pid: int, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not alive(pid)


def wait_for_pid(path: Path) -> int:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        text = path.read_text() if path.exists() else ""
        if text.endswith("\n"):
            return int(text)
        time.sleep(0.01)
    raise AssertionError("the child never started")


def test_output_and_status_are_kept_apart() -> None:
    argv = python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    done = run(argv)
    assert (done.argv, done.status, done.stdout, done.stderr) == (tuple(argv), 3, b"out\n", b"err\n")


def test_a_program_that_is_not_there_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ProgramError) as caught:
        run(["ssh", "-V"])
    assert (caught.value.message, caught.value.hint) == (
        "ssh was not found on PATH",
        "on Debian: apt-get install openssh-client",
    )


def test_much_output_on_both_pipes_does_not_block() -> None:
    done = run(python("import os\nfor _ in range(64): os.write(1, b'o' * 65536); os.write(2, b'e' * 65536)"))
    assert len(done.stdout) == 64 * 65536
    assert set(done.stderr) == {ord("e")}


def test_a_program_gets_no_input_and_speaks_english() -> None:
    done = run(python("import os, sys; print(sys.stdin.read() == '', os.environ['LC_ALL'])"))
    assert done.stdout == b"True C\n"


def test_a_name_that_is_no_utf8_arrives_as_it_is() -> None:
    done = run([*python("import os, sys; os.write(1, os.fsencode(sys.argv[1]))"), os.fsdecode(b"a\xff\nb")])
    assert done.stdout == b"a\xff\nb"


def test_output_is_seen_while_the_program_runs(tmp_path: Path) -> None:
    seen = []

    def take(piece: bytes) -> None:
        seen.append(piece)
        (tmp_path / "go").touch()

    code = """
        import os, sys, time
        os.write(1, b"first")
        end = time.monotonic() + 30
        while not os.path.exists(sys.argv[1]) and time.monotonic() < end:
            time.sleep(0.01)
        os.write(1, b"second" if os.path.exists(sys.argv[1]) else b"nobody looked")
    """
    done = run([*python(code), str(tmp_path / "go")], on_stdout=take)
    assert seen == [b"first", b"second"]
    assert done.stdout == b""


def test_a_program_is_stopped_at_its_time_limit(tmp_path: Path) -> None:
    code = """
        import os, sys, time
        print(os.getpid(), flush=True)
        print("so far", file=sys.stderr, flush=True)
        time.sleep(600)
    """
    with pytest.raises(CommandTimeout) as caught:
        run(python(code), limits=Limits(seconds=2.0))
    assert caught.value.status is None
    assert caught.value.stderr == b"so far\n"
    assert wait_until_gone(int(caught.value.stdout))


def test_a_program_that_never_stops_writing_is_stopped_too() -> None:
    with pytest.raises(CommandTimeout):
        run(python("import os\nwhile True: os.write(1, b'x')"), limits=Limits(seconds=0.5), on_stdout=lambda _: None)


def test_a_program_that_closes_its_output_and_stays_is_stopped_too() -> None:
    with pytest.raises(CommandTimeout):
        run(python("import os, time; os.close(1); os.close(2); time.sleep(600)"), limits=Limits(seconds=0.5))


def test_a_program_deaf_to_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgtool.qemu.process._GRACE", 0.2)
    code = """
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(os.getpid(), flush=True)
        time.sleep(600)
    """
    with pytest.raises(CommandTimeout) as caught:
        run(python(code), limits=Limits(seconds=2.0))
    assert wait_until_gone(int(caught.value.stdout))


def test_a_script_that_runs_the_program_ends_with_it(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(CommandTimeout):
        run(["/bin/sh", "-c", f"sleep 600 & echo $! >{pid}; wait"], limits=Limits(seconds=2.0))
    assert wait_until_gone(int(pid.read_text()))


@pytest.mark.parametrize("seconds", [3e6, 1e20, float("inf")])
def test_a_time_limit_may_be_longer_than_the_system_can_wait(seconds: float) -> None:
    assert run(["/bin/sh", "-c", "sleep 0.01; exit 3"], limits=Limits(seconds=seconds)).status == 3


def test_cpu_time_is_limited() -> None:
    done = run(python("while True: pass"), limits=Limits(cpu_seconds=1))
    assert done.status in (-signal.SIGXCPU, -signal.SIGKILL)
    assert isinstance(failure(done), CommandCrashed)


def test_address_space_is_limited() -> None:
    done = run(python("bytearray(1 << 30)"), limits=Limits(address_space="256M"))
    assert done.status == 1
    assert b"MemoryError" in done.stderr


def test_an_error_in_the_caller_ends_the_program(tmp_path: Path) -> None:
    pids = []

    def give_up(piece: bytes) -> None:
        pids.append(int(piece))
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        run(python("import os, time; print(os.getpid(), flush=True); time.sleep(600)"), on_stdout=give_up)
    assert wait_until_gone(pids[0])


def test_what_is_done_meanwhile_is_done_while_the_program_runs(tmp_path: Path) -> None:
    waits = 'while [ ! -e "$0" ]; do sleep 0.01; done; echo seen'
    done = run(["timeout", "30", "sh", "-c", waits, str(tmp_path / "go")], meanwhile=(tmp_path / "go").touch)
    assert done.stdout == b"seen\n"


def test_an_error_in_what_is_done_meanwhile_ends_the_program(tmp_path: Path) -> None:
    pids = []

    def fail() -> None:
        pids.append(wait_for_pid(tmp_path / "pid"))
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        run(["sh", "-c", 'echo $$ >"$0"; exec sleep 600', str(tmp_path / "pid")], meanwhile=fail)
    assert wait_until_gone(pids[0])


RUNNER = """
    import sys
    from imgtool.qemu.process import run
    code = "import os, sys, time; print(os.getpid(), file=open(sys.argv[1], 'w'), flush=True); time.sleep(600)"
    try:
        run([sys.executable, "-S", "-c", code, sys.argv[1]])
    except KeyboardInterrupt:
        print("interrupted")
"""


def start_runner(tmp_path: Path) -> tuple[subprocess.Popen[bytes], int]:
    argv = [sys.executable, "-c", textwrap.dedent(RUNNER), str(tmp_path / "pid")]
    runner = subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True)
    return runner, wait_for_pid(tmp_path / "pid")


def test_ctrl_c_ends_the_program_first(tmp_path: Path) -> None:
    runner, pid = start_runner(tmp_path)
    # What a terminal does: SIGINT to the foreground process group, of which the program is no part.
    os.killpg(runner.pid, signal.SIGINT)
    out, _ = runner.communicate(timeout=30)
    assert out == b"interrupted\n"
    assert not alive(pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_imgtool_leaves_no_program_behind(tmp_path: Path, number: signal.Signals) -> None:
    runner, pid = start_runner(tmp_path)
    runner.send_signal(number)
    runner.communicate(timeout=30)
    assert wait_until_gone(pid)


DYING = """
    import os, signal, sys
    from imgtool.qemu import process
    process.Child.begin = lambda child, **_: print(child.pid, flush=True) or os.kill(os.getpid(), signal.SIGKILL)
    process.run(["/bin/touch", sys.argv[1]])
"""


def test_a_program_does_not_begin_when_imgtool_dies_before_it_is_tied(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", textwrap.dedent(DYING), str(tmp_path / "begun")]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=False)
    assert done.returncode == -signal.SIGKILL
    assert wait_until_gone(int(done.stdout))
    assert not (tmp_path / "begun").exists()


def test_where_the_kernel_forgets_how_programs_end_none_succeeds() -> None:
    code = (
        "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); from imgtool.qemu.process import run;"
        "print(run(['/bin/true']).status)"
    )
    assert run([sys.executable, "-c", code]).stdout == b"255\n"


def test_standard_streams_that_are_closed_are_none_of_the_programs(tmp_path: Path) -> None:
    code = (
        "import os, sys; from imgtool.qemu.process import run; os.closerange(0, 3);"
        "done = run(['sh', '-c', 'cat; echo out; echo err >&2']);"
        "open(sys.argv[1], 'w').write(repr((done.stdout, done.stderr)))"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "said"], check=True)
    assert (tmp_path / "said").read_text() == "(b'out\\n', b'err\\n')"


def test_a_program_runs_in_the_directory_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "-it's a\nplace").mkdir()
    (tmp_path / "link").symlink_to("-it's a\nplace")
    found = run(["/bin/pwd", "-P"], cwd=os.path.join(tmp_path, "link", "..", "link"))
    assert found.stdout == os.fsencode(tmp_path / "-it's a\nplace") + b"\n"
    with pytest.raises(ProgramError, match="No such file"):
        run(["/bin/pwd"], cwd=str(tmp_path / "none"))


def test_a_crash_is_told_from_a_failure() -> None:
    error = failure(run(python("import os; os.kill(os.getpid(), 11)")), path="/a", hint="try it")
    assert isinstance(error, CommandCrashed)
    assert error.status == -signal.SIGSEGV
    assert "SIGSEGV" in error.message
    assert (error.path, error.hint) == ("/a", "try it")


def test_a_failure_keeps_what_is_needed_to_look_into_it() -> None:
    done = run(["/bin/sh", "-c", "echo out; echo 'sh: no such thing' >&2; exit 4", "a b"])
    error = failure(done)
    assert type(error) is CommandError
    assert error.message == "sh: no such thing"
    assert (error.status, error.stdout, error.stderr) == (4, b"out\n", b"sh: no such thing\n")
    assert run(["/bin/sh", "-c", error.command]).stderr == error.stderr


def test_a_failure_without_words_says_its_status() -> None:
    assert failure(run(["/bin/sh", "-c", "exit 9"])).message == "sh failed with exit status 9"


def test_words_that_could_drive_a_terminal_are_escaped() -> None:
    error = failure(run(["/bin/sh", "-c", r"printf 'bad \033[2J name\n' >&2; exit 1"]))
    assert "\x1b" not in error.message
    assert "\\x1b[2J" in error.message


def test_a_program_that_is_not_there_is_a_program_error() -> None:
    with pytest.raises(ProgramError) as caught:
        run(["/no/such/program"])
    assert "/no/such/program" in caught.value.message


def test_descriptors_are_handed_on_only_when_named(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:
        fd = file.fileno()
        os.set_inheritable(fd, True)  # as what a shell was told to open (`9>lock`) is
        assert run([*python("import os, sys; os.fstat(int(sys.argv[1]))"), str(fd)]).status == 1
        assert run([*python("import os, sys; os.fstat(int(sys.argv[1]))"), str(fd)], pass_fds=[fd]).status == 0
