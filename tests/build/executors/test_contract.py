"""What every way into a guest has to do alike, and what only a booted guest can show: reboots, frozen file systems,
which way is chosen, an end. In one file, so that one process boots each guest once."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from imgtool.build.executor import Executor, ExecutorError, GuestLost, Kind, StepTimeout
from imgtool.build.executors.choose import connect_any, ways_into
from imgtool.qemu.qemu_img import QemuImg
from tests.build.booting import READY_SECONDS
from tests.build.executors.conftest import GUEST_WAYS, Guests, at_a_terminal, at_terminals, in_all_guests

ALL_BYTES = bytes(range(256))
AWKWARD = 'it\'s "a" $(b) `c` \\d\n*é€ -n'


def output_of(way: Executor, script: bytes, **options: object) -> bytes:
    """What the script prints; it has to succeed."""
    said = bytearray()
    status = way.run(script, on_output=said.extend, **options)  # type: ignore[arg-type]
    assert status == 0, bytes(said)
    return bytes(said)


@at_terminals
@pytest.mark.parametrize(
    ("script", "status"),
    [(b"exit 1", 1), (b"no-such-command-here", 127), (b"false; exit 0", 1), (b"kill -TERM $$", 143)],
)
def test_exit_statuses_are_those_of_the_script(way: Executor, script: bytes, status: int) -> None:
    assert way.run(script) == status


@in_all_guests
def test_exit_statuses_at_their_edges(way: Executor) -> None:
    assert [way.run(script) for script in (b"exit 0", b"exit 255", b"kill -9 $$")] == [0, 255, 137]


@in_all_guests
def test_output_comes_byte_for_byte_whatever_it_is(way: Executor, place: str, tmp_path: Path) -> None:
    (tmp_path / "all").write_bytes(ALL_BYTES * 3)
    way.put(str(tmp_path / "all"), f"{place}/all")
    assert output_of(way, f"cat {place}/all; printf end".encode()) == ALL_BYTES * 3 + b"end"
    assert output_of(way, b"echo out; echo err >&2; printf 'no newline'") == b"out\nerr\nno newline"
    assert output_of(way, b"true") == b""


def test_a_hundred_thousand_lines_come_in_their_order(way: Executor) -> None:
    assert output_of(way, b"seq 100000") == b"".join(b"%d\n" % number for number in range(1, 100_001))


def test_arguments_and_environment_are_given_as_they_are(way: Executor) -> None:
    said = output_of(
        way,
        b'printf "%s|%s|%s" "$PLAIN" "$AWKWARD" "$EMPTY"',
        env={"PLAIN": "a", "AWKWARD": AWKWARD, "EMPTY": ""},
    )
    assert said == f"a|{AWKWARD}|".encode()
    argv = ["/bin/sh", "-c", 'printf "<%s>" "$@"', "sh", AWKWARD, "", "*"]
    assert output_of(way, b"", interpreter=argv).startswith(f"<{AWKWARD}><><*><".encode())


def test_the_script_is_a_file_of_any_bytes(way: Executor) -> None:
    script = ALL_BYTES + b"no newline"
    assert output_of(way, script, interpreter=["cat"]) == script


def test_commands_run_as_root_in_the_root_folder_without_stdin(way: Executor) -> None:
    assert output_of(way, b"id -u; pwd; cat; echo $HOME $LANG") == b"0\n/\n/root C.UTF-8\n"
    names = output_of(way, b"env").decode().splitlines()
    assert {name.partition("=")[0] for name in names} <= {"PATH", "HOME", "LANG", "TERM", "PWD", "SHLVL", "_"}


@at_terminals
def test_an_interpreter_that_is_not_there_is_status_127(way: Executor) -> None:
    assert way.run(b"", interpreter=["/no/such/interpreter"]) == 127


class Stop(Exception):  # noqa: N818
    """Raised by who looks at the output."""


def run_still(way: Executor, pids: bytes) -> bytes:
    """Which of the processes run; one that has ended and was not reaped does not."""
    look = b"""
    [ -e /proc/self ] || mount -t proc proc /proc
    for p in $PIDS; do grep -q '^State:[[:space:]]*[^Z[:space:]]' /proc/$p/status 2>/dev/null && echo $p; done; :
    """
    return output_of(way, look, interpreter=["/bin/sh"], env={"PIDS": pids.decode()})


def test_output_is_live_and_who_stops_looking_ends_the_command(way: Executor) -> None:
    said = bytearray()

    def look(piece: bytes) -> None:
        said.extend(piece)
        if b"\n" in said:
            raise Stop

    with pytest.raises(Stop):
        way.run(b"echo $$; sleep 3600", on_output=look)  # it would never come if it were kept back
    assert run_still(way, bytes(said).strip()) == b""


def test_a_time_limit_ends_the_command_and_all_it_started(way: Executor) -> None:
    said = bytearray()
    with pytest.raises(StepTimeout, match="took longer than 3 s"):
        way.run(b"trap '' TERM; sleep 3600 & echo $! $$; wait; sleep 3600", timeout=3, on_output=said.extend)
    assert len(said.split()) == 2, said
    assert run_still(way, b" ".join(said.split())) == b""


def test_a_daemon_that_keeps_the_output_open_is_not_waited_for(way: Executor) -> None:
    said = output_of(way, b"sleep 3600 & echo $!", timeout=600)
    assert run_still(way, said.strip()) == said
    assert way.run(b'kill "$P"', env={"P": said.decode().strip()}) == 0


def test_a_command_that_kills_the_shell_around_it_is_an_error_and_nothing_worse(way: Executor) -> None:
    with pytest.raises(ExecutorError, match="end was not seen"):
        way.run(b"echo begun; kill -9 $PPID; sleep 1; echo still here")
    assert output_of(way, b"echo fine") == b"fine\n"


SIZES = {"none": 0, "several pieces": 300_000}


@pytest.mark.parametrize("name", SIZES)
@in_all_guests
def test_files_go_and_come_as_they_are(way: Executor, place: str, tmp_path: Path, name: str) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    rest = random.Random(name).randbytes(SIZES[name] // 16)
    source.write_bytes((ALL_BYTES * (SIZES[name] // 256) + rest)[: SIZES[name]])
    way.put(str(source), f"{place}/new/folders/{AWKWARD}/x")
    way.get(f"{place}/new/folders/{AWKWARD}/x", str(back))
    assert back.read_bytes() == source.read_bytes()


def test_names_need_not_be_utf_8(way: Executor, place: str, tmp_path: Path) -> None:
    source, back = tmp_path / os.fsdecode(b"s\xff"), tmp_path / os.fsdecode(b"b\xfe")
    source.write_bytes(b"content")
    name = f"{place}/" + os.fsdecode(b"\xff\xfe name")
    way.put(str(source), name)
    way.get(name, str(back))
    assert back.read_bytes() == b"content"


@at_terminals
def test_a_file_that_is_put_has_its_mode_and_owner_and_replaces_what_is_there(
    way: Executor, place: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"new")
    look = f"stat -c '%a %u:%g' {place}/x; cat {place}/x; ls -a {place}".encode()
    way.put(str(source), f"{place}/x")
    assert output_of(way, look) == b"644 0:0\nnew.\n..\nx\n"
    way.run(f"printf longer-than-before >{place}/x; ln -f {place}/x {place}/y".encode())
    way.put(str(source), f"{place}/x", mode=0o4755, owner="root:root")
    assert output_of(way, look) == b"4755 0:0\nnew.\n..\nx\ny\n"
    assert output_of(way, f"cat {place}/y".encode()) == b"longer-than-before"


@at_terminals
def test_what_cannot_be_put_or_got_is_said_in_the_guests_words(way: Executor, place: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    os.mkdir(place)
    cases: list[tuple[Callable[[], None], str]] = [
        (lambda: way.put(str(source), place), "is a directory"),
        (lambda: way.put(str(source), f"{place}/f/x"), "Not a directory|not a directory|File exists"),
        (lambda: way.put(str(source), f"{place}/x", owner="nobody-knows-me"), "nobody-knows-me"),
        (lambda: way.put(str(source), "relative"), "absolute path"),
        (lambda: way.put(str(tmp_path / "missing"), f"{place}/x"), "No such file"),
        (lambda: way.get(f"{place}/missing", str(tmp_path / "back")), "No such file"),
        (lambda: way.get(place, str(tmp_path / "back")), "is a directory"),
        (lambda: way.get("/dev/null", str(tmp_path / "back")), "no regular file"),
        (lambda: way.get(f"{place}/f", str(tmp_path / "no/such/folder")), "No such file"),
    ]
    assert way.run(f"echo >{place}/f".encode()) == 0
    for do, words in cases:
        with pytest.raises(ExecutorError, match=words):
            do()
    assert not (tmp_path / "back").exists()
    assert output_of(way, f"ls -a {place}".encode()) == b".\n..\nf\n"


@at_terminals
def test_a_link_is_followed_when_its_file_is_got(way: Executor, place: str, tmp_path: Path) -> None:
    os.mkdir(place)
    assert way.run(f"printf there >{place}/x; ln -s x {place}/y".encode()) == 0
    way.get(f"{place}/y", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == b"there"


def test_nothing_of_ours_is_left_in_the_guest(way: Executor) -> None:
    folder = os.path.dirname(output_of(way, b'echo "$0"; ls -A "${0%/*}" >/dev/null').strip())
    assert way.run(b'ls -A "$FOLDER"', env={"FOLDER": folder.decode()}) != 0
    with pytest.raises(StepTimeout):
        way.run(b'echo "$0" >/tmp/imgtool-where; sleep 3600', timeout=2)
    assert way.run(b'f=$(cat /tmp/imgtool-where); rm /tmp/imgtool-where; [ ! -e "${f%/*}" ]') == 0


@in_all_guests
def test_a_secret_is_the_commands_alone(way: Executor) -> None:
    secret = f"s3cret-{os.urandom(8).hex()}'\"$x"
    seen: list[bytes] = []
    here: list[str] = []

    def look(piece: bytes) -> None:
        seen.append(piece)
        here.extend(
            path.parent.name
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if secret.encode() in _content(path) and int(path.parent.name) != os.getpid()
        )

    script = b"""
    [ -e /proc/1 ] || mount -t proc proc /proc
    for f in /proc/[0-9]*/cmdline; do
        case "$(tr '\\0' '\\n' 2>/dev/null <"$f")" in *"$TOKEN"*) echo "seen in $f" ;; esac
    done
    echo "${#TOKEN} characters: $TOKEN."
    printf '%s' "$TOKEN"; sleep 1
    """
    assert way.run(script, interpreter=["/bin/sh"], secrets={"TOKEN": secret}, on_output=look) == 0
    assert b"".join(seen) == f"{len(secret)} characters: ***.\n***".encode()
    assert here == []
    assert output_of(way, b'echo "<${TOKEN-unset}>"') == b"<unset>\n"


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@at_a_terminal
@pytest.mark.parametrize(("name", "value"), [("1A", "x"), ("A-B", "x"), ("", "x"), ("A=B", "x"), ("A", "x\0y")])
def test_what_cannot_be_in_an_environment_is_refused(way: Executor, name: str, value: str) -> None:
    with pytest.raises(ExecutorError, match="cannot be"):
        way.run(b"true", secrets={name: value})


def test_synced_twice_and_thawed_without_need_is_no_harm(way: Executor) -> None:
    way.sync()
    way.sync()
    way.thaw()


@pytest.mark.guest
@pytest.mark.parametrize(("name", "kind"), [("alpine", "serial"), ("debian", "ssh")], ids=str)
def test_a_guest_comes_back_from_a_reboot_with_its_disk(guests: Guests, name: str, kind: Kind) -> None:
    way = guests.way(name, kind)
    output_of(way, b"echo kept >/root/mark; mkdir -p /dev/shm; echo gone >/dev/mark; sync")
    way.reboot(seconds=READY_SECONDS)
    assert output_of(way, b"cat /root/mark; rm /root/mark; [ -e /dev/mark ] || echo anew") == b"kept\nanew\n"


@pytest.mark.guest
def test_the_agent_holds_file_systems_still_and_lets_them_go(guests: Guests) -> None:
    agent, ssh = guests.way("debian", "agent"), guests.way("debian", "ssh")
    assert agent.freeze() is True
    agent.thaw()
    agent.thaw()
    output_of(agent, b"echo x >/root/thawed; rm /root/thawed")
    assert ssh.freeze() is False
    output_of(ssh, b"echo x >/root/never; rm /root/never")


@pytest.mark.guest
def test_the_first_way_that_leads_in_is_taken(guests: Guests) -> None:
    expected: list[tuple[str, Kind]] = [("debian", "agent"), ("alpine", "serial")]
    for name, kind in expected:
        way = guests.way(name, kind)
        way.close()
        guests.forget(name, kind)
        vm, _, folder = guests(name)
        state = vm.state()
        assert state is not None
        kinds = ways_into(state.machine, folder)
        with connect_any(vm, state, folder, seconds=READY_SECONDS, kinds=kinds) as found:
            assert found.kind == kind
            assert output_of(found, b"echo here") == b"here\n"


@pytest.mark.guest
def test_where_no_way_leads_in_it_is_said_how_far_each_came(guests: Guests) -> None:
    vm, _, folder = guests("alpine")
    state = vm.state()
    assert state is not None
    with pytest.raises(ExecutorError) as caught:
        connect_any(vm, state, folder, seconds=1, kinds=("agent", "ssh"))
    first, agent, ssh = caught.value.message.splitlines()
    assert first == "no way leads into the guest of alpine:"
    assert "agent: alpine cannot be reached within" in agent
    assert "ssh: alpine cannot be reached by SSH within" in ssh


@pytest.mark.guest
def test_the_hosts_key_is_pinned_and_nothing_of_the_users_is_touched(guests: Guests) -> None:
    way = guests.way("debian", "ssh")
    vm, _, folder = guests("debian")
    assert output_of(way, b"true") == b""
    assert "ssh-ed25519" in Path(vm.file("build-known_hosts")).read_text()
    assert os.stat(folder).st_mode & 0o777 == 0o700


@pytest.mark.guest
def test_a_secret_is_in_no_log_of_the_vm(guests: Guests) -> None:
    for name, kind in GUEST_WAYS:
        secret = f"s3cret-{os.urandom(8).hex()}"
        way = guests.way(name, kind)
        assert way.run(b'echo "$TOKEN"; [ -n "$TOKEN" ]', secrets={"TOKEN": secret}) == 0
        for path in Path(guests(name).vm.path).iterdir():
            if path.is_file():
                assert secret.encode() not in path.read_bytes(), path


@pytest.mark.guest
def test_a_guest_that_is_switched_off_during_a_step_is_lost(guests: Guests) -> None:
    way = guests.way("alpine", "serial")
    process = guests("alpine").process

    with pytest.raises(GuestLost):
        way.run(b"echo begun; sleep 3600", on_output=lambda _: process.kill())
    guests.end("alpine")


@pytest.mark.guest
def test_power_off_leaves_no_key_of_the_build_in_the_image(guests: Guests, tmp_path: Path) -> None:
    way = guests.way("debian", "ssh")
    assert b"imgtool-build" in output_of(way, b"cat /root/.ssh/authorized_keys")
    way.power_off()
    assert guests("debian").process.wait(READY_SECONDS) == 0
    disk, raw = guests.disk("debian"), tmp_path / "debian.raw"
    QemuImg().convert(str(disk), str(raw), format="qcow2", output_format="raw")
    guests.end("debian")
    assert "imgtool-build" not in _listing(raw, "cat /root/.ssh/authorized_keys")
    assert "imgtool-" not in _listing(raw, "ls -p /run")


def _listing(raw: Path, request: str) -> str:
    """What debugfs says of the file system in the first partition."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    argv = ["debugfs", "-R", request, f"{raw}?offset={1 << 20}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env={**os.environ, "PATH": path})
    return done.stdout
