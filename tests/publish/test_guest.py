"""A guest that went through a registry with TLS and a password, and out again as a containerDisk, starts."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest

from imgtool.publish.containerdisk import export_containerdisk
from imgtool.publish.oci.pull import pull
from imgtool.publish.oci.push import push
from tests.conftest import Images
from tests.guests import BOOT_SECONDS, PROMPT, Machines
from tests.publish.conftest import Forget
from tests.publish.registries import RegistryServer


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
