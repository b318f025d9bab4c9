"""A libvirt on another host, reached by ssh."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from urllib.parse import urlencode

import msgspec
import pytest

from tests.cli.conftest import Imgtool, imgtool
from tests.conftest import Images
from tests.publish.libvirtd import Libvirt
from tests.publish.sshd import SshServer

__all__ = ["imgtool"]

PROFILE = """
name = "it-far"
memory = "128M"
"""


@pytest.fixture
def far(libvirt: Libvirt, sshd: SshServer, tmp_path: Path) -> str:
    """The URI of the tests' libvirtd over ssh."""
    # OpenSSH's client looks for known hosts in the user's real home: it is told of none
    program = tmp_path / "ssh"
    options = " ".join(f"-o {option}" for option in sshd.options)
    program.write_text(f'#!/bin/sh\nexec ssh -F none {options} "$@"\n')
    program.chmod(0o755)
    user = subprocess.check_output(["id", "-un"], text=True).strip()
    words = urlencode({"keyfile": str(sshd.key), "command": str(program), "socket": str(libvirt.socket)})
    return f"qemu+ssh://{user}@127.0.0.1:{sshd.port}/session?{words}"


def test_a_machine_goes_with_its_chain_to_a_libvirt_elsewhere_and_starts_there(
    chain: Images, libvirt: Libvirt, far: str, imgtool: Imgtool, tmp_path: Path
) -> None:
    (tmp_path / "vm.toml").write_text(PROFILE)
    libvirt.virsh("pool-create-as", "default", "dir", "--target", libvirt.pool)
    words = ("export", "libvirt", chain / "web.qcow2", "--profile", tmp_path / "vm.toml", "--accel", "tcg")
    try:
        done = imgtool(*words, "--define", far, "--output", "json")
        assert done.status == 0, done.stderr
        sent = done.document["volumes"]
        assert [(os.path.basename(one["path"]), one["sent"]) for one in sent] == [
            ("base.qcow2", True),
            ("web.qcow2", True),
        ]
        for path in chain.directory.iterdir():
            path.unlink()  # nothing there needs what is here
        found = msgspec.json.decode(chain.qemu_img("info", "--backing-chain", "--output=json", sent[-1]["volume"]))
        assert [one["full-backing-filename"] for one in found[:-1]] == [sent[0]["volume"]]
        libvirt.virsh("start", "it-far")
        assert libvirt.virsh("domstate", "it-far").strip() == "running"
        back = imgtool("import", "libvirt", "it-far", "--connect", far)
        assert (back.status, f'file = "{sent[-1]["volume"]}"' in back.stdout) == (0, True)
    finally:
        libvirt.remove("it-far")
        libvirt.virsh("pool-destroy", "default")
        for path in libvirt.pool.iterdir():
            path.unlink()
