"""The VM of a build, as others that run meanwhile see it: real QEMUs, whose guests are a boot sector at most."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgtool.build.guest import Guest, Start, starter
from imgtool.build.recipe import Guest as GuestMachine
from imgtool.errors import ImageInUseError
from imgtool.machine.values.processor import Memory
from imgtool.qemu.programs import Programs
from tests.conftest import Images
from tests.guests import Machines


def test_another_build_stands_on_a_closed_layer_while_the_first_goes_on(
    images: Images, machines: Machines, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("XDG_RUNTIME_DIR", "XDG_DATA_HOME", "TMPDIR"):
        monkeypatch.setenv(name, machines.env[name])
    base = images.base("base.qcow2")
    one, two = images.overlay("one.qcow2", str(base)), images.overlay("two.qcow2", str(base))
    machine = GuestMachine(accel="tcg", memory=Memory(size=32 << 20), networks=())

    def start(image: Path) -> Guest:
        wanted = Start(
            name="layers", image=str(image), format="qcow2", machine=machine, executors=(), folder=str(tmp_path)
        )
        guest = starter(Programs(), str(tmp_path / "access"))(wanted)
        running.append(guest)
        return guest

    running: list[Guest] = []
    try:
        first = start(one)
        other = images.overlay("other.qcow2", str(one), size="1M")
        with pytest.raises(ImageInUseError, match="is being written by the VM layers"):
            start(other)
        first.snapshot(str(two))
        start(other)
        with pytest.raises(ImageInUseError, match="is being written by the VM layers"):
            start(two)
    finally:
        for guest in running:
            guest.kill()
