"""Block nodes: for every image of a chain a protocol node and a format node, all named, nothing probed.

QEMU docs: interop/live-block-operations, qemu-block-drivers(7). QAPI: BlockdevOptions. The whole backing chain is
spelled out, so that no header decides what QEMU opens, and a read-only node stands where nothing may be written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from imgtool.errors import ConfigError
from imgtool.machine.compile.encode import compact, encode
from imgtool.machine.host import Disk, Host, Link, Scratch
from imgtool.machine.values.storage import Cache, Drive, Throttle

_CACHE: dict[Cache, tuple[bool, bool, bool]] = {
    "writeback": (False, False, True),
    "none": (True, False, True),
    "writethrough": (False, False, False),
    "directsync": (True, False, False),
    "unsafe": (False, True, True),
}
"""cache.direct, cache.no-flush, and the device's write-cache. qemu(1), -blockdev and -drive cache=."""

_WITH_BACKING = frozenset({"qcow2", "qcow", "qed", "vmdk"})
"""Formats whose node takes `backing`; QAPI: BlockdevOptionsGenericCOWFormat."""


class Nodes(Struct, frozen=True):
    """The `-object` and `-blockdev` arguments of a drive, and the node that its device takes."""

    arguments: list[str]
    top: str
    scratch: Scratch | None = None


def write_cache(cache: Cache | None) -> str | None:
    """The `write-cache` property of the device."""
    return None if cache is None else ("on" if _CACHE[cache][2] else "off")


def disk_of(drive: Drive, host: Host) -> Disk:
    """What the host knows of the drive's image; else the drive's own format. ConfigError when neither says."""
    assert drive.file is not None
    known = host.disks.get(drive.file)
    if known is None:
        if drive.format is None:
            raise ConfigError(f"the format of {drive.file} is not known", hint="say format=", path=drive.file)
        return Disk(chain=(Link(path=drive.file, format=drive.format),), follow=True)
    if drive.format is not None and drive.format != known.chain[0].format:
        first = Link(path=known.chain[0].path, format=drive.format, protocol=known.chain[0].protocol)
        return Disk(chain=(first,), size=known.size, follow=True)
    return known


def nodes(drive: Drive, name: str, host: Host, *, readonly: bool, ephemeral: bool) -> Nodes:
    """The graph for one drive, its top node called `name`."""
    disk = disk_of(drive, host)
    arguments: list[str] = []
    below: str | None = None
    last = len(disk.chain) - 1
    for depth in range(last, -1, -1):
        link = disk.chain[depth]
        is_top = depth == 0 and not ephemeral
        node = name if is_top else f"{name}-{depth}"
        backing = None if depth == last and disk.follow else {"backing": below}
        arguments += _image(link, node, drive, readonly=readonly or not is_top, backing=backing, top=is_top)
        below = node
    scratch = None
    if ephemeral:
        first = disk.chain[0]
        place = f"{host.scratch_dir or host.runtime_dir}/{name}.qcow2"
        scratch = Scratch(path=place, backing=first.path, backing_format=first.format, size=disk.size)
        link = Link(path=place, format="qcow2")
        arguments += _image(link, name, drive, readonly=False, backing={"backing": below}, top=True, thrown_away=True)
    filters = list(_filters(drive, name, host))
    for node, filtering in filters:
        arguments += filtering
        name = node
    return Nodes(arguments, name, scratch)


def _image(
    link: Link,
    node: str,
    drive: Drive,
    *,
    readonly: bool,
    backing: dict[str, Any] | None,
    top: bool,
    thrown_away: bool = False,
) -> Iterator[str]:
    """Protocol node, then format node, of one image."""
    common: dict[str, Any] = {"read-only": readonly}
    cache = drive.cache or ("unsafe" if thrown_away else None)
    if cache is not None:
        direct, no_flush, _ = _CACHE[cache]
        common["cache"] = {"direct": direct, "no-flush": no_flush}
    discard = drive.discard if top and not readonly else None
    protocol = {
        "driver": link.protocol,
        "node-name": f"{node}-file",
        "filename": link.path,
        **common,
        "aio": drive.aio,
        "discard": discard,
    }
    yield from ("-blockdev", encode(compact(protocol), json=True, head="driver"))
    above: dict[str, Any] = {"driver": link.format, "node-name": node, "file": f"{node}-file", **common}
    if discard is not None:
        above["discard"] = discard
    if top and drive.detect_zeroes is not None:
        above["detect-zeroes"] = drive.detect_zeroes
    if link.data_file is not None:
        data = {**protocol, "node-name": f"{node}-data", "filename": link.data_file, "driver": "file"}
        yield from ("-blockdev", encode(compact(data), json=True, head="driver"))
        above["data-file"] = f"{node}-data"
    if backing is not None and link.format in _WITH_BACKING:
        above.update(backing)
    yield from ("-blockdev", encode(above, json=True, head="driver"))


def _filters(drive: Drive, name: str, host: Host) -> Iterator[tuple[str, list[str]]]:
    """The nodes above the format: copy-on-read, and above it throttling, in the order of QEMU's -drive."""
    if drive.copy_on_read:
        node = f"{name}-cor"
        value = {"driver": "copy-on-read", "node-name": node, "file": name}
        yield node, ["-blockdev", encode(value, json=True, head="driver")]
        name = node
    if drive.throttling is not None:
        node = f"{name}-throttle"
        group = throttle_group(drive.throttling, name)
        value = {"driver": "throttle", "node-name": node, "throttle-group": group, "file": name}
        yield node, ["-blockdev", encode(value, json=True, head="driver")]


def throttle_group(throttle: Throttle, name: str) -> str:
    return f"throttle-{throttle.group}" if throttle.group else f"throttle-{name.removesuffix('-cor')}"


LIMITS = {"bps": "bps-total", "bps_rd": "bps-read", "bps_wr": "bps-write"}
LIMITS |= {key.replace("bps", "iops"): value.replace("bps", "iops") for key, value in LIMITS.items()}
LIMITS |= {f"{key}_max": f"{value}-max" for key, value in LIMITS.items()}
LIMITS |= {f"{key}_length": f"{value}-length" for key, value in LIMITS.items() if key.endswith("_max")}
LIMITS["iops_size"] = "iops-size"
"""From -drive's names to QAPI's ThrottleLimits."""


def throttle_object(throttle: Throttle, group: str, host: Host) -> str:
    """The `-object` of a throttle group."""
    limits = {name: getattr(throttle, key) for key, name in LIMITS.items() if getattr(throttle, key) is not None}
    value: dict[str, Any] = {"qom-type": "throttle-group", "id": group}
    if host.capabilities.device_json:
        return encode({**value, "limits": limits}, json=True, head="qom-type")
    # In key=value the limits have names of their own (x-bps-total): QEMU's block/throttle-groups.c.
    return encode({**value, **{f"x-{key}": item for key, item in limits.items()}}, json=False, head="qom-type")
