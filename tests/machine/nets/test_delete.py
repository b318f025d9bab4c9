from __future__ import annotations

from pathlib import Path

import pytest

from imgtool.machine.config import Machine
from imgtool.machine.nets.delete import holder
from imgtool.machine.nets.names import tap_name
from imgtool.machine.runtime import claim, release
from imgtool.machine.values.network import Nat, User


def test_who_holds_a_network_is_a_vm_by_its_name_or_an_interface(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    vm = claim(Machine(networks=(User(), Nat(net="lab"))), name="web", detached=True)
    try:
        assert holder(tap_name("web", 1)) == "the VM web"
        assert holder(tap_name("other", 1)) == tap_name("other", 1)
    finally:
        release(vm)
    assert holder("veth\n0") == "veth\\n0"
