"""The medium in a CD-ROM or floppy drive of a running VM: another one, or none."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec

from imgtool.errors import ConfigError, MachineError, UsageError
from imgtool.image.names import printable
from imgtool.machine.control import device_id
from imgtool.machine.disks import Use, learn_disks
from imgtool.machine.host import Disk, Link
from imgtool.machine.runtime import check_images, vms
from imgtool.machine.vm import HeldImage, State, Vm, hold
from imgtool.qemu.qmp import Monitor, QmpCommandError


class MediumChanged(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What `vm change` or `vm eject` did."""

    name: str
    """The VM's."""
    drive: str
    """The drive, as `vm show` calls it."""
    file: str | None
    """What is in it now; null when it is empty."""


def change(
    vm: Vm, state: State, file: str, *, drive: str | None = None, format: str | None = None, force: bool = False
) -> MediumChanged:
    """Puts the image `file`, an absolute path, into the removable `drive`, which may be left out where there is one.

    UsageError when there is no such drive; what `learn_disks` and `check_images` raise when the image cannot be had;
    MachineError when the guest has locked the drive, unless with `force`, or QEMU does not take the image.
    """
    with Monitor.connect(vm.qmp_socket) as monitor:
        found = _removable(vm, monitor, drive)
        name, writes = device_id(found["qdev"]), not _is_cd(found)
        learned = learn_disks([Use(file, format, writes)], force=force)
        for error in learned.in_use:
            raise error
        others = [(other.name, held.images) for other, held in vms(vm.root) if other.name != vm.name]
        check_images(learned.held, others)
        link = _alone(learned.disks[file], file)
        _take_out(vm, monitor, found, force=force)
        try:
            monitor.execute(
                "blockdev-change-medium",
                {
                    "id": found["qdev"],
                    "filename": link.path,
                    "format": link.format,
                    "read-only-mode": "read-write" if writes else "read-only",
                },
            )
        except QmpCommandError as error:
            _note(vm, state, found, ())
            raise MachineError(f"{vm.name} does not take it: {error.description}", path=file) from None
        _note(vm, state, found, learned.held)
    return MediumChanged(name=vm.name, drive=name, file=file)


def eject(vm: Vm, state: State, *, drive: str | None = None, force: bool = False) -> MediumChanged:
    """Empties the removable `drive`, which may be left out where there is one. UsageError when there is no such
    drive, MachineError when the guest has locked it, unless with `force`."""
    with Monitor.connect(vm.qmp_socket) as monitor:
        found = _removable(vm, monitor, drive)
        _take_out(vm, monitor, found, force=force)
        _note(vm, state, found, ())
    return MediumChanged(name=vm.name, drive=device_id(found["qdev"]), file=None)


def _alone(disk: Disk, file: str) -> Link:
    """The image `file` as QEMU is to open it. ConfigError when it refers to others: QEMU would look for these itself,
    and for some in the directory that it runs in."""
    (link, *below) = disk.chain
    if below or disk.follow or link.data_file is not None:
        what = "stands on another image" if below or disk.follow else "keeps its data in another file"
        raise ConfigError(
            f"{printable(file)} {what}, which no drive takes while the VM runs",
            hint="`imgtool convert` makes one image of both",
            path=file,
        )
    return link


def _removable(vm: Vm, monitor: Monitor, drive: str | None) -> dict[str, Any]:
    """QAPI's BlockInfo of the drive."""
    items = [item for item in monitor.execute("query-block") if item.get("removable") and item.get("qdev")]
    drives: dict[str, dict[str, Any]] = {device_id(item["qdev"]): item for item in items}
    if not drives:
        raise UsageError(f"{vm.name} has no CD-ROM and no floppy drive", hint="boot it with --cdrom FILE, or --fda")
    if drive is None and len(drives) > 1:
        raise UsageError(f"{vm.name} has several drives", hint="--drive " + " or ".join(drives))
    found = drives.get(next(iter(drives)) if drive is None else drive)
    if found is None:
        raise UsageError(f"{vm.name} has no drive {printable(str(drive))}", hint="it has " + ", ".join(drives))
    return found


def _is_cd(item: dict[str, Any]) -> bool:
    """QAPI tells of a tray where there is one; a floppy drive has none."""
    return "tray_open" in item


def _take_out(vm: Vm, monitor: Monitor, item: dict[str, Any], *, force: bool) -> None:
    try:
        monitor.execute("eject", {"id": item["qdev"], "force": force})
    except QmpCommandError as error:
        raise MachineError(
            f"{vm.name} keeps what is in {device_id(item['qdev'])}: {error.description}",
            hint="eject it in the guest, which was asked to; --force takes it away all the same",
        ) from None


def _note(vm: Vm, state: State, item: dict[str, Any], held: tuple[HeldImage, ...]) -> None:
    """Writes down which images the VM has open now."""
    gone: set[tuple[int, int]] = set()
    file = item.get("inserted", {}).get("image", {}).get("filename")
    if file is not None:
        with contextlib.suppress(OSError):
            old = hold(file, writable=False)
            gone.add((old.device, old.inode))
    vm.update(images=(*(one for one in state.images if (one.device, one.inode) not in gone), *held))
