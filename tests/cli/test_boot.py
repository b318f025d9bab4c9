from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import termios
import time
from pathlib import Path

import pexpect
import pytest

from imgtool.qemu.qmp import Monitor
from tests.guests import PROMPT, Machines


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def finish(guest: pexpect.spawn[str]) -> int | None:
    guest.expect(pexpect.EOF)
    guest.close()
    return guest.exitstatus


@pytest.mark.guest
def test_an_overlay_boots_on_the_terminal_and_keeps_what_the_guest_writes(machines: Machines, tmp_path: Path) -> None:
    overlay = tmp_path / "web.qcow2"
    guest = machines.terminal("boot", machines.alpine.disk, "--new-overlay", overlay, *machines.shell_words())
    guest.expect_exact(PROMPT)
    guest.sendline("echo kept by $(uname -s) > /root/note; poweroff -f")
    assert finish(guest) == 0

    guest = machines.terminal("boot", overlay, *machines.shell_words())
    guest.expect_exact(PROMPT)
    guest.sendline("cat /root/note")
    guest.expect_exact("kept by Linux")
    guest.sendline("poweroff -f")
    assert finish(guest) == 0
    assert "web" not in machines.vms()


@pytest.mark.guest
def test_ephemeral_leaves_the_image_as_it_was_and_ctrl_a_x_restores_the_terminal(
    machines: Machines, tmp_path: Path
) -> None:
    overlay = machines.overlay(tmp_path / "web.qcow2")
    before = digest(overlay)
    guest = machines.terminal("boot", overlay, "--ephemeral", "--timeline", *machines.shell_words())
    settings = termios.tcgetattr(guest.child_fd)
    guest.expect_exact(PROMPT)
    assert termios.tcgetattr(guest.child_fd) != settings, "QEMU has the terminal in raw mode"
    guest.sendline("echo lost > /root/note && sync && cat /root/note")
    guest.expect_exact("lost")
    guest.expect_exact(PROMPT)
    folder = os.path.join(machines.root, "web")
    assert sorted(os.listdir(folder)) == ["qemu.log", "qemu.pid", "qmp.sock", "serial0.log", "vm.json"]
    assert [name for name in os.listdir(machines.folder) if "-web-" in name] == []
    guest.send("\x01x")
    guest.expect_exact("QEMU: Terminated")
    guest.expect(r"\d s  init")
    guest.expect(pexpect.EOF)
    assert termios.tcgetattr(guest.child_fd) == settings
    guest.close()
    assert guest.exitstatus == 0
    assert digest(overlay) == before
    assert sorted(os.listdir(folder)) == ["qemu.log", "serial0.log"]


def start_paused(machines: Machines, *words: str | Path) -> subprocess.Popen[bytes]:
    """imgtool with a VM in the foreground whose CPUs never start: up in a moment, and no guest is needed."""
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "imgtool",
            "boot",
            *map(str, words),
            "--accel",
            "tcg",
            "--network",
            "none",
            "--",
            "-S",
        ],
        env=machines.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for_vm(machines: Machines, name: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done = machines("vm", "list", "--output", "json")
        if any(vm["name"] == name and vm["status"] == "prelaunch" for vm in json.loads(done.stdout)):
            return
        time.sleep(0.05)
    raise AssertionError(f"{name} never came up")


@pytest.fixture
def image(machines: Machines, tmp_path: Path) -> Path:
    path = tmp_path / "small.qcow2"
    machines("create", "-q", "-f", "qcow2", path, "1M")
    return path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_imgtool_ends_the_vm_and_leaves_nothing(
    machines: Machines, image: Path, number: signal.Signals
) -> None:
    child = start_paused(machines, image, "--name", "signalled")
    wait_for_vm(machines, "signalled")
    qemu = machines.qemu("signalled")
    child.send_signal(number)
    child.communicate(timeout=60)
    assert child.returncode == 128 + number
    assert not qemu.alive
    assert sorted(os.listdir(os.path.join(machines.root, "signalled"))) == ["qemu.log", "serial0.log"]


@pytest.mark.parametrize("victims", [("imgtool",), ("qemu",), ("imgtool", "qemu")])
def test_kill_9_of_either_leaves_nothing_that_the_next_command_minds(
    machines: Machines, image: Path, victims: tuple[str, ...]
) -> None:
    child = start_paused(machines, image, "--name", "killed", "--ephemeral")
    wait_for_vm(machines, "killed")
    qemu = machines.qemu("killed")
    for victim in victims:
        os.kill(child.pid if victim == "imgtool" else qemu.pid, signal.SIGKILL)
    _, stderr = child.communicate(timeout=60)
    if victims == ("qemu",):
        assert child.returncode == 1
        assert b"was ended by signal 9" in stderr
    assert qemu.wait(30)
    again = start_paused(machines, image, "--name", "killed")
    wait_for_vm(machines, "killed")
    machines("vm", "kill", "killed")
    again.communicate(timeout=60)
    assert "killed" not in machines.vms()
    assert [name for name in os.listdir(machines.folder) if name.endswith("-killed")] == []


def test_the_curses_display_has_the_terminal(machines: Machines, image: Path) -> None:
    words = ["--name", "screen", "--display", "curses", "--serial", "null", "--accel", "tcg", "--network", "none"]
    guest = machines.terminal("boot", image, *words, "--", "-S")
    guest.expect_exact("the VM is screen")
    wait_for_vm(machines, "screen")
    with Monitor.connect(os.path.join(machines.root, "screen", "qmp.sock")) as monitor:
        assert monitor.execute("query-display-options")["type"] == "curses"
    machines("vm", "kill", "screen")
    assert finish(guest) is not None


def test_two_vms_never_write_one_image(machines: Machines, image: Path) -> None:
    child = start_paused(machines, image, "--name", "first")
    wait_for_vm(machines, "first")
    link = image.with_name("link.qcow2")
    link.symlink_to(image.name)
    refused = machines("boot", link, "--name", "second", check=False)
    reader = machines("boot", link, "--name", "third", "--ephemeral", check=False)
    machines("vm", "kill", "first")
    child.communicate(timeout=60)
    assert refused.returncode == reader.returncode == 1
    assert f"{link}: the image is being written by the VM first" in refused.stderr
    assert "the image is being written by the VM first" in reader.stderr
    assert "third" not in machines.vms()


def test_an_image_another_program_writes_is_refused_with_its_name(machines: Machines, image: Path) -> None:
    with subprocess.Popen(
        ["qemu-io", "-f", "qcow2", str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as io:
        assert io.stdin is not None
        assert io.stdout is not None
        io.stdin.write(b"length\n")
        io.stdin.flush()
        io.stdout.readline()
        done = machines("boot", image, check=False)
        io.stdin.close()
    assert done.returncode == 1
    assert f"the image is being written by qemu-io (pid {io.pid})" in done.stderr


def test_a_base_with_overlays_is_not_written_by_accident(machines: Machines, image: Path) -> None:
    machines("overlay", "new", image, image.with_name("top.qcow2"))
    done = machines("boot", image, check=False)
    assert done.returncode == 1
    assert "is the backing file of" in done.stderr
    assert "--new-overlay PATH or --ephemeral" in done.stderr
    assert machines("boot", image, "--ephemeral", "--dry-run").returncode == 0


def test_a_chain_in_a_circle_is_refused_before_qemu_sees_it(machines: Machines, image: Path) -> None:
    top = image.with_name("top.qcow2")
    machines("overlay", "new", image, top)
    subprocess.run(["qemu-img", "rebase", "-u", "-b", top, "-F", "qcow2", image], check=True)
    done = machines("boot", top, check=False)
    assert done.returncode == 1
    assert "never ends" in done.stderr


def test_a_file_that_holds_the_data_of_another_image_is_not_written(machines: Machines, tmp_path: Path) -> None:
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=data.img", "disk.qcow2", "1M"]
    subprocess.run(argv, cwd=tmp_path, check=True)
    done = machines("boot", tmp_path / "data.img", "--dry-run", check=False)
    assert done.returncode == 1
    assert f"holds the data of {tmp_path / 'disk.qcow2'}" in done.stderr


def test_a_missing_parent_is_one_clear_error(machines: Machines, image: Path) -> None:
    top = image.with_name("top.qcow2")
    machines("overlay", "new", image, top)
    image.unlink()
    done = machines("boot", top, check=False)
    assert done.returncode == 1
    assert f"{image} does not exist" in done.stderr
    assert len(done.stderr.splitlines()) == 2


READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'
"""A folder on a file system that is read-only, for one command."""


def test_an_image_that_cannot_be_written_is_refused_before_qemu_starts(machines: Machines, image: Path) -> None:
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", READ_ONLY, "sh", str(image.parent)]
    boot = [sys.executable, "-m", "imgtool", "boot", str(image), "--accel", "tcg", "--dry-run"]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*alone, *boot, *words], env=machines.env, capture_output=True, text=True, check=False)

    done = run()
    assert done.returncode == 1
    assert f"{image} lies on a read-only file system, and the guest is to write it" in done.stderr
    assert "hint: --ephemeral" in done.stderr
    done = run("--ephemeral")
    assert done.returncode == 0, done.stderr


def test_what_qemu_says_at_a_failed_start_is_the_error(machines: Machines, image: Path) -> None:
    done = machines("boot", image, "--name", "bad", "--", "-device", "flux-capacitor", check=False)
    assert done.returncode == 1
    assert "'flux-capacitor' is not a valid device model name" in done.stderr
    assert "Traceback" not in done.stderr
    assert "bad" not in machines.vms()
    detached = machines("boot", "-d", image, "--name", "bad", "--", "-device", "flux-capacitor", check=False)
    assert "'flux-capacitor' is not a valid device model name" in detached.stderr
    assert "bad" not in machines.vms()


@pytest.mark.parametrize(("protocol", "kind"), [("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)])
def test_a_port_that_is_in_use_is_named(
    machines: Machines, image: Path, protocol: str, kind: socket.SocketKind
) -> None:
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        port = taken.getsockname()[1]
        network = f"user,hostfwd={protocol}::{port}-:22"
        done = machines("boot", image, "--name", "vm", "--network", network, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2:] == [
        f"imgtool: error: {protocol} port {port} of 127.0.0.1 is in use: vm cannot forward it",
        f"hint: choose another hostfwd; `ss -ap 'sport = :{port}'` shows who has this one",
    ]


def test_a_display_whose_port_is_in_use_is_named(machines: Machines, image: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for display in (f"vnc=:{port - 5900}", f"spice,port={port}"):
            words = ["--accel", "tcg", "--network", "none", "--display", display]
            done = machines("boot", image, "--name", "vm", *words, check=False)
            assert done.returncode == 1
            said = f"imgtool: error: tcp port {port} of 127.0.0.1 is in use: vm cannot show its screen there\n"
            assert said in done.stderr


def test_the_exit_status_of_a_guest_that_reports_one_is_handed_on(machines: Machines, tmp_path: Path) -> None:
    from imgtool.machine.proof_sector import EXIT_STATUS, boot_sector

    disk = tmp_path / "sector.raw"
    disk.write_bytes(boot_sector())
    device = ["--", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    done = machines("boot", "--hda", disk, "--accel", "tcg", "--network", "none", *device, check=False)
    assert done.returncode == EXIT_STATUS


def test_dry_run_prints_a_command_that_can_be_pasted_and_changes_nothing(machines: Machines, image: Path) -> None:
    before = digest(image)
    done = machines("boot", image, "--accel", "tcg", "--smp", "4,maxcpus=8,threads=2", "--dry-run")
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert lines["name"] == "small"
    assert lines["accel"] == "tcg"
    assert lines["smp"] == "8 logical CPUs: 1 socket × 4 cores × 2 threads; 4 of them plugged in at the start"
    assert lines["drive"] == f"drive0: virtio disk, bus 0, unit 0, {image}"
    command = shlex.split(lines["run"])
    assert command[1:3] == ["-nodefaults", "-no-user-config"]
    assert command[command.index("-smp") + 1] == "cpus=4,maxcpus=8,sockets=1,cores=4,threads=2"
    assert digest(image) == before
    assert not os.path.exists(os.path.join(machines.root, "small"))


def test_dry_run_in_json_is_one_document(machines: Machines, image: Path) -> None:
    done = machines("boot", image, "--accel", "tcg", "--ephemeral", "--dry-run", "--output", "json")
    document = json.loads(done.stdout)
    assert document["name"] == "small"
    assert document["accelerator"] == "tcg"
    (scratch,) = document["before"]["scratch"]
    assert scratch["backing"] == str(image)
    assert document["command"][0].endswith("qemu-system-x86_64")


def test_vms_of_one_name_in_two_runtime_directories_throw_their_writes_to_two_places(
    machines: Machines, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("boot", image, "--accel", "tcg", "--ephemeral", "--dry-run", "--output", "json")
    here = json.loads(machines(*words).stdout)["before"]["scratch"][0]["path"]
    assert json.loads(machines(*words).stdout)["before"]["scratch"][0]["path"] == here
    os.mkdir(os.path.join(machines.folder, "2"))
    monkeypatch.setitem(machines.env, "XDG_RUNTIME_DIR", os.path.join(machines.folder, "2"))
    there = json.loads(machines(*words).stdout)["before"]["scratch"][0]["path"]
    assert os.path.dirname(os.path.dirname(there)) == machines.folder
    assert there != here


def test_a_qemu_that_its_sandbox_ends_is_told_from_one_that_crashed(machines: Machines, image: Path) -> None:
    words = ("boot", "-d", image, "--accel", "tcg", "--network", "none", "--", "-incoming", "exec:true")
    done = machines(*words, check=False)
    assert done.returncode == 1
    assert "hint: QEMU's sandbox lets it start no program (exec:…); --no-sandbox does" in done.stderr


def test_a_profile_is_the_ground_and_the_command_line_counts(machines: Machines, image: Path, tmp_path: Path) -> None:
    profile = tmp_path / "vm.toml"
    profile.write_text(
        'name = "web"\nmemory = "512M"\naccel = "tcg"\nsmp = 2\n[[drive]]\nfile = "small.qcow2"\nif = "virtio"\n'
    )
    done = machines("boot", "--profile", profile, "--memory", "256M", "--dry-run", "--output", "json")
    document = json.loads(done.stdout)
    assert document["name"] == "web"
    assert document["machine"]["memory"] == {"size": 256 << 20}
    assert document["machine"]["smp"] == {"cpus": 2}
    assert document["machine"]["drive"][0]["file"] == str(image)


def test_a_dry_run_of_a_new_overlay_makes_none(machines: Machines, image: Path) -> None:
    top = image.with_name("top.qcow2")
    done = machines("boot", image, "--new-overlay", top, "--accel", "tcg", "--dry-run")
    assert "qemu-img create" in done.stdout
    assert not top.exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--smp", "0"],
        ["-d", "--wait", "later"],
        ["-d", "--kernel", "missing"],
        ["-d", "--accel", "tcg", "--", "-device", "missing"],
        ["--accel", "tcg", "--display", "none", "--", "-device", "missing"],
    ],
)
def test_a_new_overlay_whose_vm_could_not_be_started_is_not_left(
    machines: Machines, image: Path, words: list[str]
) -> None:
    done = machines("boot", image, "--new-overlay", image.with_name("top.qcow2"), *words, check=False)
    assert done.returncode in (1, 2)
    assert os.listdir(image.parent) == [image.name]


def test_a_new_overlay_in_a_folder_gets_a_name_and_is_booted(machines: Machines, image: Path) -> None:
    folder = image.with_name("tops")
    folder.mkdir()
    words = ["-d", "--name", "top", "--accel", "tcg", "--network", "none", "--output", "json"]
    machines("boot", image, "--new-overlay", folder, *words)
    shown = json.loads(machines("vm", "show", "top", "--output", "json").stdout)
    machines("vm", "kill", "top")
    assert [drive["file"] for drive in shown["drives"]] == [str(folder / "small-overlay-1.qcow2")]


@pytest.mark.parametrize(
    ("words", "message", "status"),
    [
        ([], "nothing to boot from", 2),
        (["--cdrom", "a", "--cdrom", "b"], "--cdrom is there twice\nhint: a further CD-ROM is --drive FILE", 2),
        (["disk", "--kernel", "a", "--kernel", "b"], "--kernel is there twice\nhint: leave one out", 2),
        (["--new-overlay", "x.qcow2", "--kernel", "k"], "--new-overlay needs the IMAGE", 2),
        (["disk", "--wait", "ssh"], "--wait is for a VM in the background", 2),
        (["-d", "disk", "--wait", "tcp:22"], "--wait cannot be 'tcp:22'", 2),
        (["-d", "disk", "--wait", "serial:("], "is no regular expression", 2),
        (["-d", "disk", "--wait", "serial:(", "--dry-run"], "is no regular expression", 2),
        (["-d", "disk", "--wait", "agent"], "no channel for an agent", 2),
        (["-d", "disk", "--wait", "ssh", "--network", "none", "--dry-run"], "no way to the guest's SSH server", 2),
        (
            ["--drive", "fat:rw:/tmp"],
            "/fat:rw:/tmp does not exist\nhint: a folder of the host is in the guest by --s",
            1,
        ),
        (["nbd://host/disk"], "does not exist\nhint: a name is a file, no address: an overlay may", 1),
        (["/nonexistent/disk.qcow2"], "/nonexistent/disk.qcow2 does not exist", 1),
        (["/tmp"], "is a directory", 1),
    ],
)
def test_a_request_that_makes_no_sense_is_one_clear_error(
    machines: Machines, words: list[str], message: str, status: int
) -> None:
    done = machines("boot", *words, check=False)
    assert message in done.stderr
    assert done.returncode == status
    assert "Traceback" not in done.stderr


def test_an_image_behind_an_option_that_takes_it_for_its_value_is_found_out(machines: Machines, image: Path) -> None:
    done = machines("boot", "--balloon", image, "--dry-run", check=False)
    assert done.returncode == 2
    assert f"--balloon took {image} as its value: write IMAGE before --balloon" in done.stderr
    assert "virtio-balloon" in machines("boot", image, "--balloon", "--accel", "tcg", "--dry-run").stdout
    done = machines("boot", "--rng", "/dev/urandom", "--dry-run", check=False)
    assert "give an IMAGE" in done.stderr


def test_an_image_after_the_arguments_of_qemu_is_found_out(machines: Machines, image: Path) -> None:
    done = machines("boot", "--dry-run", "--", image, check=False)
    assert done.returncode == 2
    assert f"hint: what stands after -- goes to QEMU: write {image} before it" in done.stderr
    done = machines("boot", "--dry-run", "--", "-S", check=False)
    assert "give an IMAGE" in done.stderr


def test_a_raw_disk_with_the_header_of_another_format_is_in_doubt(machines: Machines, image: Path) -> None:
    raw = image.with_name("disk.raw")
    image.rename(raw)
    done = machines("boot", raw, "--dry-run", check=False)
    assert done.returncode == 1
    assert "is named as a raw image, but begins as a qcow2" in done.stderr
    assert machines("boot", raw, "-f", "raw", "--accel", "tcg", "--dry-run").returncode == 0


def test_help_lists_what_this_qemu_has(machines: Machines) -> None:
    assert "alias q35" in machines("boot", "--machine", "help").stdout
    assert "Features, each as +name or -name" in machines("boot", "--cpu", "help").stdout
    assert "virtio-net-pci" in machines("boot", "--nic-model", "help").stdout
