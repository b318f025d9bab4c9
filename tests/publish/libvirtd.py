"""A libvirtd of the tests' own: its configuration, sockets and state lie in one folder, its guests run under TCG.

It is a session's daemon, for which libvirt needs neither root nor a system bus. Root's is the system's, so that root
starts it as nobody.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_NOBODY = 65534
_CONFIG = 'cgroup_controllers = [ ]\nsecurity_driver = "none"\nstdio_handler = "file"\n'
_ROOT_CONFIG = """\
cgroup_controllers = [ ]
security_driver = "none"
stdio_handler = "file"
namespaces = [ ]
dynamic_ownership = 0
remember_owner = 0
user = "root"
group = "root"
hugetlbfs_mount = "{folder}/huge"
"""
_IN_NAMESPACES = """
for place in /etc /run /var/lib /var/cache /var/log; do
    mkdir -p $place/libvirt
    mount --bind "$0/${place##*/}" $place/libvirt
done
mount --bind "$0/passwd" /etc/passwd
mount --bind "$0/group" /etc/group
mount -t hugetlbfs none "$0/huge"
ip link set lo up
ip link add br-it type bridge
ip link set br-it up
ip addr add 192.0.2.1/24 dev br-it  # an address beside the loopback: SPICE's getaddrinfo asks for one
ip tuntap add dev it-tap0 mode tap
libvirtd --pid-file "$0/libvirtd.pid" &
wait $!  # as the first process, the shell reaps what others leave behind: libvirt waits for that
"""
_LOOKED_UP = ("libvirt-qemu", "kvm")
"""Debian's libvirtd looks the one up, and Ubuntu's the other, before it reads whom its qemu.conf names. They come
with libvirt-daemon-system and udev."""


class Libvirt:
    _said = "log"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = folder / "images"
        self.pool = folder / "pool"
        self.socket = folder / "run" / "libvirt" / "libvirt-sock"
        self.uri = f"qemu+unix:///session?socket={self.socket}"
        self._daemon: subprocess.Popen[bytes] | None = None

    def give(self, *paths: Path) -> None:
        """Makes files the daemon's."""
        if os.getuid() == 0:
            for path in paths:
                os.chown(path, _NOBODY, _NOBODY)

    def start(self) -> None:
        config = self.folder / "home" / "config" / "libvirt"
        config.mkdir(parents=True)
        (config / "qemu.conf").write_text(_CONFIG)
        (self.folder / "libvirtd.conf").write_text("keepalive_interval = -1\n")
        for path in (self.images, self.pool, self.folder / "run"):
            path.mkdir()
        self.folder.chmod(0o755)
        (self.folder / "run").chmod(0o700)
        self.give(self.folder, *self.folder.rglob("*"))
        home = self.folder / "home"
        env = {
            "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(self.folder / "run"),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_CACHE_HOME": str(home / "cache"),
            "XDG_DATA_HOME": str(home / "data"),
        }
        other: dict[str, object] = {}
        if os.getuid() == 0:
            other = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
        with open(self.folder / "log", "wb") as log:
            self._daemon = subprocess.Popen(
                ["libvirtd", "--config", str(self.folder / "libvirtd.conf")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=env,
                **other,  # type: ignore[call-overload]
            )
        self._await_socket()

    def _await_socket(self) -> None:
        assert self._daemon is not None
        deadline = time.monotonic() + 60
        while not self.socket.exists():
            assert self._daemon.poll() is None, (self.folder / self._said).read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self.virsh("version")

    def virsh(self, *words: str | Path, check: bool = True) -> str:
        argv = ["virsh", "-q", "-k", "0", "-c", self.uri, *words]  # a daemon on a busy machine may be slow to answer
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        assert not check or done.returncode == 0, done.stderr.decode()
        return (done.stdout if done.returncode == 0 else done.stderr).decode()

    def remove(self, name: str) -> None:
        self.virsh("destroy", name, check=False)
        self.virsh("undefine", "--nvram", name, check=False)

    def stop(self) -> None:
        try:
            for name in self.virsh("list", "--all", "--name").split():
                self.remove(name)
        finally:
            if self._daemon is not None:
                self._end(self._daemon)
                self._daemon.wait(30)
            shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def _end(daemon: subprocess.Popen[bytes]) -> None:
        daemon.terminate()


class RootLibvirt(Libvirt):
    """The system's libvirtd, as root, with mounts, processes and a network of its own: huge pages, the bridge br-it,
    the tap it-tap0. It needs none of the users, folders and services that a system's libvirt has."""

    _said = "said"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.socket = folder / "run" / "libvirt-sock"
        self.uri = f"qemu+unix:///system?socket={self.socket}"

    def start(self) -> None:
        for name in ("images", "etc", "run", "lib", "cache", "log", "huge"):
            (self.folder / name).mkdir()
        (self.folder / "etc" / "qemu.conf").write_text(_ROOT_CONFIG.format(folder=self.folder))
        for name, fields in (("passwd", "x:0:0::/:/bin/false"), ("group", "x:0:")):
            known = Path("/etc", name).read_text()
            (self.folder / name).write_text("".join([known, *(f"{who}:{fields}\n" for who in _LOOKED_UP)]))
        env = {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
        inside = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        inside += ["sh", "-euc", _IN_NAMESPACES, str(self.folder)]
        with open(self.folder / self._said, "wb") as log:
            self._daemon = subprocess.Popen(inside, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        self._await_socket()

    @staticmethod
    def _end(daemon: subprocess.Popen[bytes]) -> None:
        daemon.kill()  # its namespace's processes end with it


@pytest.fixture(scope="session")
def root_libvirt() -> Iterator[RootLibvirt]:
    server = RootLibvirt(Path(tempfile.mkdtemp(prefix="lv-", dir="/tmp")))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def libvirt() -> Iterator[Libvirt]:
    server = Libvirt(Path(tempfile.mkdtemp(prefix="lv-", dir="/tmp")))  # short: a socket's name has 107 bytes
    try:
        server.start()
        yield server
    finally:
        server.stop()
