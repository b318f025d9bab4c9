"""A machine to a libvirt: its XML written, or defined there, its images copied there before."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from imgtool.errors import ConfigError, ImgtoolError, RefusedError
from imgtool.image.names import printable
from imgtool.image.whole import write_whole
from imgtool.machine.config import Machine
from imgtool.machine.host import Disk, Host, Link
from imgtool.machine.layout import Placed
from imgtool.machine.runtime import name_from
from imgtool.machine.seed import iso, seed
from imgtool.machine.values.storage import Drive
from imgtool.operations.plan import Plan, Touched
from imgtool.publish.libvirt.prepare import Prepared, first_file, prepare
from imgtool.publish.libvirt.virsh import Connection, Volume, define_argv, is_remote, need_virsh
from imgtool.publish.libvirt.words import LeftOut
from imgtool.qemu.process import Runner, run
from imgtool.qemu.programs import Programs

Progress = Callable[[float], None]
DEFAULT_POOL = "default"


class Defined(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The result of an export."""

    name: str
    """The domain's."""
    xml: str
    """The domain, as libvirt reads it."""
    left_out: tuple[LeftOut, ...]
    """Settings that libvirt does not have."""
    volumes: tuple[Volume, ...] = ()
    """The images in the storage pool; empty where they are used in place."""
    defined: str | None = None
    """The connection that has it now."""
    file: str | None = None
    """The file that the XML was written to; None is none."""


class DefineRequest:
    """A machine that may be exported: it was looked at, nothing was done."""

    def __init__(
        self,
        machine: Machine,
        programs: Programs,
        *,
        name: str | None = None,
        uri: str | None = None,
        pool: str | None = None,
        target: str | None = None,
        partial: bool = False,
        force: bool = False,
        runner: Runner = run,
    ) -> None:
        """With `uri` it is defined there; with a `pool`, or where `uri` is another host, its images are copied into
        that pool first. With `target` the XML is written there. Raises as `prepare` and `Prepared.domain`."""
        self.uri = uri
        self.pool = pool or (DEFAULT_POOL if uri is not None and is_remote(uri) else None)
        self.target = target
        self.partial = partial
        self.runner = runner
        if uri is not None:
            need_virsh()
        self.prepared = prepare(machine, programs, name=name, here=uri is None or not is_remote(uri), force=force)
        self.domain = self.prepared.domain(partial=partial)
        if self.pool is not None:
            _refuse_left_here(self.prepared)

    def plan(self) -> Plan:
        images = [
            Touched(path=link.path, action="read")
            for disk in self.prepared.host.disks.values()
            for link in disk.chain
        ]
        if self.target is not None:
            images.append(Touched(path=self.target, action="create"))
        commands = [] if self.uri is None else [tuple(define_argv(self.uri, f"{self.domain.name}.xml"))]
        notes = [] if self.pool is None else [f"the images are copied into the storage pool {self.pool}"]
        notes += [f"{one.setting} is left out: {one.reason}" for one in self.domain.left_out]
        return Plan(commands=tuple(commands), images=tuple(images), notes=tuple(notes))

    def make(self, *, progress: Progress | None = None) -> Defined:
        found = self.domain
        volumes: list[Volume] = []
        if self.uri is not None:
            connection = Connection(self.uri, self.runner)
            if self.pool is not None:
                elsewhere, volumes = self._upload(connection, self.pool, progress)
                found = elsewhere.domain(partial=self.partial)
            connection.define(found.xml)
        if self.target is not None:
            write_file(self.target, found.xml.encode())
        return Defined(
            name=found.name,
            xml=found.xml,
            left_out=found.left_out,
            volumes=tuple(volumes),
            defined=self.uri,
            file=self.target,
        )

    def _upload(self, connection: Connection, pool: str, progress: Progress | None) -> tuple[Prepared, list[Volume]]:
        """The images there, and the machine with their paths there."""
        wanted, host = self.prepared.settled, self.prepared.host
        volumes: list[Volume] = []
        moved: dict[str, str] = {}
        disks: dict[str, Disk] = {}
        for path, disk in host.disks.items():
            sent = connection.upload(path, pool=pool, format=disk.chain[0].format, progress=progress)
            volumes += [one for one in sent if one not in volumes]
            moved[path] = sent[-1].volume
            links = [
                Link(path=one.volume, format=link.format)
                for one, link in zip(reversed(sent), disk.chain, strict=True)
            ]
            disks[sent[-1].volume] = Disk(chain=tuple(links), size=disk.size)
        placed = tuple(_moved(item, moved) for item in wanted.placed)
        machine = replace(wanted.machine, drives=tuple(item.drive for item in placed))
        there: Host = replace(host, disks=disks)
        settled = wanted._replace(machine=machine, placed=placed)
        return self.prepared._replace(settled=settled, host=there), volumes


def _moved(item: Placed, moved: dict[str, str]) -> Placed:
    if item.drive.file is None:
        return item
    return replace(item, drive=replace(item.drive, file=moved[item.drive.file]))


def _refuse_left_here(prepared: Prepared) -> None:
    """RefusedError when the machine names other files of this host than images."""
    machine = prepared.settled.machine
    files = {"kernel": machine.kernel, "initrd": machine.initrd, "dtb": machine.dtb, "bios": machine.firmware.bios}
    left = [f"{name} {printable(path)}" for name, path in files.items() if path is not None]
    left += [f"share {printable(share.path)}" for share in machine.shares]
    if left:
        raise RefusedError(
            f"only images are copied into a storage pool, and the machine has {', '.join(left)}",
            hint="copy it by hand and define the machine on that host",
        )


def with_seed(machine: Machine, path: str, *, name: str | None = None, write: bool = True) -> Machine:
    """`machine` with its cloud-init seed as a disk: the file `path`, written now, which a guest finds by its label.
    ConfigError when it wants no seed, or a file that the seed is made of cannot be read."""
    if machine.cloud_init is None:
        raise ConfigError("the machine has no cloud-init", hint="a profile has it as cloud-init = { … }")
    content = seed(machine.cloud_init, name or machine.name or name_from(first_file(machine)))
    machine = replace(machine, cloud_init=None)
    if not write:
        return machine
    write_file(path, iso(content))
    disk = Drive(file=path, format="raw", interface="virtio", readonly=True, id="cloud-init")
    return replace(machine, drives=(*machine.drives, disk))


def write_file(path: str, content: bytes) -> None:
    """Writes the file at `path`, whole or not at all. ImgtoolError when it cannot be written."""
    try:
        write_whole(path, content)
    except OSError as error:
        raise ImgtoolError(f"{printable(path)} cannot be written: {error.strerror}", path=path) from error
