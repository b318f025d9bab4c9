"""Builds without a guest: what stands for the VM writes into the overlay what a step "does", with qemu-io."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from imgtool.build.engine import Builder
from imgtool.build.executor import SHELL, Access, GuestLost, Kind, Output
from imgtool.build.guest import Guest, Start
from imgtool.build.guestwatch import Trouble
from imgtool.build.memory import Memory
from imgtool.build.recipe import Loaded, load_recipe
from imgtool.build.store import Store
from imgtool.build.watcher import Watcher
from imgtool.qemu.programs import Programs
from imgtool.qemu.qemu_img import QemuImg

BLOCKS = 2048
"""Of 512 bytes, in the 1 MiB disk of these builds."""


class Behaviour:
    """How the next guests behave, and what was asked of them."""

    def __init__(self) -> None:
        self.starts: list[Start] = []
        self.commands: list[str] = []
        self.env: list[dict[str, str]] = []
        self.secrets: list[dict[str, str]] = []
        self.calls: list[str] = []
        self.fails: Callable[[str], int | None] = lambda _: None
        """The exit status of a command, None for success."""
        self.says: Callable[[str], bytes] = lambda _: b""
        self.before: Callable[[str], None] = lambda _: None
        """Called with each command before it is done."""
        self.salt: Callable[[str], str] = lambda _: ""
        """What makes a command's effect another one each time."""
        self.trouble: Trouble | None = None
        """Why the guest was ended in the midst of a step."""
        self.files: dict[str, bytes] = {}
        """What can be fetched from the guest."""

    @property
    def boots(self) -> int:
        return len(self.starts)


class FakeExecutor:
    def __init__(self, kind: Kind, guest: FakeGuest) -> None:
        self.kind = kind
        self._guest = guest
        self._behaviour = guest.behaviour

    def wait_ready(self, *, seconds: float) -> None:
        pass

    def run(
        self,
        script: bytes,
        *,
        interpreter: Sequence[str] = SHELL,
        env: Mapping[str, str] = {},
        secrets: Mapping[str, str] = {},
        timeout: float | None = None,
        on_output: Output = lambda _: None,
    ) -> int:
        command = script.decode().strip()
        self._behaviour.before(command)
        self._behaviour.commands.append(command)
        self._behaviour.env.append(dict(env))
        self._behaviour.secrets.append(dict(secrets))
        if "IMGTOOL_FROM" in env:
            on_output(b"file\0")
            return 0
        on_output(self._behaviour.says(command))
        status = self._behaviour.fails(command)
        if status is not None:
            return status
        self._guest.write(f"{command}{interpreter}{sorted(env.items())}{self._behaviour.salt(command)}".encode())
        return 0

    def put(self, source: str, target: str, *, mode: int = 0o644, owner: str | None = None) -> None:
        self._behaviour.calls.append(f"put {target} {mode:04o} {owner}")
        self._guest.write(f"{target if '/copy-' not in target else ''} {mode} {owner}".encode())

    def get(self, source: str, target: str) -> None:
        self._behaviour.calls.append(f"get {source}")
        Path(target).write_bytes(self._behaviour.files[source])

    def sync(self) -> None:
        self._behaviour.calls.append("sync")

    def freeze(self) -> bool:
        self._behaviour.calls.append("freeze")
        return True

    def thaw(self) -> None:
        self._behaviour.calls.append("thaw")

    def reboot(self, *, seconds: float) -> None:
        self._behaviour.calls.append("reboot")

    def power_off(self) -> None:
        self._behaviour.calls.append("power off")

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FakeGuest:
    """Writes 512 bytes for everything that is done in it, at a place and of a value that follow from what is done."""

    def __init__(self, start: Start, behaviour: Behaviour) -> None:
        self.name = start.name
        self.behaviour = behaviour
        self._image = start.image
        self._throwaway = start.throwaway
        self._alive = True

    def executor(self, kind: Access) -> FakeExecutor:
        if not self._alive:
            raise GuestLost("the guest is gone")
        return FakeExecutor("agent" if kind == "auto" else kind, self)

    def let_go(self) -> None:
        self.behaviour.calls.append("let go")

    def reboot(self, kind: Access, seconds: float) -> None:
        self.executor(kind).reboot(seconds=seconds)

    def snapshot(self, overlay: str) -> None:
        self.behaviour.calls.append("snapshot")
        self._image = overlay

    def power_off(self) -> None:
        self.behaviour.calls.append("power off")
        self._alive = False

    def kill(self) -> None:
        self._alive = False

    def trouble(self) -> Trouble | None:
        return self.behaviour.trouble

    def write(self, what: bytes) -> None:
        if self._throwaway:
            return
        digest = hashlib.sha256(what).digest()
        block = int.from_bytes(digest[:4], "big") % BLOCKS
        command = f"write -q -P {digest[4]} {block * 512} 512"
        subprocess.run(
            [Programs().find("qemu-io"), "-f", "qcow2", "-c", command, self._image],
            check=True,
            stdout=subprocess.DEVNULL,
        )


class Bench:
    """A folder with a base, a recipe and a layer store, and a builder for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.behaviour = Behaviour()
        self.store = Store(str(folder / "layers"))
        self.memory = Memory(str(folder / "cache"))
        self.qemu_img = QemuImg()
        self.watcher = Watcher()
        self.qemu_img.create(folder / "base.qcow2", 1 << 20, format="qcow2")

    def start(self, wanted: Start) -> Guest:
        self.behaviour.starts.append(wanted)
        return FakeGuest(wanted, self.behaviour)

    def builder(self, **options: object) -> Builder:
        given: dict[str, object] = {"memory": self.memory, "watcher": self.watcher, **options}
        return Builder(self.store, self.qemu_img, self.start, **given)  # type: ignore[arg-type]

    def recipe(self, text: str, name: str = "web.toml") -> Loaded:
        (self.folder / name).write_text(text)
        return load_recipe(str(self.folder / name))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.delenv("IMGTOOL_LAYERS", raising=False)
    folder = tmp_path / "bench"
    folder.mkdir()
    os.chmod(folder, 0o755)
    return Bench(folder)
