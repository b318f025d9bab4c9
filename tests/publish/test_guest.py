"""Guests that start from what went to other places: a registry with TLS and a password and out again as a
containerDisk, and bases that stay on servers."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import pytest

from imgtool.publish.containerdisk import export_containerdisk
from imgtool.publish.oci.pull import pull
from imgtool.publish.oci.push import push
from tests.conftest import Images
from tests.guests import BOOT_SECONDS, PROMPT, Machines, Shell
from tests.publish.conftest import Forget
from tests.publish.distant import json_name, on_https, on_ssh
from tests.publish.registries import Certificates, RegistryServer
from tests.publish.sshd import SshServer
from tests.publish.test_serve import served


@pytest.mark.guest
def test_what_was_pushed_pulled_and_exported_boots(
    machines: Machines, images: Images, trusted: RegistryServer, elsewhere: Path, forget: Forget
) -> None:
    shutil.copy(machines.alpine.disk, images / "alpine.qcow2")
    overlay = images.overlay("web.qcow2", "alpine.qcow2")
    images.run_io(overlay, "write -P 7 1000M 64k")
    reference = f"{trusted.host}/guests/web:1"
    push(overlay, reference)
    forget()
    pulled = pull(reference, elsewhere / "web.qcow2")
    assert [layer.state for layer in pulled.layers] == ["fetched", "fetched"]
    layout = elsewhere / "layout"
    export_containerdisk(pulled.path, layout=layout)
    layer = max((layout / "blobs" / "sha256").iterdir(), key=lambda blob: blob.stat().st_size)
    with tarfile.open(layer) as tar:
        disk = tar.extractfile("disk/disk.qcow2")
        assert disk is not None
        with open(elsewhere / "disk.qcow2", "wb") as file:
            shutil.copyfileobj(disk, file)
    words: list[str | Path] = [
        "boot",
        "-d",
        elsewhere / "disk.qcow2",
        "--ephemeral",
        *machines.shell_words(),
        "--name",
        "from-registry",
    ]
    words += ["--wait", f"serial:{PROMPT}$", "--wait-timeout", str(BOOT_SECONDS)]
    assert machines(*words).stdout == "from-registry\n"
    machines("vm", "kill", "from-registry")


def boots_where_trusted(machines: Machines, overlay: Path, driver: str, *, tries: int = 1) -> None:
    """An overlay on Alpine's disk on a server boots where the policy allows its driver, and is refused without."""
    name = f"from-{driver}"
    words: list[str | Path] = ["-d", overlay, *machines.shell_words(), "--name", name]
    refused = machines("boot", *words, check=False)
    assert (refused.returncode, f"--trust {driver}" in refused.stderr) == (1, True)
    assert machines.vms() == []
    words += ["--trust", driver, "--wait", f"serial:{PROMPT}$", "--wait-timeout", str(BOOT_SECONDS)]
    runs = (machines("boot", *words, check=False) for _ in range(tries))
    done = next(run for run in runs if "did not answer within" not in run.stderr)
    assert done.returncode == 0, done.stderr
    shell = Shell(os.path.join(machines.root, name, "serial0.sock"))
    assert "Alpine" in shell("cat /etc/os-release")
    shell.close()
    machines("vm", "kill", name)


@pytest.mark.guest
def test_a_guest_boots_from_a_base_on_nbd(machines: Machines, images: Images) -> None:
    with served(machines.alpine.disk, socket=images / "disk.sock") as export:
        boots_where_trusted(machines, images.overlay("web.qcow2", export.uri, format="raw"), "nbd")


@pytest.mark.guest
def test_a_guest_boots_from_a_base_on_https(machines: Machines, images: Images, certificates: Certificates) -> None:
    """The disk is asked for in one piece, and once more when that hangs: the more requests QEMU 10.0's curl driver
    makes, the likelier it waits for one for ever."""
    with on_https(machines.alpine.disk, certificates) as place:
        whole = {**place, "readahead": 64 << 20, "timeout": 60}
        boots_where_trusted(machines, images.overlay("web.qcow2", json_name(whole), size="1G"), "https", tries=3)


@pytest.mark.guest
def test_a_guest_boots_from_a_base_on_ssh(
    machines: Machines, images: Images, sshd: SshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with on_ssh(machines.alpine.disk, sshd) as (place, env):
        for name, value in env.items():
            monkeypatch.setitem(machines.env, name, value)
        boots_where_trusted(machines, images.overlay("web.qcow2", json_name(place), size="1G"), "ssh")
