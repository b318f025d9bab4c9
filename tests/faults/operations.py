"""The operations that are swept for faults, each on a small store of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from imgtool.operations.collect import collect
from imgtool.operations.overlay import new_overlay
from imgtool.qemu.programs import Programs
from imgtool.qemu.qemu_img import QemuImg
from tests.faults.harness import Operation

SIZE = 1 << 20


def _write(path: Path, *pieces: tuple[int, int], format: str = "qcow2") -> None:
    """(number of the piece of 64 KiB, pattern) each."""
    words = [word for number, pattern in pieces for word in ("-c", f"write -P {pattern} {number * 64}k 64k")]
    argv = [Programs().find("qemu-io"), "-f", format, *words, str(path)]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


def base(path: Path, *pieces: tuple[int, int], format: str = "qcow2", size: int = SIZE) -> None:
    QemuImg().create(path, size, format=format)
    _write(path, *pieces, format=format)


def overlay(path: Path, on: Path, *pieces: tuple[int, int], size: int | None = None) -> None:
    new_overlay(on, path, size=size)
    _write(path, *pieces)


def _chain(store: Path) -> None:
    """base ← mid ← top ← leaf, and a sibling of mid. base is written before anything stands on it."""
    base(store / "base.qcow2", (0, 1), (1, 1), (2, 1))
    overlay(store / "mid.qcow2", store / "base.qcow2", (1, 2))
    overlay(store / "top.qcow2", store / "mid.qcow2", (2, 3), (5, 3))
    overlay(store / "leaf.qcow2", store / "top.qcow2", (6, 4))


def _siblings(store: Path) -> None:
    base(store / "base.qcow2", (0, 1), (1, 1), (2, 1))
    overlay(store / "top.qcow2", store / "base.qcow2", (1, 2), (3, 2))
    overlay(store / "leaf.qcow2", store / "top.qcow2", (4, 4))
    overlay(store / "sibling.qcow2", store / "base.qcow2", (0, 5))
    overlay(store / "nephew.qcow2", store / "sibling.qcow2", (6, 6))


def _raw(store: Path) -> None:
    base(store / "base.raw", (0, 1), format="raw")
    overlay(store / "top.qcow2", store / "base.raw", (1, 2), (17, 3), size=2 * SIZE)


def _two_bases(store: Path) -> None:
    base(store / "old.qcow2", (0, 1), (1, 1))
    base(store / "new.qcow2", (0, 2), (1, 1), (3, 2))
    overlay(store / "top.qcow2", store / "old.qcow2", (1, 3))
    overlay(store / "leaf.qcow2", store / "top.qcow2", (4, 4))
    (store / "same.qcow2").write_bytes((store / "old.qcow2").read_bytes())


def _snapshots(store: Path) -> None:
    base(store / "base.qcow2", (0, 1), (1, 1))
    overlay(store / "top.qcow2", store / "base.qcow2", (1, 2))
    QemuImg().snapshot_create(store / "top.qcow2", "first")
    _write(store / "top.qcow2", (1, 3), (2, 3))


def _line(store: Path) -> None:
    base(store / "base.qcow2", (0, 9), (1, 9), (2, 9), (3, 9))
    below = "base"
    for number in range(1, 6):
        overlay(store / f"{number}.qcow2", store / f"{below}.qcow2", (number - 1, number))
        below = str(number)


def _old_version(store: Path) -> None:
    """A qcow2 of version 2, which amend makes one of version 3."""
    base(store / "base.qcow2", (0, 1), (1, 1))
    QemuImg().create(
        store / "top.qcow2",
        format="qcow2",
        backing="base.qcow2",
        backing_format="qcow2",
        options={"compat": "0.10"},
    )
    _write(store / "top.qcow2", (1, 2))


def _five_children(store: Path) -> None:
    base(store / "base.qcow2", (0, 1), (1, 1))
    (store / "elsewhere").mkdir()
    for number in range(5):
        overlay(store / f"{number}.qcow2", store / "base.qcow2", (number, number + 2))


def _collected(store: Path) -> None:
    _chain(store)
    collect(store, keep=[store / "mid.qcow2"])


def _convert(*words: str) -> Callable[[Path], list[str | Path]]:
    """A copy of the middle of a chain, as a new image or, with --force, over one that is there."""
    return lambda store: ["convert", *words, store / "mid.qcow2", store / "new.qcow2"]


def _copied(store: Path) -> None:
    _chain(store)
    base(store / "new.qcow2", (0, 8), (7, 8))


OPERATIONS = (
    Operation(
        "create",
        _chain,
        lambda store: ["create", "-f", "qcow2", store / "new.qcow2", "1M"],
        done="already exists",
    ),
    Operation(
        "create -b",
        _chain,
        lambda store: ["create", "-f", "qcow2", "-b", "mid.qcow2", "-F", "qcow2", store / "new.qcow2"],
        done="already exists",
    ),
    Operation("convert", _chain, _convert("-O", "qcow2"), done="already exists"),
    Operation(
        "convert -B", _chain, _convert("-O", "qcow2", "-B", "base.qcow2", "-F", "qcow2"), done="already exists"
    ),
    Operation(
        "convert -c", _chain, _convert("-O", "qcow2", "-c", "-o", "compression_type=zlib"), done="already exists"
    ),
    Operation("convert --force", _copied, _convert("-O", "qcow2", "--force")),
    Operation(
        "convert to raw",
        _chain,
        lambda store: ["convert", "-O", "raw", store / "mid.qcow2", store / "new.raw"],
        done="already exists",
    ),
    Operation("commit", _chain, lambda store: ["commit", store / "top.qcow2"]),
    Operation("commit -d", _chain, lambda store: ["commit", "-d", store / "top.qcow2"]),
    Operation("commit -b", _chain, lambda store: ["commit", "-b", store / "base.qcow2", store / "top.qcow2"]),
    Operation("commit to a raw base", _raw, lambda store: ["commit", store / "top.qcow2"]),
    Operation(
        "commit --preserve-siblings",
        _siblings,
        lambda store: ["commit", "--preserve-siblings", store / "top.qcow2"],
    ),
    Operation("rebase", _two_bases, lambda store: ["rebase", "-b", "new.qcow2", store / "top.qcow2"]),
    Operation("rebase -u", _two_bases, lambda store: ["rebase", "-u", "-b", "same.qcow2", store / "top.qcow2"]),
    Operation("rebase to nothing", _two_bases, lambda store: ["rebase", "-b", "", store / "top.qcow2"]),
    Operation(
        "rebase with snapshots",
        _snapshots,
        lambda store: ["rebase", "-b", "", store / "top.qcow2"],
    ),
    Operation(
        "chain flatten",
        _chain,
        lambda store: ["chain", "flatten", store / "top.qcow2"],
        done="stands on nothing already",
    ),
    Operation(
        "chain flatten --to",
        _chain,
        lambda store: ["chain", "flatten", store / "top.qcow2", "--to", store / "new.qcow2"],
        done="already exists",
    ),
    Operation(
        "chain shorten",
        _line,
        lambda store: ["chain", "shorten", store / "5.qcow2", "--keep", store / "2.qcow2", "--delete"],
        done="no layer to merge",
    ),
    Operation(
        "overlay new --count 4",
        _two_bases,
        lambda store: ["overlay", "new", "--count", "4", store / "new.qcow2", store / "web-{n}.qcow2"],
        done="already exists",
    ),
    Operation("overlay reset", _line, lambda store: ["overlay", "reset", store / "5.qcow2"]),
    Operation("overlay delete", _line, lambda store: ["overlay", "delete", store / "5.qcow2"], done="does not exist"),
    Operation("resize", _snapshots, lambda store: ["resize", store / "top.qcow2", "3M"]),
    Operation(
        "resize --shrink",
        _two_bases,
        lambda store: ["resize", "--force", "--shrink", store / "old.qcow2", "512k"],
    ),
    Operation("resize a raw disk", _raw, lambda store: ["resize", "--force", store / "base.raw", "2M"]),
    Operation(
        "snapshot -c", _chain, lambda store: ["snapshot", "-c", "new", store / "mid.qcow2"], done="has a snapshot"
    ),
    Operation("snapshot -a", _snapshots, lambda store: ["snapshot", "-a", "first", store / "top.qcow2"]),
    Operation(
        "snapshot -d",
        _snapshots,
        lambda store: ["snapshot", "-d", "first", store / "top.qcow2"],
        done="has no snapshot",
    ),
    Operation("amend", _old_version, lambda store: ["amend", "-o", "compat=1.1", store / "top.qcow2"]),
    Operation(
        "bitmap --add",
        _two_bases,
        lambda store: ["bitmap", "--add", store / "top.qcow2", "daily"],
        done="daily",
    ),
    Operation(
        "chain move (5 children)",
        _five_children,
        lambda store: ["chain", "move", store / "base.qcow2", store / "elsewhere/base.qcow2"],
        done="does not exist",
    ),
    Operation(
        "chain collect",
        _chain,
        lambda store: ["chain", "collect", store, "--keep", store / "mid.qcow2"],
        done="nothing",
    ),
    Operation(
        "chain collect --undo", _collected, lambda store: ["chain", "collect", store, "--undo"], done="quarantine"
    ),
    Operation(
        "chain collect --purge", _collected, lambda store: ["chain", "collect", store, "--purge"], done="quarantine"
    ),
)
