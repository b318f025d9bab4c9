"""Fixtures shared by all tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from imgtool.qemu.programs import Programs

pytest_plugins = ["tests.guests", "tests.publish.libvirtd", "tests.publish.registries", "tests.publish.sshd"]


def pytest_configure() -> None:
    """Signals do what they do in a terminal, also where the tests were started with some of them ignored (by nohup,
    or in the background of a shell): what is ignored stays so in every program the tests start."""
    settings.register_profile("imgtool", deadline=None)  # speed is for benchmarks: a busy machine is no failure
    settings.load_profile("imgtool")
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT):
            if signal.getsignal(number) is signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _no_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Neither the user's configuration nor what imgtool remembers for the user has a say in tests."""
    home = tmp_path_factory.mktemp("home")
    names = {"XDG_CONFIG_HOME": home / "config", "XDG_STATE_HOME": home / "state"}
    with pytest.MonkeyPatch.context() as patch:
        for name, place in names.items():
            patch.setenv(name, str(place))
        yield


class Images:
    """A directory of real images. `images / "name"` is a path in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._programs = Programs()

    def __truediv__(self, name: str) -> Path:
        return self.directory / name

    def qemu_img(self, *words: str | bytes | Path) -> bytes:
        """What qemu-img prints, run in the directory."""
        argv = [self._programs.find("qemu-img"), *words]
        return subprocess.run(argv, cwd=self.directory, stdout=subprocess.PIPE, check=True).stdout

    def base(self, name: str, size: str = "1M", *, format: str = "qcow2") -> Path:
        """A new image without a backing file. `qemu-img create` takes awkward names by their absolute path."""
        path = self / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.qemu_img("create", "-q", "-f", format, path, size)
        return path

    def overlay(
        self, name: str, backing: str | bytes, *, format: str | None = "qcow2", size: str | None = None
    ) -> Path:
        """A new qcow2 with the backing name `backing`, as it is. With `size` (`-u`) nothing need be there."""
        path = self / name
        path.parent.mkdir(parents=True, exist_ok=True)
        named = [] if format is None else ["-F", format]
        unsafe = [] if size is None else ["-u"]
        tail = [] if size is None else [size]
        self.qemu_img("create", "-q", "-f", "qcow2", "-b", backing, *named, *unsafe, path, *tail)
        return path

    def rebase(self, name: str, backing: str, *, format: str = "qcow2") -> None:
        """`rebase -u`: writes the name and looks at nothing."""
        self.qemu_img("rebase", "-u", "-f", "qcow2", "-b", backing, "-F", format, self / name)

    def run_io(self, path: Path, *commands: str, format: str = "qcow2") -> None:
        """Runs qemu-io's `commands` on the image (`write -P 7 0 64k`)."""
        words = [word for command in commands for word in ("-c", command)]
        subprocess.run(
            [self._programs.find("qemu-io"), "-f", format, *words, path], stdout=subprocess.DEVNULL, check=True
        )

    @contextlib.contextmanager
    def opened(self, path: Path, *options: str, format: str = "qcow2") -> Iterator[int]:
        """Within, a qemu-io has the image open, as a running machine would: for writing, or with `-r` for reading."""
        argv = [self._programs.find("qemu-io"), *options, "-f", format, os.fspath(path)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
            assert program.stdin is not None
            assert program.stdout is not None
            program.stdin.write(b"length\n")
            program.stdin.flush()
            answer = program.stdout.readline()  # it has answered, so the image is open
            assert b"iB" in answer or b"bytes" in answer, answer
            try:
                yield program.pid
            finally:
                program.stdin.close()
                program.wait(timeout=30)


@pytest.fixture
def images(tmp_path: Path) -> Images:
    """Real images in a directory of their own."""
    directory = tmp_path / "images"
    directory.mkdir()
    return Images(directory)
