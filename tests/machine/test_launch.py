"""What is done between QEMU's start and the moment it answers."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from imgtool.machine.host import Command, Secret
from imgtool.machine.launch import give_secrets
from imgtool.qemu.qmp import QmpUnreachable


def test_a_monitor_that_takes_no_secret_is_given_as_long_as_is_left(tmp_path: Path) -> None:
    secret = Secret(id="vnc-password", path=str(tmp_path / "vnc.secret"), protocol="vnc", by_qmp=True)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "qmp.sock"))
        silent.listen()
        with pytest.raises(QmpUnreachable, match=r"did not answer within 0\.1 s"):
            give_secrets(Command(argv=("qemu",), secrets=(secret,)), str(tmp_path / "qmp.sock"), seconds=0.1)
