"""Fixtures of the tests of imgtool.operations."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imgtool.errors import ImgtoolError
from imgtool.operations.overlay import new_overlay
from imgtool.qemu.qemu_img import QemuImg
from tests.conftest import Images
from tests.faults.disks import digest

KIB = 1024
PIECE = 64 * KIB


class Store:
    """A directory of images, of which it is known what a guest reads from each."""

    def __init__(self, images: Images, scratch: Path) -> None:
        self.images = images
        self.directory = images.directory
        self._scratch = scratch

    def __truediv__(self, name: str) -> Path:
        return self.directory / name

    def base(self, name: str, *pieces: int, size: str = "1M", format: str = "qcow2") -> Path:
        """A base with `pieces` written one after the other: see `write`."""
        path = self.images.base(name, size, format=format)
        self.write(path, *enumerate(pieces), format=format)
        return path

    def overlay(self, name: str, base: str, pieces: dict[int, int] | None = None, *, size: int | None = None) -> Path:
        """An overlay as imgtool makes it, anchored; `pieces` is piece → pattern."""
        (self / name).parent.mkdir(parents=True, exist_ok=True)
        new_overlay(self / base, self / name, size=size)
        self.write(self / name, *(pieces or {}).items())
        return self / name

    def refused(
        self, kind: type[ImgtoolError], change: Callable[..., object], image: str, *others: object, **how: object
    ) -> ImgtoolError:
        """The error of `change` on `image`, after which every file is what it was."""
        before = self.bytes()
        with pytest.raises(kind) as caught:
            change(self / image, *others, **how)
        assert type(caught.value) is kind
        assert self.bytes() == before
        return caught.value

    def write(self, path: Path, *pieces: tuple[int, int], format: str = "qcow2") -> None:
        """Fills 64 KiB each with a pattern: (number of the piece, byte)."""
        if pieces:
            commands = [f"write -P {pattern} {number * 64}k 64k" for number, pattern in pieces]
            self.images.run_io(path, *commands, format=format)

    def content(self, *names: str) -> dict[str, str]:
        """Name → the digest of what a guest reads; of all images when none are named."""
        found = names or tuple(sorted(os.path.relpath(path, self.directory) for path in self.paths()))
        return {name: digest(self / name) for name in found}

    def by_qemu(self, name: str, format: str | None = None) -> bytes:
        """What a guest reads, by qemu-img: for the images that `digest` cannot read."""
        target = self._scratch / "by-qemu.raw"
        QemuImg().convert(self / name, target, format=format, output_format="raw", overwrite=True)
        return target.read_bytes()

    def snapshot(self, name: str, snapshot: str) -> bytes:
        """What a guest would read after going back to an internal snapshot."""
        target = self._scratch / "snapshot.raw"
        QemuImg().convert(self / name, target, format="qcow2", output_format="raw", snapshot=snapshot, overwrite=True)
        return target.read_bytes()

    def paths(self) -> list[Path]:
        return [path for path in self.directory.rglob("*") if path.is_file() and not path.name.startswith(".")]

    def bytes(self) -> dict[str, bytes]:
        """The files as they are, hidden ones too."""
        files = [path for path in self.directory.rglob("*") if path.is_file()]
        return {os.path.relpath(path, self.directory): path.read_bytes() for path in files}

    def hidden(self) -> list[str]:
        return sorted(path.name for path in self.directory.rglob(".*"))

    def piece(self, name: str, number: int) -> int:
        """The byte that a piece begins with."""
        from tests.faults.disks import read_disk

        return read_disk(self / name)[number * PIECE]


@pytest.fixture
def store(images: Images, tmp_path: Path) -> Iterator[Store]:
    """A store, in which nothing hidden is left behind."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    made = Store(images, scratch)
    yield made
    assert made.hidden() == []


@pytest.fixture(scope="session")
def img() -> QemuImg:
    return QemuImg()
