"""Talking to a running QEMU over QMP, synchronously and never without a time limit.

A QMP server takes one client at a time and lets a second wait in silence, so connecting has a limit that says so.
The protocol is left to qemu.qmp, QEMU's own library; it and asyncio are imported when the first monitor is opened.
"""

from __future__ import annotations

import os
import time
from collections.abc import Coroutine, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from imgtool.errors import MachineError
from imgtool.image.names import printable_lines

if TYPE_CHECKING:
    import asyncio
    import socket

    from qemu.qmp import QMPClient

T = TypeVar("T")

CONNECT_SECONDS = 10.0
COMMAND_SECONDS = 30.0
_CHUNK = 65536


class QmpUnreachable(MachineError):  # noqa: N818 - says what is so
    """No QMP server answers: the VM is gone, wedged, or another client holds its monitor."""

    code = "qmp-unreachable"


class QmpCommandError(MachineError):
    """QEMU refused a QMP command. `error_class` is QAPI's QapiErrorClass, `description` QEMU's sentence."""

    code = "qmp"

    def __init__(self, command: str, error_class: str, description: str) -> None:
        super().__init__(f"QEMU refused {command}: {printable_lines(description)}")
        self.command = command
        self.error_class = error_class
        self.description = description


class Monitor:
    """A QMP session, as a context manager. Keep it short: meanwhile no one else can talk to the VM."""

    def __init__(self, loop: asyncio.AbstractEventLoop, client: QMPClient, name: str) -> None:
        self._loop = loop
        self._client = client
        self._name = name

    @classmethod
    def connect(cls, address: str | socket.socket, *, seconds: float = CONNECT_SECONDS) -> Monitor:
        """Opens the session: `address` is the path of a unix socket, or a connected socket (which it then owns).
        QmpUnreachable when that takes over `seconds`."""
        import asyncio
        import logging

        from qemu.qmp import QMPClient, QMPError

        # The library logs every lost connection; ours to report, as an error.
        logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
        name = os.path.basename(os.path.dirname(address)) if isinstance(address, str) else "qemu"
        loop = asyncio.new_event_loop()

        async def open_client() -> QMPClient:
            client = QMPClient(name)
            try:
                async with asyncio.timeout(seconds):
                    await client.connect(address)
            except BaseException:
                await _disconnect(client)
                raise
            return client

        try:
            return cls(loop, _complete(loop, open_client()), name)
        except TimeoutError:
            _close_loop(loop)
            raise QmpUnreachable(
                f"the monitor of {name} did not answer within {seconds:g} s",
                hint="another program may be talking to it (QEMU serves one QMP client at a time), or QEMU is stuck",
            ) from None
        except (QMPError, OSError, EOFError) as error:
            _close_loop(loop)
            raise QmpUnreachable(f"the monitor of {name} cannot be reached: {_reason(error)}") from None
        except BaseException:
            _close_loop(loop)
            raise

    @property
    def version(self) -> str:
        """QEMU's version as its greeting says it: `7.2.22`."""
        greeting = self._client.greeting
        assert greeting is not None
        number: Any = greeting.QMP.version["qemu"]
        return f"{number['major']}.{number['minor']}.{number['micro']}"

    def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, seconds: float = COMMAND_SECONDS
    ) -> Any:
        """What QEMU returns for `command`. QmpCommandError when it refuses, QmpUnreachable without an answer."""
        import asyncio

        from qemu.qmp import ExecInterruptedError, ExecuteError, QMPError

        async def ask() -> Any:
            async with asyncio.timeout(seconds):
                return await self._client.execute(command, dict(arguments) if arguments else None)

        try:
            return self._run(ask())
        except TimeoutError:
            raise QmpUnreachable(f"{self._name} did not answer {command} within {seconds:g} s") from None
        except ExecuteError as error:
            raise QmpCommandError(command, error.error_class, str(error)) from None
        except ExecInterruptedError:
            raise QmpUnreachable(f"{self._name} ended while it was asked to {command}") from None
        except (QMPError, OSError, EOFError) as error:
            raise QmpUnreachable(f"{self._name} was lost at {command}: {_reason(error)}") from None

    def wait_event(self, names: Sequence[str], *, seconds: float) -> dict[str, Any] | None:
        """The next event with one of these names (QAPI's, such as `SHUTDOWN`), or None after `seconds` or when QEMU
        hangs up. Events of other names are passed over."""
        import asyncio

        async def next_event() -> dict[str, Any] | None:
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    return dict(await self._client.events.get())
            except (TimeoutError, asyncio.CancelledError):
                return None

        deadline = time.monotonic() + seconds
        while True:
            event = self._run(next_event())
            if event is None or event["event"] in names:
                return event
            if not self.alive:
                return None

    @property
    def alive(self) -> bool:
        """False once QEMU has hung up."""
        import asyncio

        from qemu.qmp import Runstate

        self._run(asyncio.sleep(0))
        return self._client.runstate == Runstate.RUNNING

    def send_descriptor(self, fd: int) -> None:
        """Hands `fd` to QEMU with the next command (`getfd`, `add-fd`)."""
        self._client.send_fd_scm(fd)

    def close(self) -> None:
        if not self._loop.is_closed():
            try:
                self._run(_disconnect(self._client))
            finally:
                _close_loop(self._loop)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return _complete(self._loop, work)


def knock(path: str, *, seconds: float) -> None:
    """Returns when the QEMU whose monitor is at `path` answers a command, and so has opened all it was told to.
    QmpUnreachable when it does not within `seconds`.

    A session (`Monitor`) says as much, but asyncio, and what it imports, would take a processor from a guest that is
    just starting for as long as its kernel takes to say its first word.
    """
    import socket

    deadline = time.monotonic() + seconds
    name = os.path.basename(os.path.dirname(path))
    said = b""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(seconds)
            connection.connect(path)
            connection.sendall(b'{"execute": "qmp_capabilities"}\n')
            while b'"return"' not in said:
                connection.settimeout(max(0.001, deadline - time.monotonic()))
                piece = connection.recv(_CHUNK)
                said = (said + piece)[-_CHUNK:]
                if not piece or b'"error"' in said:
                    raise QmpUnreachable(f"the monitor of {name} {'refused' if piece else 'hung up'}")
    except TimeoutError:
        raise QmpUnreachable(f"the monitor of {name} did not answer within {seconds:g} s") from None
    except OSError as error:
        raise QmpUnreachable(f"the monitor of {name} cannot be reached: {_reason(error)}") from None


async def _disconnect(client: QMPClient) -> None:
    import asyncio

    from qemu.qmp import QMPError

    try:
        async with asyncio.timeout(2):
            await client.disconnect()
    except (QMPError, OSError, EOFError, TimeoutError):
        pass  # it reports again why the connection was lost, as `execute` has already done


def _complete(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """What `work` comes to in `loop`. Where a loop runs in this thread already (a notebook, an asynchronous program),
    that takes another thread."""
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return loop.run_until_complete(work)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as other:
        return other.submit(loop.run_until_complete, work).result()


def _close_loop(loop: asyncio.AbstractEventLoop) -> None:
    import asyncio

    async def end() -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await loop.shutdown_asyncgens()

    _complete(loop, end())
    loop.close()


def _reason(error: BaseException) -> str:
    inner = getattr(error, "exc", None) or error.__cause__ or error
    text = getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    return printable_lines(text)
