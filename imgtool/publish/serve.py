"""An image as an NBD export, by qemu-nbd.

The chain is spelled out, so that qemu-nbd opens what was looked at. The server lives as long as whoever started it:
it gets SIGTERM when imgtool dies, however that happens, and takes its socket away then.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Sequence
from typing import Self
from urllib.parse import quote

import msgspec

from imgtool.chain.content import layers_of
from imgtool.chain.encryption import refuse_encrypted
from imgtool.chain.graph import Image
from imgtool.chain.walk import guard
from imgtool.errors import ImgtoolError, MachineError, RefusedError, UsageError
from imgtool.image.names import PathLike, absolute, option_value, printable
from imgtool.machine.disks import Use, learn_disks
from imgtool.machine.ports import Port, taken
from imgtool.machine.runtime import runtime_root
from imgtool.operations.plan import Plan, Touched
from imgtool.qemu.extents import Layer, open_as
from imgtool.qemu.img_argv import ImageOpts, Source
from imgtool.qemu.programs import Programs
from imgtool.qemu.system import Process, start

_GREETING = b"NBDMAGIC"
_PATIENCE = 20.0
"""Seconds until qemu-nbd answers."""
_LONGEST = 107
"""Bytes of a unix socket's name: sockaddr_un."""
CLIENTS = 16


class Export(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What is served."""

    path: str
    """The image."""
    uri: str
    """What a client connects to: `nbd://…`, `nbds://…` or `nbd+unix://…`."""
    name: str
    """The NBD export's."""
    writable: bool
    """Whether clients can write to it."""
    socket: str | None = None
    """The unix socket; None when it is served over TCP."""
    address: str | None = None
    """The address it listens on; None with `socket`."""
    port: int | None = None
    """The TCP port; None with `socket`."""
    bitmap: str | None = None
    """The dirty bitmap that clients can read; None is none."""
    tls: bool = False
    """Whether clients have to speak TLS."""
    pid: int | None = None
    """Of qemu-nbd."""


def serve_argv(
    program: str,
    source: Source,
    format: str | None,
    export: Export,
    *,
    tls: str | None,
    once: bool,
    clients: int,
    verify_peer: bool,
) -> list[str]:
    argv = [program]
    if export.socket is not None:
        argv += ["--socket", export.socket]
    else:
        argv += ["--bind", export.address or "127.0.0.1", "--port", str(export.port)]
    argv += ["--export-name", export.name, "--shared", str(clients)]
    if not once:
        argv.append("--persistent")
    if not export.writable:
        argv.append("--read-only")
    if export.bitmap is not None:
        argv += ["--bitmap", export.bitmap]
    if tls is not None:
        peer = "yes" if verify_peer else "no"
        argv += ["--object", f"tls-creds-x509,id=tls0,dir={option_value(tls)},endpoint=server,verify-peer={peer}"]
        argv += ["--tls-creds", "tls0"]
    if isinstance(source, ImageOpts):
        return [*argv, "--image-opts", source.text]
    return [*argv, "--format", format or "raw", os.fsdecode(source)]


class ServeRequest:
    """An image that may be served: it was looked at, nothing runs."""

    def __init__(
        self,
        image: PathLike,
        programs: Programs,
        *,
        format: str | None = None,
        writable: bool = False,
        socket: PathLike | None = None,
        address: str | None = None,
        port: int | None = None,
        name: str = "",
        bitmap: str | None = None,
        tls_creds: PathLike | None = None,
        verify_peer: bool = True,
        clients: int = CLIENTS,
        once: bool = False,
        force: bool = False,
    ) -> None:
        """On the unix socket `socket` (None: one in imgtool's own folder), or on TCP where a `port` is given, 0 being
        any free one; the address is 127.0.0.1 unless it is said.

        Raises as `guard`, and as `learn_disks` when the image is in use, others stand on it (and it is `writable`),
        or its parent is not what it was made on."""
        self.programs = programs
        self.path = absolute(image)
        self.chain = guard(self.path, format=format)
        refuse_encrypted(self.chain)
        refuse_in_use(self.path, format, writable=writable, force=force)
        _check_bitmap(self.chain[0], bitmap)
        if address is not None and port is None:
            raise UsageError("an address to listen on needs a port", hint="--port 10809, or 0 for any free one")
        if socket is not None and port is not None:
            raise UsageError("a unix socket or a port, not both")
        where = None if port is not None else absolute(socket) if socket is not None else _own_socket()
        if where is not None and len(os.fsencode(where)) > _LONGEST:
            raise UsageError(f"{printable(where)} is too long for a unix socket", hint=f"at most {_LONGEST} bytes")
        if where is not None and os.path.lexists(where):
            raise RefusedError(f"{printable(where)} already exists", hint="choose another name", path=where)
        self.tls = None if tls_creds is None else absolute(tls_creds)
        if self.tls is not None and not os.path.isdir(self.tls):
            raise UsageError(
                f"{printable(self.tls)} is no directory", hint="it holds ca-cert.pem, server-cert.pem, …"
            )
        if port is not None and (address or "127.0.0.1") not in ("127.0.0.1", "::1", "localhost") and not self.tls:
            _warn_open(force, address)
        host = address or "127.0.0.1"
        number = _free_port(host) if port == 0 else port
        self.export = Export(
            path=self.path,
            uri=uri_of(name, socket=where, address=host, port=number, tls=self.tls is not None),
            name=name,
            writable=writable,
            socket=where,
            address=None if where is not None else host,
            port=number,
            bitmap=bitmap,
            tls=self.tls is not None,
        )
        self._verify_peer, self._clients, self._once = verify_peer, clients, once

    def argv(self) -> list[str]:
        source, format = open_as(local_layers(self.chain))
        return serve_argv(
            self.programs.find("qemu-nbd"),
            source,
            format,
            self.export,
            tls=self.tls,
            once=self._once,
            clients=self._clients,
            verify_peer=self._verify_peer,
        )

    def plan(self) -> Plan:
        images = [
            Touched(path=image.path, action="write" if self.export.writable and not depth else "read")
            for depth, image in enumerate(self.chain)
        ]
        return Plan(commands=(tuple(self.argv()),), images=tuple(images), notes=(f"served as {self.export.uri}",))

    def start(self) -> Server:
        """Starts the server, which answers when this returns. MachineError when the port cannot be had, CommandError
        in qemu-nbd's words when it does not answer."""
        if self.export.port is not None:
            # Whoever listens there already may speak NBD as well, of another disk.
            port = Port("tcp", self.export.address or "127.0.0.1", self.export.port, "nbd")
            if (obstacle := taken(port, "qemu-nbd")) is not None:
                raise obstacle
        process = start(self.argv(), detached=False)
        try:
            _await(process, self.export)
        except BaseException:
            Server(process, self.export).end()
            raise
        return Server(process, msgspec.structs.replace(self.export, pid=process.pid))


class Server:
    """A running NBD export. As a context manager it is ended at the end of the block."""

    def __init__(self, process: Process, export: Export) -> None:
        """Made by `serve`."""
        self.process = process
        self.export = export

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def uri(self) -> str:
        """Where NBD clients find it: `nbd+unix:///…` or `nbd://…`."""
        return self.export.uri

    def wait(self) -> None:
        """Waits until it ends. CommandError when it failed."""
        if self.process.wait() not in (0, None, -15):
            raise self.process.failure(path=self.export.path)

    def end(self) -> None:
        """Closes the connections, and returns when it has ended."""
        self.process.end()
        self.process.close()
        if self.export.socket is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.export.socket)


def serve(
    image: PathLike,
    *,
    format: str | None = None,
    writable: bool = False,
    socket: PathLike | None = None,
    address: str | None = None,
    port: int | None = None,
    name: str = "",
    bitmap: str | None = None,
    tls_creds: PathLike | None = None,
    verify_peer: bool = True,
    clients: int = CLIENTS,
    once: bool = False,
    force: bool = False,
    programs: Programs | None = None,
) -> Server:
    """Serves the disk of `image`, with all it stands on, over NBD, and returns when the server answers. It ends with
    this process, however that ends.

    It listens on the unix socket `socket` (None: one in imgtool's own folder), or on TCP when a `port` is given (0:
    any free one), at `address` (127.0.0.1). `name` is the export's, `bitmap` a dirty bitmap that clients may read,
    `tls_creds` a folder with certificates, which clients must have too (unless `verify_peer` is False). Up to
    `clients` may be connected at once; with `once` the server ends when the last has gone.

    Raises as `guard`; RefusedError when others stand on the image (and it is `writable`), when its parent is not the
    one it was made on, or when anybody could connect, unless `force` is set; ImageInUseError; MachineError when the
    port cannot be had; CommandError in qemu-nbd's words.
    """
    return ServeRequest(
        image,
        programs or Programs(),
        format=format,
        writable=writable,
        socket=socket,
        address=address,
        port=port,
        name=name,
        bitmap=bitmap,
        tls_creds=tls_creds,
        verify_peer=verify_peer,
        clients=clients,
        once=once,
        force=force,
    ).start()


def refuse_in_use(path: str, format: str | None, *, writable: bool, force: bool) -> None:
    """Raises as `learn_disks` for a disk that is shown as it is, and not once what writes it has ended."""
    for error in learn_disks([Use(path, format, writable)], force=force).in_use:
        error.hint = "wait for it or end it"
        raise error


def local_layers(chain: Sequence[Image]) -> list[Layer]:
    """The images of `chain` that are files of this host: what the last one names beyond them was allowed by the
    policy, and QEMU opens it by itself."""
    return layers_of([image for image in chain if image.format is not None])


def uri_of(
    name: str, *, socket: str | None = None, address: str = "127.0.0.1", port: int | None = None, tls: bool = False
) -> str:
    """As the NBD project's doc/uri.md has it."""
    scheme = "nbds" if tls else "nbd"
    export = quote(name, safe="")
    if socket is not None:
        return f"{scheme}+unix:///{export}?socket={quote(os.fsencode(socket), safe='/')}"
    host = f"[{address}]" if ":" in address else address
    return f"{scheme}://{host}:{port}/{export}"


def _check_bitmap(image: Image, bitmap: str | None) -> None:
    if bitmap is not None and image.format != "qcow2":
        raise RefusedError(f"a {image.format} image has no bitmaps", hint="only qcow2 has them", path=image.path)


def _warn_open(force: bool, address: str | None) -> None:
    if not force:
        raise RefusedError(
            f"whoever reaches {printable(address or '')} could read the image",
            hint="--tls-creds DIR lets in who has a certificate; --force serves it to everybody",
        )


def _own_socket() -> str:
    folder = os.path.join(os.path.dirname(runtime_root()), "nbd")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise MachineError(f"{folder} cannot be made: {error.strerror}", hint="--socket PATH") from error
    return os.path.join(folder, f"{os.getpid()}-{secrets.token_hex(4)}.sock")


def _free_port(address: str) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _await(process: Process, export: Export) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not (_answers(export) and process.poll() is None):
        if process.poll() is not None:
            raise process.failure(path=export.path)
        if time.monotonic() > deadline:
            raise ImgtoolError("qemu-nbd does not answer", path=export.path)
        time.sleep(0.01)


def _answers(export: Export) -> bool:
    try:
        if export.socket is not None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.settimeout(1)
                client.connect(export.socket)
                return client.recv(8, socket.MSG_WAITALL) == _GREETING
        with socket.create_connection((export.address or "", export.port or 0), timeout=1) as client:
            return client.recv(8, socket.MSG_WAITALL) == _GREETING
    except OSError:
        return False
