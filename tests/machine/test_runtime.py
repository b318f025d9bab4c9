from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from imgtool.errors import ConfigError, ImageInUseError, MachineError
from imgtool.machine import runtime
from imgtool.machine.config import Machine
from imgtool.machine.process import ProcessId
from imgtool.machine.runtime import claim, find, foresee, release, vms
from imgtool.machine.vm import PID_FILE, STATE_FILE, Vm, hold
from imgtool.qemu.system import Process, start


@pytest.fixture
def root(tmp_path: Path) -> str:
    folder = tmp_path / "vm"
    folder.mkdir(mode=0o700)
    return str(folder)


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"\0" * 512)
    return str(path)


def dead() -> ProcessId:
    """The identity of a process that has ended."""
    with subprocess.Popen(["/bin/sleep", "60"]) as child:
        process = ProcessId.of(child.pid)
        child.kill()
    assert process is not None
    return process


class Running:
    """VMs whose QEMU is a sleeping process."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.processes: list[Process] = []

    def __call__(self, name: str | None = None, *, image: str | None = None, writable: bool = True) -> Vm:
        images = [hold(image, writable=writable)] if image else []
        vm = claim(Machine(), name=name, like=image, images=images, detached=True, root=self.root)
        record = vm.file(PID_FILE)
        self.processes.append(start(["/bin/sleep", "60"], detached=True, record=record))
        vm.update(phase="running")
        return vm


@pytest.fixture
def running(root: str) -> Iterator[Running]:
    made = Running(root)
    yield made
    for process in made.processes:
        process.end()
        process.close()


def names(root: str) -> list[str]:
    return [vm.name for vm, _ in vms(root)]


def test_a_running_vm_is_listed_and_found(root: str, running: Running) -> None:
    vm = running("web")
    assert names(root) == ["web"]
    found, state = find("web", root)
    assert found.path == vm.path
    assert state.phase == "running"
    assert vm.running


def test_its_directory_is_closed_to_others(root: str, running: Running) -> None:
    assert os.stat(running("web").path).st_mode & 0o777 == 0o700


def test_a_killed_qemu_leaves_nothing_but_its_logs(root: str, running: Running, tmp_path: Path) -> None:
    vm = running("web")
    leftover = tmp_path / "scratch"
    leftover.mkdir()
    (leftover / "overlay.qcow2").write_bytes(b"x")
    vm.update(leftovers=(str(leftover), "/nonexistent"))
    Path(vm.serial_log).write_bytes(b"login:")
    Path(vm.qmp_socket).write_bytes(b"")
    running.processes[0].kill()
    running.processes[0].wait()
    assert names(root) == []
    assert os.listdir(vm.path) == ["serial0.log"]
    assert not leftover.exists()
    assert runtime.find_logs("web", root).serial_log == vm.serial_log


def test_a_launcher_that_died_while_starting_takes_its_qemu_along(root: str, running: Running) -> None:
    vm = running("web")
    vm.update(phase="starting", launcher=dead())
    assert names(root) == []
    assert running.processes[0].wait(20) is not None


def test_a_launcher_that_is_starting_keeps_the_name(root: str) -> None:
    claim(Machine(), name="web", detached=True, root=root)
    assert names(root) == ["web"]
    with pytest.raises(MachineError, match="a VM named web is running"):
        claim(Machine(), name="web", detached=True, root=root)


def test_helpers_end_with_their_vm(root: str, running: Running) -> None:
    vm = running("web")
    helper = start(["/bin/sleep", "60"], detached=True, record=vm.file("swtpm.pid"))
    running.processes.append(helper)
    running.processes[0].end()
    assert names(root) == []
    assert helper.wait(20) is not None


def test_what_an_earlier_boot_of_the_host_left_is_cleared_without_signals(root: str, running: Running) -> None:
    vm = running("web")
    vm.update(boot="another boot")
    assert names(root) == []
    assert running.processes[0].poll() is None


@pytest.mark.parametrize("content", [b"", b"{", b'{"name": 7}', None])
def test_what_is_not_understood_is_cleared_when_it_has_ended_and_left_alone_before(
    root: str, running: Running, content: bytes | None
) -> None:
    vm = running("web")
    if content is None:
        os.unlink(vm.file(STATE_FILE))
    else:
        Path(vm.file(STATE_FILE)).write_bytes(content)
    assert names(root) == []
    assert [one.name for one in runtime.unknown_vms(root)] == ["web"]
    assert claim(Machine(), name=None, like="web.qcow2", detached=True, root=root).name == "web-2"
    for take in (find, lambda name, root: claim(Machine(), name=name, detached=True, root=root)):
        with pytest.raises(MachineError, match="the VM web runs, but what was noted of it") as caught:
            take("web", root)
        pid = running.processes[0].pid
        assert caught.value.hint == f"the imgtool that started it can end it, or `kill {pid}`"
    assert running.processes[0].poll() is None
    running.processes[0].end()
    assert names(root) == ["web-2"]
    assert not os.path.exists(vm.path)


def test_release_clears_and_may_come_twice(root: str, running: Running) -> None:
    vm = running("web")
    Path(vm.serial_log).write_bytes(b"login:")
    running.processes[0].end()
    release(vm)
    release(vm)
    assert os.listdir(vm.path) == ["serial0.log"]
    with pytest.raises(MachineError, match="the VM web has ended") as caught:
        find("web", root)
    assert caught.value.hint == "`imgtool vm log web` shows what it said"


def test_release_leaves_a_later_vm_of_the_name_alone(root: str, running: Running) -> None:
    first = running("web")
    running.processes[0].end()
    second = running("web")
    release(first)
    assert (first.running, second.running) == (False, True)


def test_a_missing_vm_is_an_error_that_suggests_the_near_one(root: str, running: Running) -> None:
    running("webserver")
    with pytest.raises(MachineError, match="there is no VM named websrver") as caught:
        find("websrver", root)
    assert caught.value.hint == "did you mean webserver?"


def test_names_are_made_from_the_image_and_counted_up(running: Running, image: str, tmp_path: Path) -> None:
    assert running(image=image, writable=False).name == "disk"
    assert running(image=image, writable=False).name == "disk-2"
    awkward = tmp_path / "-.a b,c\n.qcow2"
    awkward.write_bytes(b"")
    assert running(image=str(awkward)).name == "a-b-c"


@pytest.mark.parametrize("name", ["", "-x", "a/b", "..", "a b", "x" * 49, "é", "a\n"])
def test_a_name_that_is_no_name_is_refused(root: str, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a VM"):
        claim(Machine(), name=name, detached=True, root=root)


def test_two_vms_never_write_one_image_under_any_of_its_names(running: Running, image: str, tmp_path: Path) -> None:
    running("first", image=image)
    other = tmp_path / "other.raw"
    os.link(image, other)
    with pytest.raises(ImageInUseError, match="the image is being written by the VM first") as caught:
        running("second", image=str(other))
    assert caught.value.path == str(other)
    assert "imgtool vm stop first" in str(caught.value.hint)


def test_an_image_that_another_vm_reads_may_be_read_and_not_written(running: Running, image: str) -> None:
    running("first", image=image, writable=False)
    running("second", image=image, writable=False)
    with pytest.raises(ImageInUseError, match="is being read by the VM"):
        running("third", image=image)


def test_a_path_too_long_for_sockets_is_one_clear_error(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    with pytest.raises(MachineError, match="too long a path for sockets") as caught:
        claim(Machine(), name="web", detached=True, root=str(deep))
    assert "XDG_RUNTIME_DIR" in str(caught.value.hint)


def test_a_runtime_directory_without_room_is_named(root: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
    try:
        with pytest.raises(MachineError, match=f"{root}/web cannot be written: File too large") as caught:
            claim(Machine(), name="web", detached=True, root=root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "XDG_RUNTIME_DIR" in str(caught.value.hint)
    assert vms(root) == []


def test_what_would_be_claimed_is_foreseen_and_nothing_is_made_or_cleared(
    root: str, running: Running, image: str
) -> None:
    running("web", image=image, writable=False)
    (Path(root) / "gone").mkdir()
    (Path(root) / "gone" / "qmp.sock").touch()
    before = sorted(os.listdir(root))
    assert foresee(name=None, like="/images/web.qcow2", root=root).name == "web-2"
    assert foresee(name="gone", root=root).path == os.path.join(root, "gone")
    with pytest.raises(MachineError, match="a VM named web is running"):
        foresee(name="web", root=root)
    with pytest.raises(ImageInUseError, match="is being read by the VM web"):
        foresee(name=None, images=[hold(image, writable=True)], root=root)
    assert sorted(os.listdir(root)) == before
    assert (Path(root) / "gone" / "qmp.sock").exists()


def test_the_root_is_in_the_users_runtime_directory_and_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert runtime.runtime_root() == str(tmp_path / "imgtool" / "vm")
    assert (tmp_path / "imgtool").stat().st_mode & 0o777 == 0o700
    (tmp_path / "imgtool").chmod(0o755)
    runtime.runtime_root()
    assert (tmp_path / "imgtool").stat().st_mode & 0o777 == 0o700


def test_a_root_that_is_a_link_elsewhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "imgtool").symlink_to("elsewhere")
    with pytest.raises(MachineError, match="belongs to someone else"):
        runtime.runtime_root()


def test_only_the_latest_ended_vms_keep_their_logs(root: str) -> None:
    for number in range(25):
        folder = Path(root) / f"vm{number:02}"
        folder.mkdir()
        (folder / "serial0.log").write_bytes(b"x")
        os.utime(folder, (number, number))
    vms(root)
    assert sorted(path.name for path in Path(root).iterdir() if path.is_dir())[0] == "vm05"


CLAIMER = """
import sys
from imgtool.errors import ImageInUseError
from imgtool.machine.config import Machine
from imgtool.machine.runtime import claim
from imgtool.machine.vm import hold
sys.stdin.readline()
try:
    claim(Machine(), name=None, like="x", images=[hold(sys.argv[2], writable=True)], detached=True, root=sys.argv[1])
    print("claimed", flush=True)
except ImageInUseError:
    print("refused", flush=True)
sys.stdin.readline()
"""


def test_of_four_that_claim_an_image_at_once_one_gets_it(root: str, image: str) -> None:
    words = [sys.executable, "-c", CLAIMER, root, image]
    claimers = [
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for _ in range(4)
    ]
    for claimer in claimers:
        assert claimer.stdin is not None
        claimer.stdin.write("go\n")
    answers = []
    for claimer in claimers:
        assert claimer.stdout is not None
        answers.append(claimer.stdout.readline().strip())
    for claimer in claimers:
        claimer.communicate("end\n")
    assert sorted(answers) == ["claimed", "refused", "refused", "refused"]


def test_the_state_is_json_in_kebab_case(running: Running) -> None:
    vm = running("web")
    document = msgspec.json.decode(Path(vm.file(STATE_FILE)).read_bytes())
    assert document["launcher"] == {"pid": os.getpid(), "started": document["launcher"]["started"]}
    assert document["machine"] == {}
