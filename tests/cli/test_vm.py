from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pexpect
import pytest

from imgtool.cli.schema import DOCUMENTS
from imgtool.image.users import vm_of
from imgtool.machine.vm import Vm
from imgtool.qemu.qmp import Monitor
from tests.cli.conftest import Imgtool
from tests.guests import PROMPT, Machines, Shell


@pytest.fixture
def image(machines: Machines, tmp_path: Path) -> Path:
    path = tmp_path / "small.qcow2"
    machines("create", "-q", "-f", "qcow2", path, "1M")
    return path


@pytest.fixture
def empty_vm(machines: Machines, image: Path) -> Iterator[str]:
    """A VM in the background without anything to boot, which is up at once."""
    name = machines("boot", "-d", image, "--accel", "tcg", "--memory", "64M", "--network", "none").stdout.strip()
    yield name
    machines("vm", "kill", name, check=False)


def status(machines: Machines, name: str) -> str:
    return str(json.loads(machines("vm", "show", name, "--output", "json").stdout)["status"])


def test_detach_prints_the_name_and_the_vm_outlives_the_command(
    machines: Machines, empty_vm: str, image: Path
) -> None:
    assert empty_vm == "small"
    document = json.loads(machines("vm", "show", empty_vm, "--output", "json").stdout)
    assert document["status"] == "running"
    assert document["detached"] is True
    assert document["memory"] == 64 << 20
    assert document["accelerator"] == "tcg"
    (drive,) = document["drives"]
    wanted = {"device": "drive0", "file": str(image), "format": "qcow2", "read-only": False, "ephemeral": False}
    assert drive == wanted
    assert re.fullmatch(rf"small  running +pid {document['pid']}, 1 CPU, 64M, tcg, {image}\n", list_of(machines))
    assert f"drive      drive0: {image} (qcow2)" in machines("vm", "show", empty_vm).stdout


def list_of(machines: Machines) -> str:
    lines = machines("vm", "list").stdout.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("shared"))


def test_pause_resume_and_reset_are_seen_in_the_machine(machines: Machines, empty_vm: str) -> None:
    machines("vm", "pause", empty_vm)
    assert status(machines, empty_vm) == "paused"
    machines("vm", "resume", empty_vm)
    assert status(machines, empty_vm) == "running"
    machines("vm", "reset", empty_vm)
    assert status(machines, empty_vm) == "running"


def test_what_was_done_is_a_document_of_its_schema_and_silence_for_people(
    machines: Machines, empty_vm: str, tmp_path: Path
) -> None:
    picture = tmp_path / "s.png"
    for words, said in [
        (["pause"], {"status": "paused"}),
        (["resume"], {"status": "running"}),
        (["reset"], {"status": "running"}),
        (["wait", "--for", "running"], {"reached": "running"}),
        (["screenshot", str(picture)], {"file": str(picture), "format": "png"}),
        (["kill"], {"how": "killed"}),
        (["wait", "--for", "ended"], {"reached": "ended"}),
    ]:
        command, *rest = words
        if command != "kill" and "ended" not in rest:
            assert machines("vm", command, empty_vm, *rest).stdout == ""
        document = json.loads(machines("vm", command, empty_vm, *rest, "--output", "json").stdout)
        assert document == {"name": empty_vm, **said}
        module, _, kind = DOCUMENTS[f"vm-{command}"].partition(":")
        msgspec.convert(document, getattr(importlib.import_module(module), kind))


def test_an_image_that_a_vm_has_names_the_command_that_stops_it(
    machines: Machines, empty_vm: str, image: Path
) -> None:
    path, new = str(image), str(image.with_name("new.qcow2"))
    for words in (
        ["resize", path, "+1M"],
        ["convert", "-O", "raw", path, new],
        ["convert", "-U", "-O", "raw", path, new],
        ["check", path],
        ["overlay", "new", path, new],
        ["chain", "move", path, new],
        ["boot", path, "--accel", "tcg", "--dry-run"],
    ):
        done = machines(*words, check=False)
        assert done.returncode == 1, words
        assert f"hint: `imgtool vm stop {empty_vm}` ends it" in done.stderr, done.stderr
    assert vm_of(os.getpid()) is None


def test_a_disk_that_is_deleted_while_the_vm_runs_is_told_and_can_be_saved(
    machines: Machines, empty_vm: str, image: Path
) -> None:
    assert json.loads(machines("vm", "show", empty_vm, "--output", "json").stdout)["lost"] == []
    moved = image.rename(image.with_name("moved.qcow2"))
    (lost,) = json.loads(machines("vm", "show", empty_vm, "--output", "json").stdout)["lost"]
    assert (lost["code"], lost["severity"], lost["path"]) == ("moved", "warning", str(image))
    assert str(moved) in lost["hint"]
    moved.unlink()
    shown = machines("vm", "show", empty_vm).stdout
    assert f"error      {image} was deleted: what the VM has there is lost when it ends\n" in shown
    assert list_of(machines).endswith(f", deleted: {image}\n")
    image.write_bytes(b"")
    (lost,) = json.loads(machines("vm", "show", empty_vm, "--output", "json").stdout)["lost"]
    assert (lost["code"], lost["severity"]) == ("replaced", "error")
    pause, copy = lost["hint"].split("`")[1].removeprefix("imgtool ").split(" && ")
    machines(*pause.split())
    subprocess.run(copy.split(), check=True)
    machines("check", f"{image}.saved")
    refused = machines("vm", "stop", empty_vm, check=False)
    assert refused.stderr == (
        f"imgtool: error: {image} was replaced: what the VM has there is lost when it ends\n"
        f"hint: {lost['hint']}; --force ends it all the same\n"
    )
    assert status(machines, empty_vm) == "paused"
    assert machines("vm", "stop", empty_vm, "--timeout", "0", "--force").stdout == "small: quit\n"


def test_a_disk_that_no_guest_writes_to_may_be_gone_when_its_vm_is_stopped(machines: Machines, image: Path) -> None:
    options = ["--ephemeral", "--accel", "tcg", "--memory", "64M", "--network", "none"]
    name = machines("boot", "-d", image, *options).stdout.strip()
    image.unlink()
    assert machines("vm", "stop", name, "--timeout", "0").stdout == "small: quit\n"


def test_that_there_are_no_vms_is_said(imgtool: Imgtool, tmp_path: Path) -> None:
    assert imgtool("vm", "list", XDG_RUNTIME_DIR=str(tmp_path)).stdout == "no VMs\n"
    assert imgtool("vm", "list", "--output", "json", XDG_RUNTIME_DIR=str(tmp_path)).document == []


def test_a_console_without_input_is_left_and_the_vm_runs_on(machines: Machines, empty_vm: str) -> None:
    done = machines("vm", "console", empty_vm)
    assert "left the console of small: input has ended and the guest is quiet" in done.stderr
    assert status(machines, empty_vm) == "running"


def test_a_guest_that_never_began_is_not_waited_for(machines: Machines, image: Path) -> None:
    options = ["--accel", "tcg", "--memory", "64M", "--network", "none"]
    name = machines("boot", "-d", image, *options, "--", "-S").stdout.strip()
    done = machines("vm", "stop", name, "--timeout", "86400")
    assert done.stdout == "small: quit\n"
    assert done.stderr == "imgtool: warning: small has no guest that could power off (prelaunch); it is ended\n"


def test_stop_of_a_guest_that_does_not_listen_ends_it_all_the_same(machines: Machines, empty_vm: str) -> None:
    qemu = machines.qemu(empty_vm)
    done = machines("vm", "stop", empty_vm, "--timeout", "0.2", "--output", "json")
    assert json.loads(done.stdout) == {"name": empty_vm, "how": "quit"}
    assert "did not power off within 0.2 s" in done.stderr
    assert not qemu.alive


def test_a_monitor_that_is_busy_does_not_end_the_wait_for_a_guest(machines: Machines, image: Path) -> None:
    name = machines("boot", "-d", image, "--accel", "tcg", "--memory", "64M").stdout.strip()
    with Monitor.connect(Vm(machines.root, name).qmp_socket):
        done = machines("vm", "wait", name, "--for", "ssh", "--timeout", "0.5", check=False)
    machines("vm", "kill", name)
    assert done.returncode == 1
    assert "small was not ready (ssh) after 0.5 s" in done.stderr


def test_a_qemu_that_is_stuck_is_terminated_and_at_last_killed(machines: Machines, empty_vm: str) -> None:
    qemu = machines.qemu(empty_vm)
    qemu.send(signal.SIGSTOP)
    assert status(machines, empty_vm) == "unreachable"
    machines("vm", "kill", empty_vm)
    assert not qemu.alive
    assert empty_vm not in machines.vms()


def test_a_killed_qemu_is_recognised_and_its_log_stays(machines: Machines, empty_vm: str) -> None:
    machines.qemu(empty_vm).send(signal.SIGKILL)
    machines("vm", "wait", empty_vm, "--for", "ended")
    done = machines("vm", "show", empty_vm, check=False)
    assert done.returncode == 1
    assert f"the VM {empty_vm} has ended" in done.stderr
    assert f"imgtool vm log {empty_vm}" in done.stderr
    assert machines("vm", "log", empty_vm).returncode == 0


def test_a_name_that_no_vm_has_is_one_clear_error(machines: Machines) -> None:
    for command in ("show", "stop", "console", "pause"):
        done = machines("vm", command, "nobody", check=False)
        assert done.returncode == 1
        assert "there is no VM named nobody" in done.stderr
    assert "there is no VM named nobody, and no logs of one" in machines("vm", "log", "nobody", check=False).stderr


def test_waiting_names_its_own_option_and_an_end_that_was_is_an_end(machines: Machines, image: Path) -> None:
    machines("boot", "-d", image, "--name", "brief", "--accel", "tcg", "--memory", "64M", "--network", "none")
    wrong = machines("vm", "wait", "brief", "--for", "boot", check=False)
    early = machines("vm", "wait", "brief", "--for", "ended", "--timeout", "0.1", check=False)
    machines("vm", "kill", "brief")
    assert "--for cannot be 'boot'" in wrong.stderr
    assert "cloud-init, ended" in wrong.stderr
    assert "brief still runs after 0.1 s" in early.stderr
    machines("vm", "wait", "brief", "--for", "ended")
    assert machines("vm", "wait", "never", "--for", "ended", check=False).returncode == 1


@pytest.mark.parametrize("display", ["vnc", "spice"])
def test_who_needs_a_password_to_see_the_screen_is_told_where_it_is(
    machines: Machines, image: Path, display: str
) -> None:
    words = ["--accel", "tcg", "--memory", "64M", "--network", "none", "--display", display]
    done = machines("boot", "-d", image, "--name", "seen", *words)
    shown = machines("vm", "show", "seen").stdout
    document = json.loads(machines("vm", "show", "seen", "--output", "json").stdout)
    password = Path(document["password-file"])
    assert len(password.read_text()) == 8
    machines("vm", "kill", "seen")
    assert f"password   in {password}\n" in shown
    assert f"{display.upper()} asks for the password in {password}" in done.stderr


def test_a_dry_run_beside_a_running_vm_says_what_a_start_would(
    machines: Machines, image: Path, empty_vm: str
) -> None:
    for words in ([image], ["--name", empty_vm, "--cdrom", image]):
        done, dry = (
            machines("boot", *words, "--accel", "tcg", *more, check=False) for more in (["-d"], ["--dry-run"])
        )
        assert done.returncode == dry.returncode == 1
        assert dry.stderr.splitlines()[0] in done.stderr.splitlines()


def test_waiting_for_what_does_not_come_tells_how_far_the_guest_came(machines: Machines, empty_vm: str) -> None:
    done = machines("vm", "wait", empty_vm, "--for", "serial:login:", "--timeout", "0.3", check=False)
    assert done.returncode == 1
    assert "small was not ready (serial:login:) after 0.3 s; the guest has said nothing yet" in done.stderr


def test_an_open_port_is_not_taken_for_an_ssh_server(machines: Machines, image: Path) -> None:
    words = ["--accel", "tcg", "--memory", "64M", "--network", "user"]
    machines("boot", "-d", image, "--name", "deaf", *words)
    done = machines("vm", "wait", "deaf", "--for", "ssh", "--timeout", "1", check=False)
    argv = machines("vm", "ssh", "deaf", "--print", "--", "uname", "-a").stdout
    again = machines("vm", "ssh", "deaf", "--print", "--", "uname", "-a").stdout
    machines("vm", "kill", "deaf")
    assert "deaf was not ready (ssh) after 1 s" in done.stderr
    assert argv.endswith(" 127.0.0.1 uname -a\n")
    assert argv == again, "the port that was forwarded is found again"


def test_a_vm_without_a_network_has_no_way_for_ssh(machines: Machines, empty_vm: str) -> None:
    done = machines("vm", "ssh", empty_vm, check=False)
    assert done.returncode == 1
    assert "there is no way to the guest of small" in done.stderr


def test_exec_without_an_agent_says_what_is_missing(machines: Machines, empty_vm: str) -> None:
    done = machines("vm", "exec", empty_vm, "--", "true", check=False)
    assert done.returncode == 1
    assert "there is no channel to a guest agent" in done.stderr
    assert "--agent" in done.stderr


def test_an_agent_that_does_not_answer_is_not_waited_for_for_ever(machines: Machines, image: Path) -> None:
    machines("boot", "-d", image, "--name", "mute", "--agent", "--accel", "tcg", "--memory", "64M")
    done = machines("vm", "exec", "mute", "--", "true", check=False)
    late = machines("vm", "wait", "mute", "--for", "agent", "--timeout", "0.5", check=False)
    machines("vm", "kill", "mute")
    assert "the guest agent does not answer" in done.stderr
    assert "was not ready (agent)" in late.stderr


def test_qemus_monitor_is_for_people_and_qmp_for_programs(machines: Machines, empty_vm: str, image: Path) -> None:
    assert f"{image} (qcow2)" in machines("vm", "monitor", empty_vm, "info", "block").stdout
    assert machines("vm", "monitor", empty_vm, "savevm", "before").stdout == ""
    assert re.search(r"\bbefore\b", machines("vm", "monitor", empty_vm, "info", "snapshots").stdout)
    typed = machines.terminal("vm", "monitor", empty_vm)
    for line, said in (
        ("info status", "VM status: running"),
        ("", ""),
        ("migrate -d exec:cat", "sandbox would end"),
        ("info kvm", "kvm support: disabled"),
    ):
        typed.expect_exact(f"({empty_vm}) ")
        typed.sendline(line)
        typed.expect_exact(said)
    typed.expect_exact(f"({empty_vm}) ")
    typed.sendeof()
    typed.expect(pexpect.EOF)
    typed.close()
    assert typed.exitstatus == 0
    document = json.loads(machines("vm", "monitor", empty_vm, "no-such", "--output", "json").stdout)
    assert document == {"name": empty_vm, "command": "no-such", "said": "unknown command: 'no-such'\n"}
    status = json.loads(machines("vm", "qmp", empty_vm, "query-status").stdout)
    assert (status["status"], status["running"]) == ("running", True)
    machines("vm", "qmp", empty_vm, "object-add", "qom-type=iothread", "id=more")
    words = ["object-add", '{"qom-type": "throttle-group", "id": "slow"}', "--output", "json"]
    assert json.loads(machines("vm", "qmp", empty_vm, *words).stdout)["answer"] == {}
    found = {one["name"] for one in json.loads(machines("vm", "qmp", empty_vm, "qom-list", "path=/objects").stdout)}
    assert {"more", "slow"} <= found


def test_a_vm_is_migrated_to_another_that_has_its_images(machines: Machines, image: Path, tmp_path: Path) -> None:
    words = ("--accel", "tcg", "--memory", "64M", "--network", "none")
    machines("boot", "-d", image, "--name", "from", *words)
    where = f"unix:{machines.folder}/m.sock"
    try:
        assert "is being written by the VM from" in machines("boot", "-d", image, *words, check=False).stderr
        machines("boot", "-d", image, "--name", "to", *words, "--", "-incoming", where)
        assert status(machines, "to") == "inmigrate"
        machines("vm", "qmp", "from", "migrate", f"uri={where}")
        machines("vm", "wait", "to", "--for", "running")
        deadline = time.monotonic() + 60
        while (status(machines, "from"), status(machines, "to")) != ("postmigrate", "running"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert "is being written by the VM " in machines("boot", "-d", image, *words, check=False).stderr
        machines("vm", "kill", "from")
        machines("vm", "monitor", "to", "savevm", "here")
    finally:
        machines("vm", "kill", "from", check=False)
        machines("vm", "kill", "to", check=False)
    assert [one["name"] for one in json.loads(machines("info", image, "--output", "json").stdout)["snapshots"]] == [
        "here"
    ]


SANDBOXED = "QEMU's sandbox would end small for starting a program"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["qmp", "device_del", "id=nothing"], "QEMU refused device_del: Device 'nothing' not found"),
        (["qmp", "device_del", "nothing"], "'nothing' is no argument"),
        (["qmp", "device_del", '{"id"'], "the arguments are no JSON object"),
        (["qmp", "migrate", "uri=exec:cat"], SANDBOXED),
        (["qmp", "migrate", 'channels=[{"channel-type": "main", "addr": {"transport": "exec"}}]'], SANDBOXED),
        (["qmp", "human-monitor-command", "command-line=migrate -d exec:cat"], SANDBOXED),
        (["monitor", 'migrate "exec:cat > x"'], SANDBOXED),
        (["monitor", "--output", "json"], "--output json is for one COMMAND"),
    ],
)
def test_what_qemu_is_not_told(machines: Machines, empty_vm: str, words: list[str], said: str) -> None:
    command, *rest = words
    done = machines("vm", command, empty_vm, *rest, check=False)
    assert said in done.stderr
    assert done.returncode in (1, 2)
    assert status(machines, empty_vm) == "running"


def test_set_cpus_refuses_what_the_machine_has_no_room_for(machines: Machines, empty_vm: str) -> None:
    done = machines("vm", "set-cpus", empty_vm, "2", check=False)
    assert done.returncode == 1
    assert "has room for 1 CPU, not 2" in done.stderr
    assert "--smp 1,maxcpus=2" in done.stderr


def test_set_memory_refuses_what_the_machine_has_no_room_for(machines: Machines, empty_vm: str) -> None:
    document = json.loads(machines("vm", "set-memory", empty_vm, "64", "--output", "json").stdout)
    assert document == {"name": empty_vm, "memory": 64 << 20}
    done = machines("vm", "set-memory", empty_vm, "1G", check=False)
    assert done.returncode == 1
    assert "has room for 64M, not 1G" in done.stderr
    assert "boot it with --memory 64M,slots=4,maxmem=1G" in done.stderr
    assert "'lots' is not a size" in machines("vm", "set-memory", empty_vm, "lots", check=False).stderr


@pytest.mark.parametrize(("name", "magic"), [("s.png", b"\x89PNG\r\n\x1a\n"), ("s.ppm", b"P6\n")])
def test_a_screenshot_is_a_picture(
    machines: Machines, empty_vm: str, tmp_path: Path, name: str, magic: bytes
) -> None:
    machines("vm", "screenshot", empty_vm, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert content.startswith(magic)
    assert len(content) > 1000


def test_a_qemu_that_became_another_user_shows_its_screen(machines: Machines, image: Path, tmp_path: Path) -> None:
    machines("boot", "-d", image, "--name", "other", "--accel", "tcg", "--memory", "64M", "--run-as", "nobody")
    try:
        for _ in range(2):
            machines("vm", "screenshot", "other", tmp_path / "s.png")
            assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
            (tmp_path / "s.png").unlink()
    finally:
        machines("vm", "kill", "other")


@pytest.mark.guest
def test_a_shared_guest_is_listed_with_what_it_was_booted_with(
    machines: Machines, shared_guest: tuple[str, Shell]
) -> None:
    name, shell = shared_guest
    assert int(shell("grep -c ^processor /proc/cpuinfo")) >= 1
    memory = int(shell("awk '/MemTotal/ {print $2}' /proc/meminfo"))
    assert 150_000 < memory < 262_144
    assert f"{name}  running" in machines("vm", "list").stdout


@pytest.mark.guest
def test_plugged_in_cpus_are_seen_by_the_guest(machines: Machines, shared_guest: tuple[str, Shell]) -> None:
    name, shell = shared_guest
    assert shell("cat /sys/devices/system/cpu/possible") == "0-3"
    before = json.loads(machines("vm", "show", name, "--output", "json").stdout)["cpus"]
    assert before == 1
    assert machines("vm", "set-cpus", name, "3").stdout == f"{name}: 3 CPUs\n"
    deadline = time.monotonic() + 60
    while shell("cat /sys/devices/system/cpu/present") != "0-2" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert shell("cat /sys/devices/system/cpu/present") == "0-2"
    assert (
        "has 3 CPUs, and none is taken away while it runs"
        in machines("vm", "set-cpus", name, "1", check=False).stderr
    )


@pytest.mark.guest
def test_plugged_in_memory_is_seen_by_the_guest(machines: Machines, shared_guest: tuple[str, Shell]) -> None:
    name, shell = shared_guest
    blocks = "ls -d /sys/devices/system/memory/memory* | wc -l"
    before = int(shell(blocks))
    assert machines("vm", "set-memory", name, "512M").stdout == f"{name}: 512M\n"
    deadline = time.monotonic() + 60
    while int(shell(blocks)) != before + 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert int(shell(blocks)) == before + 2, "of 128 MiB each"
    assert json.loads(machines("vm", "show", name, "--output", "json").stdout)["memory"] == 512 << 20
    for size, reason, hint in (
        ("384", "has 512M, and none is taken away while it runs", "--balloon"),
        ("2G", "has room for 1G, not 2G", "--memory 512M,slots=1,maxmem=2G"),
        ("1G", "all 1 slots of shared hold memory already", "--memory 512M,slots=2,maxmem=1G"),
    ):
        said = machines("vm", "set-memory", name, size, check=False).stderr
        assert reason in said
        assert hint in said


@pytest.mark.guest
def test_wait_returns_for_what_the_console_has_said_before(
    machines: Machines, shared_guest: tuple[str, Shell]
) -> None:
    name, _ = shared_guest
    assert machines("vm", "wait", name, "--for", "serial:job control turned off").returncode == 0


@pytest.mark.guest
def test_the_log_is_shown_clean_or_as_it_is(machines: Machines, shared_guest: tuple[str, Shell]) -> None:
    name, shell = shared_guest
    shell("printf '\\033[31mred\\033[0m %s\\n' $((6*7))")
    log = machines("vm", "log", name).stdout
    assert "\nred 42\n" in log
    assert "\x1b" not in log
    assert "\x1b[31mred" in machines("vm", "log", name, "--raw").stdout
    assert len(machines("vm", "log", name, "-n", "2").stdout.splitlines()) == 2


@pytest.mark.guest
def test_a_guest_that_powers_off_by_itself_leaves_nothing(machines: Machines, tmp_path: Path) -> None:
    overlay = machines.overlay(tmp_path / "brief.qcow2")
    words: list[str | Path] = [
        "boot",
        "-d",
        overlay,
        *machines.shell_words(),
        "--smp",
        "2",
        "--wait",
        f"serial:{PROMPT}$",
    ]
    machines(*words)
    taken = machines("boot", "-d", overlay, "--name", "brief", "--ephemeral", check=False)
    assert "a VM named brief is running" in taken.stderr
    console = machines.terminal("vm", "console", "brief")
    console.expect_exact("Ctrl-A X leaves it")
    console.sendline("")
    console.expect_exact(PROMPT)
    second = machines("vm", "console", "brief", check=False)
    assert "someone is at the console of brief already" in second.stderr
    console.sendline("mount -t proc proc /proc; echo cpus $(grep -c ^processor /proc/cpuinfo)")
    console.expect_exact("cpus 2")
    console.send("\x01x")
    console.expect_exact("left the console of brief")
    console.expect(pexpect.EOF)
    console.close()
    assert console.exitstatus == 0
    console = machines.terminal("vm", "console", "brief")
    console.expect_exact("Ctrl-A X leaves it")
    console.sendline("poweroff -f")
    console.expect_exact("brief has ended")
    console.expect(pexpect.EOF)
    console.close()
    assert console.exitstatus == 0
    assert "brief" not in machines.vms()


@pytest.fixture
def ended(machines: Machines) -> Iterator[Path]:
    """The directory of a VM called ended, that has. Its console ends in the midst of a line."""
    folder = Path(machines.root, "ended")
    folder.mkdir(parents=True)
    (folder / "serial0.log").write_bytes(b"one\r\n\r\n\x1b[1mtwo\x1b[0m\r\nthree: ")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ([], b"one\n\ntwo\nthree: \n"),
        (["-f"], b"one\n\ntwo\nthree: \n"),
        (["-n", "3"], b"one\ntwo\nthree:\n"),
        (["-n", "2", "-f"], b"two\nthree:\n"),
        (["--raw"], b"one\r\n\r\n\x1b[1mtwo\x1b[0m\r\nthree: "),
        (["--raw", "-n", "2"], b"\x1b[1mtwo\x1b[0m\r\nthree: "),
        (["--raw", "-f", "-n", "1"], b"three: "),
    ],
)
def test_all_of_a_log_or_its_last_lines(machines: Machines, ended: Path, options: list[str], shown: bytes) -> None:
    words = [sys.executable, "-m", "imgtool", "vm", "log", ended.name, *options]
    assert subprocess.run(words, env=machines.env, stdout=subprocess.PIPE, check=True).stdout == shown


@pytest.mark.parametrize("options", [[], ["-n", "2"], ["--raw"], ["-f"]])
def test_a_log_that_is_not_there_is_an_error(machines: Machines, ended: Path, options: list[str]) -> None:
    (ended / "serial0.log").unlink()
    done = machines("vm", "log", ended.name, *options, check=False)
    assert done.returncode == 1
    assert "ended has no such log" in done.stderr
    assert "imgtool vm log ended --qemu" in done.stderr


@pytest.mark.parametrize("options", [["--raw"], ["--raw", "-n", "1"], ["-n", "1"]])
def test_what_comes_later_is_followed(machines: Machines, empty_vm: str, options: list[str]) -> None:
    log = Path(machines.root, empty_vm, "serial0.log")
    with log.open("ab") as file:
        file.write(b"first\n")
    words = [sys.executable, "-m", "imgtool", "vm", "log", empty_vm, "--follow", *options]
    with subprocess.Popen(words, env=machines.env, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == "first\n"
        with log.open("ab") as file:
            file.write(b"later\n")
        assert follower.stdout.readline() == "later\n"
        machines("vm", "kill", empty_vm)
    assert follower.returncode == 0


def test_following_the_log_ends_with_the_vm(machines: Machines, empty_vm: str) -> None:
    words = [sys.executable, "-m", "imgtool", "vm", "log", empty_vm, "--follow"]
    with subprocess.Popen(words, env=machines.env, stdout=subprocess.PIPE) as follower:
        machines("vm", "kill", empty_vm)
        follower.communicate(timeout=60)
    assert follower.returncode in (0, 1), "1 when the VM had ended before it could look"


def test_ctrl_c_while_a_vm_is_waited_for_leaves_it_and_says_so(machines: Machines, image: Path) -> None:
    words = ["--accel", "tcg", "--memory", "64M", "--network", "none", "--wait", "serial:never"]
    terminal = machines.terminal("boot", "-d", image, "--name", "left", *words)
    vm = Vm(machines.root, "left")
    waits = Path(f"/proc/{terminal.pid}/wchan")
    deadline = time.monotonic() + 60
    # From then on imgtool sleeps only between two looks at the console.
    while (state := vm.state()) is None or state.phase != "running" or "nanosleep" not in waits.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    terminal.sendintr()
    terminal.expect_exact("the VM left runs on: `imgtool vm stop left` ends it")
    terminal.expect_exact("interrupted")
    terminal.expect(pexpect.EOF)
    assert machines("vm", "kill", "left").returncode == 0
