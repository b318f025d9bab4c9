"""What one build of one recipe has at hand while it goes on: the VM, the overlay it writes, a folder to work in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from imgtool.build.memory import Memory
from imgtool.build.store import Store, Work
from imgtool.build.watcher import Watcher
from imgtool.errors import ImgtoolError
from imgtool.qemu.qemu_img import QemuImg

if TYPE_CHECKING:
    from imgtool.build.guest import Guest, Starter
    from imgtool.build.plan import Inputs
    from imgtool.build.recipe import Loaded, Recipe
    from imgtool.build.sharing import Cache

OnError = Literal["clean", "keep", "shell"]


class Failure(NamedTuple):
    """A step that failed, with its guest still running."""

    error: ImgtoolError
    guest: Guest
    layer: str


Decide = Callable[[Failure], Literal["retry", "give-up"]]
"""Asked with `--on-error shell`: lets somebody look into the guest, and says whether the layer is tried again."""


class Tools(NamedTuple):
    """What a builder works with."""

    store: Store
    qemu_img: QemuImg
    start: Starter
    memory: Memory
    watcher: Watcher
    secrets: Mapping[str, str]
    on_error: OnError
    decide: Decide
    force: bool
    cache_from: Cache | None
    cache_to: Cache | None


class Session:
    """One VM at most, and what must be gone when the build ends."""

    def __init__(self, tools: Tools, loaded: Loaded, inputs: Inputs, *, last: int) -> None:
        self.tools = tools
        self.loaded = loaded
        self.inputs = inputs
        self.last = last
        """The number of the last layer that is built."""
        self.guest: Guest | None = None
        self.work: Work | None = None
        """Where the guest writes."""
        self.boots = 0
        self.by_hand = False
        """Somebody worked in the guest."""
        self._scratch: Work | None = None
        self._qemu: str | None = None

    @property
    def recipe(self) -> Recipe:
        return self.loaded.recipe

    def scratch(self) -> str:
        """A folder for what belongs to no layer."""
        if self._scratch is None:
            self._scratch = self.tools.store.work()
        return self._scratch.path

    def qemu_version(self) -> str:
        if self._qemu is None:
            self._qemu = self.tools.qemu_img.programs.version("qemu-system-x86_64").text
        return self._qemu

    def end_guest(self) -> None:
        """Ends the VM and drops what it wrote since the last layer."""
        guest, self.guest = self.guest, None
        work, self.work = self.work, None
        try:
            if guest is not None:
                guest.kill()
        finally:
            if work is not None:
                self.tools.store.drop(work)

    def close(self) -> None:
        try:
            self.end_guest()
        finally:
            scratch, self._scratch = self._scratch, None
            if scratch is not None:
                self.tools.store.drop(scratch)
