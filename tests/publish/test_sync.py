"""Chains to another host over ssh: an sshd on the loopback address stands for it."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import os
import signal
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

import imgtool
from imgtool.chain.verify import verify
from imgtool.errors import CommandError, ImageInUseError, ImgtoolError, RefusedError, UsageError
from imgtool.image.header import read_header
from imgtool.image.policy import Policy, in_force
from imgtool.publish.sync.far import Far, Place, Seen, Wanted, command_of, parse_place
from imgtool.publish.sync.request import SyncRequest, missing_stretches
from imgtool.publish.sync.ssh import Ssh
from imgtool.qemu.process import Completed, run
from imgtool.qemu.system import start
from tests.conftest import Images
from tests.files import block_device
from tests.publish.held import held_for_writing
from tests.publish.sshd import SshServer

WEB = Wanted("web.qcow2", 5, "0" * 64)


def request(sshd: SshServer, source: Path, folder: Path, **options: Any) -> SyncRequest:
    return SyncRequest(source, f"{getpass.getuser()}@127.0.0.1:{folder}", ssh=sshd.ssh, **options)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def backing(path: Path) -> bytes | None:
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_header(fd).backing
    finally:
        os.close(fd)


def test_a_host_that_does_not_answer_is_to_be_tried_by_hand() -> None:
    with pytest.raises(CommandError, match="Connection refused") as caught:
        Far(Place("127.0.0.1", "images"), Ssh(port=1)).look([WEB])
    assert (caught.value.hint or "").startswith("does the ssh command below let you in, without asking for anything?")


def test_a_chain_arrives_whole_and_only_once(sshd: SshServer, chain: Images, tmp_path: Path) -> None:
    far = tmp_path / "far" / "away"
    shares: list[float] = []
    first = request(sshd, chain / "web.qcow2", far).make(progress=shares.append)
    assert [(one.name, one.state) for one in first.images] == [("base.qcow2", "sent"), ("web.qcow2", "sent")]
    assert names(far) == ["base.qcow2", "web.qcow2"]
    assert shares == sorted(shares)
    assert (shares[0] < 50.0, shares[-1]) == (True, 100.0)
    chain.qemu_img("compare", chain / "web.qcow2", far / "web.qcow2")
    assert (far / "base.qcow2").read_bytes() == (chain / "base.qcow2").read_bytes()
    assert verify([str(far)]).defects == ()
    second = imgtool.sync(chain / "db.qcow2", f"{getpass.getuser()}@127.0.0.1:{far}", ssh=sshd.ssh)
    assert [(one.name, one.state) for one in second.images] == [("base.qcow2", "present"), ("db.qcow2", "sent")]
    assert second.sent_bytes <= (chain / "db.qcow2").stat().st_size
    assert request(sshd, chain / "web.qcow2", far).make().sent_bytes == 0


def test_images_are_named_anew_where_they_lie_otherwise(sshd: SshServer, images: Images, tmp_path: Path) -> None:
    images.base("bases/base.qcow2", "4M")
    images.run_io(images / "bases/base.qcow2", "write -P 1 0 1M")
    images.overlay("top/web.qcow2", str(images / "bases/base.qcow2"))
    far = tmp_path / "far"
    with in_force(Policy().naming(images.directory)):
        request(sshd, images / "top/web.qcow2", far).make()
    assert backing(far / "web.qcow2") == b"base.qcow2"
    assert backing(images / "top/web.qcow2") == os.fsencode(images / "bases/base.qcow2")
    images.qemu_img("compare", images / "top/web.qcow2", far / "web.qcow2")


def test_a_directory_keeps_its_form(sshd: SshServer, images: Images, tmp_path: Path) -> None:
    images.base("store/bases/a.qcow2")
    images.base("outside.qcow2")
    images.overlay("store/web.qcow2", "bases/a.qcow2")
    images.overlay("store/more/db.qcow2", str(images / "outside.qcow2"))
    far = tmp_path / "far"
    with in_force(Policy().naming(images.directory)):
        done = request(sshd, images / "store", far).make()
    assert names(far) == ["bases/a.qcow2", "more/db.qcow2", "outside.qcow2", "web.qcow2"]
    assert backing(far / "more/db.qcow2") == b"../outside.qcow2"
    assert backing(far / "web.qcow2") == b"bases/a.qcow2"
    order = [one.name for one in done.images]
    assert order.index("bases/a.qcow2") < order.index("web.qcow2")


def test_holes_stay_holes_and_are_not_sent(sshd: SshServer, images: Images, tmp_path: Path) -> None:
    disk = images / "disk.raw"
    with open(disk, "wb") as file:
        file.truncate(128 << 20)
        file.seek(100 << 20)
        file.write(b"data" * 1000)
    disk.chmod(0o440)
    far = tmp_path / "far"
    done = request(sshd, disk, far, format="raw").make()
    assert done.sent_bytes < 1 << 20
    there = (far / "disk.raw").stat()
    assert (there.st_size, stat.S_IMODE(there.st_mode)) == (128 << 20, 0o440)
    assert there.st_blocks * 512 < 2 << 20
    assert there.st_mtime_ns == disk.stat().st_mtime_ns


def nothing() -> None:
    pass


def cut_after(sent: int, then: Callable[[], object] = nothing, rest: bool = False) -> Callable[..., Completed]:
    """A runner that lets `sent` bytes through to a program's stdin, calls `then`, and lets the `rest` through or ends
    the connection."""

    def runner(argv: Sequence[str], *, stdin: int | None = None, **options: Any) -> Completed:
        if stdin is None:
            return run(argv, **options)
        end, source = os.pipe()

        def pump(left: int) -> None:
            while left and (piece := os.read(stdin, min(left, 65536))):
                os.write(source, piece)
                left -= len(piece)

        def pump_all() -> None:
            try:
                pump(sent)
                then()
                if rest:
                    pump(1 << 40)
            except BrokenPipeError:
                pass
            finally:
                os.close(source)

        thread = threading.Thread(target=pump_all)
        thread.start()
        try:
            done = run(argv, stdin=end, **options)
        finally:
            os.close(end)
            thread.join()
        return done if rest else msgspec.structs.replace(done, status=255, stderr=b"Connection closed\n")

    return runner


def test_a_broken_connection_leaves_no_image_and_is_gone_on_with(
    sshd: SshServer, chain: Images, tmp_path: Path
) -> None:
    far = tmp_path / "far"
    sizes = [image.bytes or 0 for image in request(sshd, chain / "web.qcow2", far).plan().images]
    with pytest.raises(CommandError, match="Connection closed") as caught:
        request(sshd, chain / "web.qcow2", far, runner=cut_after(1 << 20)).make()
    assert "resumes where it stopped" in (caught.value.hint or "")
    assert [name for name in names(far) if not name.startswith(".imgtool-")] == []
    done = request(sshd, chain / "web.qcow2", far).make()
    assert names(far) == ["base.qcow2", "web.qcow2"]
    base = done.images[0]
    assert base.state == "sent"
    assert 0 < base.sent_bytes < sizes[0] - (1 << 19)
    chain.qemu_img("compare", chain / "web.qcow2", far / "web.qcow2")


def test_wrong_bytes_get_no_name_there(sshd: SshServer, chain: Images, tmp_path: Path) -> None:
    far = tmp_path / "far"
    with pytest.raises(CommandError):
        request(sshd, chain / "base.qcow2", far, runner=cut_after(1 << 20)).make()
    (part,) = far.iterdir()
    content = bytearray(part.read_bytes())
    content[5000] ^= 1
    part.write_bytes(content)
    with pytest.raises(ImgtoolError, match="other bytes than were sent"):
        request(sshd, chain / "base.qcow2", far).make()
    assert names(far) == []
    assert request(sshd, chain / "base.qcow2", far).make().images[0].state == "sent"


def test_another_image_there_is_not_replaced(sshd: SshServer, chain: Images, tmp_path: Path) -> None:
    far = tmp_path / "far"
    far.mkdir()
    (far / "base.qcow2").write_bytes(b"mine")
    with pytest.raises(RefusedError, match=r"another base\.qcow2"):
        request(sshd, chain / "web.qcow2", far).make()
    assert (far / "base.qcow2").read_bytes() == b"mine"
    assert names(far) == ["base.qcow2"]


def test_a_block_device_arrives_whole(sshd: SshServer, images: Images, tmp_path: Path) -> None:
    base = images.base("base.raw", "2M", format="raw")
    images.run_io(base, "write -P 7 0 1M", format="raw")
    with block_device(base) as device:
        done = request(sshd, device, tmp_path / "far").make()
        (name,) = names(tmp_path / "far")
    assert (tmp_path / "far" / name).read_bytes() == base.read_bytes()
    assert done.images[0].state == "sent"


def test_a_plan_changes_nothing_there(sshd: SshServer, chain: Images, tmp_path: Path) -> None:
    far = tmp_path / "far"
    plan = request(sshd, chain / "web.qcow2", far).plan()
    assert "lacks 2 of 2 images" in plan.notes[-1]
    assert not far.exists()


def test_what_is_written_or_in_pieces_is_refused(sshd: SshServer, chain: Images, tmp_path: Path) -> None:
    with held_for_writing(chain / "web.qcow2"), pytest.raises(ImageInUseError):
        request(sshd, chain / "web.qcow2", tmp_path / "far").make()
    chain.qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=d.raw,data_file_raw=on", chain / "d.qcow2", "1M")
    with pytest.raises(RefusedError, match="keeps its data in other files"):
        request(sshd, chain / "d.qcow2", tmp_path / "far")


class Counting:
    """Runs programs, and remembers their command lines."""

    def __init__(self, sshd: SshServer) -> None:
        self.sshd = sshd
        self.before = self.connections
        self.argvs: list[list[str]] = []

    @property
    def connections(self) -> int:
        return (self.sshd.folder / "log").read_text().count("Accepted publickey")

    @property
    def made(self) -> int:
        return self.connections - self.before

    def __call__(self, argv: Sequence[str], **options: Any) -> Completed:
        self.argvs.append(list(argv))
        return run(argv, **options)


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the sockets of shared connections are, of this test alone; its path is short, as they need it."""
    with tempfile.TemporaryDirectory(prefix="it-") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder) / "imgtool" / "ssh"


def test_all_goes_over_one_connection_that_ends_with_it(
    sshd: SshServer, images: Images, tmp_path: Path, sockets: Path
) -> None:
    for number in range(3):
        images.run_io(images.base(f"{number}.qcow2"), f"write -P {number + 1} 0 64k")
    counting = Counting(sshd)
    done = request(sshd, images.directory, tmp_path / "far", runner=counting).make()
    assert [one.state for one in done.images] == ["sent"] * 3
    assert counting.made == 1
    assert list(sockets.iterdir()) == []
    assert len([argv for argv in counting.argvs if argv[1] == "-S"]) == 4, "a look, and an image each"


def test_a_connection_that_the_user_shares_is_used(sshd: SshServer, chain: Images, tmp_path: Path) -> None:
    socket = tmp_path / "mine"
    ssh = msgspec.structs.replace(sshd.ssh, options=(*sshd.options, f"ControlPath={socket}"))
    place = f"{getpass.getuser()}@127.0.0.1"
    master = start(ssh.argv(place, before=("-M", "-N")), detached=False)
    try:
        while not socket.exists():
            assert master.poll() is None
            time.sleep(0.01)
        counting = Counting(sshd)
        SyncRequest(chain / "web.qcow2", f"{place}:{tmp_path / 'far'}", ssh=ssh, runner=counting).make()
        assert counting.made == 0
        assert master.poll() is None
    finally:
        master.end()
        master.close()


def test_a_shared_connection_that_ends_says_why_and_is_gone_on_with(
    sshd: SshServer, chain: Images, tmp_path: Path, sockets: Path
) -> None:
    """As when the other host goes away: sshd's process for it ends."""
    far = tmp_path / "far"

    def end_sessions() -> None:
        for pid in Path(f"/proc/{sshd.pid}/task/{sshd.pid}/children").read_text().split():
            os.kill(int(pid), signal.SIGKILL)

    with pytest.raises(CommandError, match="ssh: ") as caught:
        request(sshd, chain / "web.qcow2", far, runner=cut_after(1 << 20, end_sessions, rest=True)).make()
    assert caught.value.argv[-1] == f"{getpass.getuser()}@127.0.0.1"
    assert "-S" not in caught.value.argv, "that connection is gone"
    assert "resumes where it stopped" in (caught.value.hint or "")
    assert list(sockets.iterdir()) == []
    assert len(request(sshd, chain / "web.qcow2", far).make().images) == 2


def test_the_same_bytes_are_sent_once(sshd: SshServer, images: Images, tmp_path: Path) -> None:
    """Under other names, by a hard link or a copy, each image there is a file of its own."""
    images.run_io(images.base("a.qcow2"), "write -P 9 0 1M")
    (images / "more").mkdir()
    os.link(images / "a.qcow2", images / "more/b.qcow2")
    (images / "latest.qcow2").symlink_to("a.qcow2")
    (images / "c.qcow2").write_bytes((images / "a.qcow2").read_bytes())
    far = tmp_path / "far"
    plan = request(sshd, images.directory, far).plan()
    left_out = f"{images / 'latest.qcow2'}, another name of {images / 'a.qcow2'}, is left out"
    assert plan.notes == (left_out, f"{getpass.getuser()}@127.0.0.1:{far} lacks 3 of 3 images")
    assert plan.total is not None
    assert plan.total < 2 << 20
    done = request(sshd, images.directory, far).make()
    assert sorted(one.state for one in done.images) == ["copied", "copied", "sent"]
    assert done.sent_bytes == plan.total
    assert names(far) == ["a.qcow2", "c.qcow2", "more/b.qcow2"]
    assert len({(far / name).stat().st_ino for name in names(far)}) == 3
    assert {hashlib.sha256((far / name).read_bytes()).hexdigest() for name in names(far)} == {
        hashlib.sha256((images / "a.qcow2").read_bytes()).hexdigest()
    }
    (far / "c.qcow2").unlink()
    again = request(sshd, images.directory, far).make()
    assert (again.sent_bytes, sorted(one.state for one in again.images)) == (0, ["copied", "present", "present"])


def test_names_of_any_bytes_arrive(sshd: SshServer, images: Images, tmp_path: Path) -> None:
    images.base("a b'c\"$(x)`y`;&\n-.qcow2")
    images.base("-n.qcow2")
    far = tmp_path / "far $HOME'"
    request(sshd, images.directory, far).make()
    assert names(far) == sorted(["a b'c\"$(x)`y`;&\n-.qcow2", "-n.qcow2"])


def test_ssh_is_given_words_that_are_no_options() -> None:
    ssh = Ssh(port=2222, identity="/k", config="/c", options=("A=b",))
    assert ssh.argv("me@host", "true", before=("-O", "check"))[:3] == ["ssh", "-O", "check"]
    assert ssh.argv("me@host", "true") == [
        *("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=15"),
        *("-F", "/c", "-p", "2222", "-i", "/k", "-o", "A=b", "--", "me@host", "true"),
    ]
    assert command_of("\necho $1\n", ["a b", "$(x)"]) == "exec sh -c 'echo $1' sh 'a b' '$(x)'"
    assert parse_place("me@host:/a:b") == Place("me@host", "/a:b")
    assert parse_place("[::1]:~/images") == Place("::1", "images")
    assert parse_place("host:") == Place("host", ".")
    assert parse_place("host:-x") == Place("host", "./-x")
    for wrong in ("/a/b", "host", "-oProxyCommand=x:/a", ":/a"):
        with pytest.raises(UsageError):
            parse_place(wrong)


def test_so_many_stretches_are_named_as_a_command_line_holds() -> None:
    assert missing_stretches([(0, 10), (20, 30)], 0) == [(0, 10), (20, 10)]
    assert missing_stretches([(0, 10), (20, 30)], 25) == [(25, 5)]
    many = [(place * 100, place * 100 + 50 + place % 40) for place in range(5000)]
    few = missing_stretches(many, 0)
    assert len(few) <= 400
    assert all(any(at <= start and end <= at + length for at, length in few) for start, end in many)


@pytest.mark.parametrize("written", [False, True])
def test_what_a_slow_sync_still_sends_never_gets_into_an_image_that_is_there(
    written: bool, sshd: SshServer, chain: Images, tmp_path: Path
) -> None:
    far = tmp_path / "far"
    found: list[bytes] = []

    def meanwhile() -> None:
        while not any(part.stat().st_size for part in parts(far)):
            time.sleep(0.01)
        second = request(sshd, chain / "base.qcow2", far).make()
        assert second.images[0].state == "sent"
        if written:
            with open(far / "base.qcow2", "r+b") as image:
                image.write(bytes(image.seek(0, os.SEEK_END)))
        found.append((far / "base.qcow2").read_bytes())

    first = request(sshd, chain / "base.qcow2", far, runner=cut_after(1 << 20, meanwhile, rest=True))
    refused = pytest.raises(ImgtoolError, match="created there by another program")
    with refused if written else contextlib.nullcontext():
        first.make()
    assert [(far / "base.qcow2").read_bytes()] == found
    assert (found[0] == (chain / "base.qcow2").read_bytes()) is not written
    assert names(far) == ["base.qcow2"]


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob(".imgtool-*.part"))


def test_what_was_half_sent_of_what_an_image_was_earlier_goes(sshd: SshServer, chain: Images, tmp_path: Path) -> None:
    far = tmp_path / "far"
    with pytest.raises(CommandError):
        request(sshd, chain / "base.qcow2", far, runner=cut_after(1 << 20)).make()
    earlier = parts(far)
    chain.run_io(chain / "base.qcow2", "write -P 77 0 64k")
    with pytest.raises(CommandError):
        request(sshd, chain / "base.qcow2", far, runner=cut_after(1 << 20)).make()
    assert len({*parts(far), *earlier}) == 2
    request(sshd, chain / "base.qcow2", far).make()
    assert names(far) == ["base.qcow2"]


def test_a_part_that_stayed_beside_the_whole_image_goes(sshd: SshServer, chain: Images, tmp_path: Path) -> None:
    far = tmp_path / "far"
    with pytest.raises(CommandError):
        request(sshd, chain / "base.qcow2", far, runner=cut_after(1 << 20)).make()
    os.link(chain / "base.qcow2", far / "base.qcow2")
    request(sshd, chain / "base.qcow2", far).plan()
    assert len(names(far)) == 2
    assert request(sshd, chain / "base.qcow2", far).make().images[0].state == "present"
    assert names(far) == ["base.qcow2"]


@pytest.mark.parametrize("size", [1 << 20, 3 << 20])
def test_an_image_that_changes_while_it_is_sent_gets_no_name_there(
    size: int, sshd: SshServer, images: Images, tmp_path: Path
) -> None:
    disk = images / "disk.raw"
    disk.write_bytes(os.urandom(3 << 20))

    def change(percent: float) -> None:
        if percent <= 50:  # it is read for its digest
            return
        with open(disk, "r+b") as file:
            file.truncate(size)
            file.seek(size - 4)
            file.write(bytes(4))

    far = tmp_path / "far"
    with pytest.raises(ImageInUseError, match="was changed while it was sent"):
        request(sshd, disk, far, format="raw").make(progress=change)
    assert [path for path in far.iterdir() if not path.name.startswith(".imgtool-")] == []


def test_more_names_than_a_command_line_holds_are_looked_for(sshd: SshServer, tmp_path: Path) -> None:
    (tmp_path / "web.qcow2").write_bytes(b"other")
    wanted = [Wanted(f"{number:0200}", 5, "0" * 64) for number in range(1500)]
    far = Far(Place(f"{getpass.getuser()}@127.0.0.1", str(tmp_path)), sshd.ssh)
    found = far.look([WEB, *wanted, WEB])
    digest = hashlib.sha256(b"other").hexdigest()
    assert found == [Seen(5, digest), *[Seen(None, None)] * 1500, Seen(5, digest)]


def test_what_cannot_be_read_there_is_not_another_image(sshd: SshServer, tmp_path: Path) -> None:
    folder = tmp_path / WEB.name
    folder.mkdir()
    far = Far(Place(f"{getpass.getuser()}@127.0.0.1", str(tmp_path)), sshd.ssh)
    with pytest.raises(CommandError, match=r"127\.0\.0\.1: sha256sum: .*directory") as caught:
        far.look([WEB._replace(size=folder.stat().st_size)])
    assert (caught.value.hint or "").startswith("once that is mended there, run it again")


def test_a_host_that_cannot_lock_is_sent_to(sshd: SshServer, chain: Images, tmp_path: Path) -> None:
    far = tmp_path / "far"
    assert "flock" not in str(far)

    def without_flock(argv: Sequence[str], **options: Any) -> Completed:
        return run([*argv[:-1], argv[-1].replace("flock", "no-such-program")], **options)

    with pytest.raises(CommandError):
        request(sshd, chain / "base.qcow2", far, runner=cut_after(1 << 20)).make()
    done = request(sshd, chain / "base.qcow2", far, runner=without_flock).make()
    assert done.sent_bytes < (chain / "base.qcow2").stat().st_size - (1 << 19)
    assert names(far) == ["base.qcow2"]
    assert (far / "base.qcow2").read_bytes() == (chain / "base.qcow2").read_bytes()
