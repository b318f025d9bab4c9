"""A Debian guest built through five layers by each way that leads into it, and two clones of what comes out."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fixtures.debian import debian
from imgtool.build.lint import lint_image
from imgtool.machine.config import Machine
from imgtool.machine.values.processor import Memory, Smp
from imgtool.machine.values.storage import Drive
from imgtool.qemu.qemu_img import QemuImg
from tests.build.booting import READY_SECONDS, Booted, boot
from tests.build.watching import Watch

pytestmark = [pytest.mark.guest, pytest.mark.slow]

RECIPE = """\
[image]
name = "debian"
from = "base.qcow2"

[machine]
accel = "tcg"
memory = "1G"
smp = 2
ready = "cloud-init"
boot-timeout = "30m"

[[layer]]
name = "run"
run = ["test ${#TOKEN} -eq 20", "echo $TOKEN", "echo by WAY > /etc/way"]
secrets = ["TOKEN"]
executor = "WAY"

[[layer]]
name = "copied"
copy = [{ from = "site", to = "/srv/site", owner = "www-data:www-data", mode = "0640" }]
run = ["test ${#TOKEN} -eq 20", "echo $TOKEN"]
secrets = ["TOKEN"]
executor = "WAY"

[[layer]]
name = "script"
script = "setup.py"
run = ["test ${#TOKEN} -eq 20", "echo $TOKEN"]
secrets = ["TOKEN"]
env = { WHERE = "/etc/script" }
executor = "WAY"

[[layer]]
name = "service"
copy = [{ from = "once.service", to = "/etc/systemd/system/" }]
run = ["systemctl enable once.service"]
fetch = [{ from = "/etc/script", to = "fetched.txt" }]
executor = "WAY"

[[layer]]
name = "sealed"
seal = ["machine-id", "ssh-host-keys", "cloud-init", "logs", "package-cache", "dhcp-leases", "history", "trim"]

[output]
path = "debian.qcow2"
compression = "none"
"""
SERVICE = """\
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo started >/run/once'
[Install]
WantedBy=multi-user.target
"""
LOOK = b"""\
cat /etc/way /srv/site/a/index.html /etc/script
stat -c '%U:%G %a' /srv/site/a/index.html
n=0; while [ ! -e /run/once ] && [ $n -lt 900 ]; do n=$((n+1)); sleep 1; done
cat /run/once
"""
HELD = "by {}\nhello\nscript\nwww-data:www-data 640\nstarted\n"


class Site(NamedTuple):
    way: str
    folder: Path
    answer: Any
    said: str
    secret: str
    watch: Watch


@pytest.fixture(scope="module", params=["agent", "ssh", "serial"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The recipe, built, while somebody watches the processes."""
    way: str = request.param
    folder, apart = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("apart")
    runtime = tempfile.mkdtemp(prefix="it-", dir="/tmp")
    (folder / "debian.toml").write_text(RECIPE.replace("WAY", way))
    (folder / "once.service").write_text(SERVICE)
    (folder / "setup.py").write_text(
        "#!/usr/bin/python3\nimport os\nopen(os.environ['WHERE'], 'w').write('script\\n')\n"
    )
    (folder / "site" / "a").mkdir(parents=True)
    (folder / "site" / "a" / "index.html").write_text("hello\n")
    os.symlink(debian().disk, folder / "base.qcow2")
    secret = secrets.token_hex(10)
    (apart / "token").write_text(secret + "\n")
    env = {
        **os.environ,
        "IMGTOOL_LAYERS": str(folder / "layers"),
        "XDG_RUNTIME_DIR": runtime,
        "XDG_STATE_HOME": str(folder / "state"),
    }
    words = ["build", "debian.toml", "--secret", f"TOKEN={apart / 'token'}", "--progress", "json", "--output", "json"]
    with Watch(secret, [folder / "layers"]) as watch:
        done = subprocess.run(
            [sys.executable, "-m", "imgtool", *words],
            env=env,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * READY_SECONDS,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    yield Site(way, folder, json.loads(done.stdout), done.stderr, secret, watch)
    shutil.rmtree(folder)
    shutil.rmtree(runtime)


def test_debian_is_built_in_one_boot(site: Site) -> None:
    assert [layer["cached"] for layer in site.answer["layers"]] == [False] * 5
    assert site.answer["boots"] == 1
    assert "steps go in by the guest agent" in site.said  # the last layer's, where the recipe leaves it to the guest
    assert (site.folder / "fetched.txt").read_text() == "script\n"


def test_what_comes_out_passes_the_lint(site: Site) -> None:
    assert lint_image(site.folder / "debian.qcow2").hazards == ()


def test_a_secret_is_nowhere_during_the_build_and_after_it(site: Site) -> None:
    """Not on a command line or in an environment while it runs, nor in any file that it left: keys, manifests, logs,
    records, the bytes of layers and image."""
    assert site.watch.looks > 20
    assert site.watch.seen == set()
    assert site.secret not in site.said
    logs = [path.read_text() for path in site.folder.glob("layers/*/log")]
    assert sum("***" in log for log in logs) == 3
    for folder, _, names in os.walk(site.folder):
        for path in (Path(folder, name) for name in names):
            if not path.is_symlink():
                assert site.secret.encode() not in path.read_bytes(), path


def test_two_clones_hold_what_was_built_and_share_no_identity(site: Site) -> None:
    folder = tempfile.mkdtemp(prefix="it-", dir="/tmp")
    clones: dict[str, Booted] = {}
    try:
        for name in ("one", "two"):
            disk = site.folder / f"{name}.qcow2"
            QemuImg().create(disk, None, format="qcow2", backing="debian.qcow2", backing_format="qcow2")
            machine = Machine(
                name=name,
                accel="tcg",
                drives=(Drive(file=str(disk), format="qcow2", interface="virtio", cache="unsafe"),),
                memory=Memory(size=1 << 30),
                smp=Smp(cpus=2),
            )
            clones[name] = boot(machine, ("agent", "ssh"), folder)
        found = {name: _identity(clone) for name, clone in clones.items()}
    finally:
        for clone in clones.values():
            clone.end()
        shutil.rmtree(folder)
    assert [held for held, _, _ in found.values()] == [HELD.format(site.way).encode()] * 2
    ids = {machine_id for _, machine_id, _ in found.values()}
    keys = {key for _, _, key in found.values()}
    assert len(ids) == len(keys) == 2
    assert all(len(machine_id.strip()) == 32 for machine_id in ids)
    assert all(key.startswith(b"ssh-ed25519 ") for key in keys)


def _identity(clone: Booted) -> tuple[bytes, bytes, bytes]:
    """What a clone holds of the recipe's, its machine-id and its host key. It is asked by SSH: sshd has a key."""
    said = []
    with clone.connect("ssh") as way:
        for script in (LOOK, b"cat /etc/machine-id", b"cat /etc/ssh/ssh_host_ed25519_key.pub"):
            output = bytearray()
            assert way.run(script, on_output=output.extend) == 0, bytes(output)
            said.append(bytes(output))
    held, machine_id, key = said
    return held, machine_id, key
