"""Differential fuzzing of the native header readers against `qemu-img info`.

    python -m tests.image.fuzz [--format qcow2] [--count 20000] [--seed 1]

Images that qemu-img made have a few fields of their headers overwritten. Whatever comes out, the readers raise
nothing but ImageFormatError and read no more than they promise; and where `qemu-img info` answers, they say the same.
The same seed gives the same mutations of the same seed images (which hold random identifiers, made anew each run).
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from imgtool.errors import CommandTimeout, ImageFormatError
from imgtool.image.header import Header, read_header
from imgtool.image.snapshot_table import Snapshot, read_snapshots
from imgtool.image.source import READ_LIMIT
from imgtool.qemu.process import Limits, run

QEMU_IMG = os.environ.get("IMGTOOL_QEMU_IMG", "qemu-img")
LIMITS = Limits(seconds=10, address_space=2 << 30)
SECRET = ("--object", "secret,id=s,data=password")


class Seed(NamedTuple):
    """A sound image: where its header's fields are is where mutations go."""

    name: str
    data: bytes
    hot: tuple[tuple[int, int], ...]
    """Ranges of bytes, first and end."""


_RECIPES: dict[str, list[list[str]]] = {
    "qcow2": [
        ["-o", "compat=0.10", "I", "10M"],
        ["-o", "compat=1.1,cluster_size=512", "I", "1G"],
        ["-b", "base.raw", "-F", "raw", "I"],
        ["-o", "compat=0.10", "-b", "base.raw", "-F", "raw", "I"],
        ["-o", "extended_l2=on,compression_type=zstd,cluster_size=128k", "I", "10M"],
        ["-o", "data_file=data.raw,data_file_raw=on", "I", "10M"],
        [*SECRET, "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", "I", "10M"],
    ],
    "qcow": [["I", "10M"], ["-b", "base.raw", "-F", "raw", "I"]],
    "qed": [["I", "10M"], ["-b", "base.raw", "-F", "raw", "I"], ["-o", "table_size=2,cluster_size=4k", "I", "1M"]],
    "vmdk": [
        ["I", "10M"],
        ["-b", "base.vmdk", "-F", "vmdk", "I"],
        ["-o", "subformat=streamOptimized", "I", "10M"],
        ["-o", "subformat=monolithicFlat", "I", "10M"],
        ["-o", "subformat=twoGbMaxExtentSparse", "I", "3G"],
    ],
    "vdi": [["I", "10M"]],
    "vhdx": [["I", "10M"], ["-o", "subformat=fixed", "I", "1M"]],
    "vpc": [["I", "10M"], ["-o", "force_size=on", "I", "10M"], ["I", "200G"]],
    "luks": [[*SECRET, "-o", "key-secret=s,iter-time=10", "I", "1M"]],
    "parallels": [["I", "10M"]],
}
FORMATS = (*_RECIPES, "bochs", "cloop", "dmg")

_HOT: dict[str, tuple[tuple[int, int], ...]] = {
    "qcow2": ((4, 112), (104, 640), (0, 8), (64, 68)),
    "qcow": ((4, 48), (40, 80)),
    "qed": ((4, 72), (60, 100)),
    "vmdk": ((0, 80), (0, 400), (512, 1100), (-1536, -1), (-1024, -900)),
    "vdi": ((64, 84), (340, 456), (0, 8)),
    "vhdx": (
        (0, 8),
        (65536, 65616),
        (196608, 196700),
        (2 << 20, (2 << 20) + 250),
        ((2 << 20) + (64 << 10), (2 << 20) + (64 << 10) + 80),
    ),
    "vpc": ((0, 90), (512, 600), (16, 68)),
    "luks": ((0, 260), (208, 592)),
    "parallels": ((0, 64),),
    "bochs": ((0, 100),),
    "cloop": ((0, 160),),
    "dmg": ((-512, -1), (-1100, -500)),
}
_WORDS = (0, 1, 2, 3, 7, 8, 9, 16, 21, 22, 63, 64, 104, 112, 255, 512, 1023, 1024, 4096, 65535, 65536, 65537)
_LARGE = (2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**62, 2**63 - 512, 2**63 - 1, 2**63, 2**64 - 512, 2**64 - 1)


def make_seeds(format: str, directory: Path) -> list[Seed]:
    """Sound images of `format`; the files they refer to stay in `directory`."""
    if format in _HANDMADE:
        return [Seed(f"image.{format}", data, _HOT[format]) for data in _HANDMADE[format]()]
    (directory / "base.raw").write_bytes(bytes(3 << 20))
    subprocess.run([QEMU_IMG, "create", "-q", "-f", "vmdk", "base.vmdk", "3M"], cwd=directory, check=True)
    seeds = []
    for number, recipe in enumerate(_RECIPES[format]):
        name = f"seed{number}.{format}"
        words = [name if word == "I" else word for word in recipe]
        _create(["-q", "-f", format, *words], directory)
        seeds.append(Seed(name, (directory / name).read_bytes(), _HOT[format]))
    if format == "qcow2":
        seeds += _seeds_with_tables(directory)
    if format == "vmdk":
        subprocess.run(
            [QEMU_IMG, "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", "base.raw", "stream.vmdk"],
            cwd=directory,
            check=True,
        )
        stream = (directory / "stream.vmdk").read_bytes()
        seeds.append(Seed("stream.vmdk", stream, _HOT[format]))
        (directory / "footer.vmdk").write_bytes(_with_footer(stream))
        seeds.append(Seed("footer.vmdk", _with_footer(stream), _HOT[format]))
    if format == "vpc":
        fixed = directory / "fixed.vpc"
        subprocess.run([QEMU_IMG, "create", "-q", "-f", "vpc", "-o", "subformat=fixed", fixed, "1M"], check=True)
        seeds.append(Seed("fixed.vpc", fixed.read_bytes(), ((-512, -420),)))
    return seeds


def _with_footer(stream: bytes) -> bytes:
    """A stream-optimized VMDK as VMware writes it: the grain directory's place is known at the end only."""
    data = bytearray(stream.ljust(-(-len(stream) // 512) * 512, b"\0"))
    header = bytes(data[:512])
    data[56:64] = b"\xff" * 8
    marker = (1).to_bytes(8, "little") + bytes(4) + (3).to_bytes(4, "little")
    return bytes(data) + marker.ljust(512, b"\0") + header + bytes(512)


def _create(words: list[str], directory: Path) -> None:
    """qemu-img create. For LUKS it fails more than every other time on some machines, where it cannot time its key
    stretching: then it is asked again."""
    for _ in range(60):
        if (
            subprocess.run([QEMU_IMG, "create", *words], cwd=directory, check=False, capture_output=True).returncode
            == 0
        ):
            return
    subprocess.run([QEMU_IMG, "create", *words], cwd=directory, check=True)


def _seeds_with_tables(directory: Path) -> list[Seed]:
    """qcow2 images with snapshots, and with bitmaps."""
    subprocess.run(
        [QEMU_IMG, "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "snap.qcow2", "1M"],
        cwd=directory,
        check=True,
    )
    for name in ("one", "two"):
        subprocess.run([QEMU_IMG, "snapshot", "-c", name, "snap.qcow2"], cwd=directory, check=True)
    data = (directory / "snap.qcow2").read_bytes()
    table = int.from_bytes(data[64:72])
    seeds = [Seed("snap.qcow2", data, (*_HOT["qcow2"], (table, table + 160), (table, table + 160)))]
    subprocess.run([QEMU_IMG, "create", "-q", "-f", "qcow2", "map.qcow2", "1M"], cwd=directory, check=True)
    subprocess.run([QEMU_IMG, "bitmap", "--add", "map.qcow2", "one"], cwd=directory, check=True)
    seeds.append(Seed("map.qcow2", (directory / "map.qcow2").read_bytes(), _HOT["qcow2"]))
    return seeds


def _bochs() -> list[bytes]:
    seeds = []
    for version, size_at in ((0x10000, 84), (0x20000, 88)):
        data = bytearray(4096)
        for at, text in ((0, b"Bochs Virtual HD Image"), (32, b"Redolog"), (48, b"Growing")):
            data[at : at + len(text)] = text
        for at, value in ((64, version), (68, 512), (72, 20), (76, 1), (80, 1 << 20)):
            data[at : at + 4] = value.to_bytes(4, "little")
        data[size_at : size_at + 8] = (10 << 20).to_bytes(8, "little")
        seeds.append(bytes(data))
    return seeds


def _cloop() -> list[bytes]:
    script = b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"
    offsets = b"".join((200 + number).to_bytes(8) for number in range(17))
    return [(script.ljust(128, b"\0") + (65536).to_bytes(4) + (16).to_bytes(4) + offsets).ljust(2048, b"\0")]


def _dmg() -> list[bytes]:
    table = bytearray(b"mish".ljust(204, b"\0")) + (0).to_bytes(4) + bytes(36)  # one run of zeros
    table[204 + 16 : 204 + 24] = (2048).to_bytes(8)
    plist = b"<plist><data>" + base64.b64encode(table) + b"</data></plist>"
    trailer = bytearray(512)
    trailer[:4] = b"koly"
    for at, value in ((0xD8, 512), (0xE0, len(plist)), (0x1EC, 2048)):
        trailer[at : at + 8] = value.to_bytes(8)
    return [bytes(512) + plist.ljust(512, b"\0") + bytes(trailer)]


_HANDMADE = {"bochs": _bochs, "cloop": _cloop, "dmg": _dmg}


def mutate(seed: Seed, dice: random.Random) -> bytes:
    """`seed` with one to four fields changed, and sometimes cut short."""
    data = bytearray(seed.data)
    for _ in range(dice.choice((1, 1, 1, 2, 2, 3, 4))):
        first, end = (at if at >= 0 else at + len(data) for at in dice.choice(seed.hot))
        at = dice.randrange(max(0, min(first, len(data) - 1)), max(1, min(end, len(data))))
        width = dice.choice((1, 1, 2, 4, 4, 8, 8))
        at = at // width * width if dice.random() < 0.7 else at
        piece = _value(bytes(data[at : at + width]), width, dice)
        data[at : at + width] = piece
    if dice.random() < 0.05:
        del data[dice.choice((3, 60, 100, 400, 511, 600, len(data) // 2, len(data) - 1)) :]
    return bytes(data)


def _value(old: bytes, width: int, dice: random.Random) -> bytes:
    how = dice.random()
    order: Literal["big", "little"] = "big" if dice.random() < 0.5 else "little"
    if how < 0.35:
        return (dice.choice(_WORDS) % (1 << 8 * width)).to_bytes(width, order)
    if how < 0.55:
        return (dice.choice(_LARGE) % (1 << 8 * width)).to_bytes(width, order)
    if how < 0.75:
        near = int.from_bytes(old, order) + dice.choice((-512, -1, 1, 8, 512))
        return (near % (1 << 8 * width)).to_bytes(width, order)
    if how < 0.85:
        flipped = bytearray(old.ljust(width, b"\0"))
        flipped[dice.randrange(width)] ^= 1 << dice.randrange(8)
        return bytes(flipped)
    return dice.randbytes(width)


class Native(NamedTuple):
    """What the native readers made of a file."""

    header: Header | None
    snapshots: list[Snapshot] | None
    refusal: str | None


def read_natively(path: Path) -> Native:
    """Anything but an ImageFormatError goes through, as the failure it is."""
    fd = os.open(path, os.O_RDONLY)
    before = _bytes_read()
    header = None
    try:
        try:
            header = read_header(fd, name=str(path))
        finally:
            used = _bytes_read() - before
            if used > READ_LIMIT + 65536:  # /proc/self/io itself is read as well
                raise AssertionError(f"{used} bytes were read for a header")
        return Native(header, read_snapshots(fd, header, most=65536), None)
    except ImageFormatError as error:
        return Native(header, None, error.message)
    finally:
        os.close(fd)


def _bytes_read() -> int:
    with open("/proc/self/io", encoding="ascii") as lines:
        return int(lines.readline().split()[1])


def disagreement(path: Path) -> str | None:
    """How the native readers and `qemu-img info` differ about `path`; None where they agree or qemu-img refuses."""
    native = read_natively(path)
    try:
        done = run([QEMU_IMG, "info", "--output=json", str(path)], limits=LIMITS)
    except CommandTimeout:
        return None
    if done.status != 0:
        return None
    expected: dict[str, Any] = json.loads(done.stdout)
    if native.header is None:
        if native.refusal is not None and "is both" in native.refusal:
            return None  # two formats in one file are refused, whichever QEMU takes
        return f"qemu-img reads it, imgtool says: {native.refusal}"
    header = native.header
    said = [header.format, header.virtual_size, _ascii(header.backing), _ascii(header.backing_format)]
    wanted = [
        expected["format"],
        expected["virtual-size"],
        _ascii(expected.get("backing-filename")),
        _ascii(expected.get("backing-filename-format")),
    ]
    if said != wanted and not _sparse_extents(header):
        return f"imgtool says {said}, qemu-img {wanted}"
    if "snapshots" in expected:
        if native.snapshots is None:
            return f"qemu-img lists snapshots, imgtool says: {native.refusal}"
        ours = [(_ascii(s.id), _ascii(s.name), s.vm_state_size, s.date_sec) for s in native.snapshots]
        theirs = [
            (_ascii(s["id"]), _ascii(s["name"]), s["vm-state-size"], s["date-sec"]) for s in expected["snapshots"]
        ]
        if [_wrapped(row) for row in ours] != [_wrapped(row) for row in theirs]:
            return f"imgtool lists the snapshots {ours}, qemu-img {theirs}"
    return None


def _wrapped(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Sizes past 2⁶³ come out of qemu-img negative."""
    return tuple(value % 2**64 if isinstance(value, int) else value for value in row)


def _sparse_extents(header: Header) -> bool:
    """A sparse extent's own header decides its size, which a reader of one file cannot know."""
    return any(extent.type not in ("FLAT", "VMFS") for extent in getattr(header.details, "extents", ()))


def _ascii(text: str | bytes | None) -> str:
    """qemu-img replaces bytes that are no UTF-8 in its JSON: those are left out of the comparison."""
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    return "".join(char for char in text or "" if char < "\x80")


def cases(format: str, directory: Path, *, count: int, seed: int) -> Iterator[tuple[int, Path]]:
    """`count` mutated images, one after another in the same file."""
    seeds = make_seeds(format, directory)
    for number in range(count):
        dice = random.Random(f"{seed}/{format}/{number}")
        picked = dice.choice(seeds)
        path = directory / f"case{Path(picked.name).suffix}"
        path.write_bytes(mutate(picked, dice))
        yield number, path


def fuzz(format: str, directory: Path, *, count: int, seed: int, keep: Path | None = None) -> list[str]:
    """Every disagreement found, each as one line; the files behind them are copied to `keep`."""
    found = []
    for number, path in cases(format, directory, count=count, seed=seed):
        try:
            difference = disagreement(path)
        except Exception as error:  # the very thing looked for
            difference = f"{type(error).__name__}: {error}"
        if difference is not None:
            found.append(f"{format} {seed}/{number}: {difference}")
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{format}-{seed}-{number}").write_bytes(path.read_bytes())
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Differential fuzzing of the header readers against qemu-img info.")
    parser.add_argument("--format", action="append", choices=FORMATS, help="may be repeated; all by default")
    parser.add_argument("--count", type=int, help="images of each format (20000 of qcow2, 2000 of each other)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="directory for the files that show a difference")
    options = parser.parse_args()
    failed = False
    for format in options.format or FORMATS:
        count = options.count or (20000 if format == "qcow2" else 2000)
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as directory:
            found = fuzz(format, Path(directory), count=count, seed=options.seed, keep=options.keep)
        print(f"{format}: {count} images, {len(found)} differences, {time.monotonic() - began:.0f} s", flush=True)
        for line in found[:20]:
            print(f"  {line}")
        failed = failed or bool(found)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
