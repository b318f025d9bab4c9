"""Real machines on a network that imgtool made: Alpine under TCG."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fixtures.alpine import SHELL, Alpine
from tests.guests import PROMPT, Shell
from tests.machine.nets.lab import Lab

APPEND = SHELL.replace("modules=", "modules=virtio_net,")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A runtime directory that the host of the lab shares with the test; short, for the sake of sockets."""
    made = tempfile.mkdtemp(prefix="it-", dir="/tmp")
    yield Path(made)
    shutil.rmtree(made)


def boot(lab: Lab, folder: Path, alpine: Alpine, network: str) -> Shell:
    """The machine `guest` with a root shell on its serial console."""
    env = {"XDG_RUNTIME_DIR": str(folder), "TMPDIR": str(folder)}
    words: list[str | Path] = [
        *("-m", "imgtool", "boot", "-d", "--name", "guest", "--ephemeral", "--accel", "tcg", "--memory", "256M"),
        *("--kernel", alpine.kernel, "--initrd", alpine.initrd, "--append", APPEND),
        *("--vga", "none", "--network", network, "--wait", f"serial:{PROMPT}$", "--wait-timeout", "240", alpine.disk),
    ]
    done = lab.run(sys.executable, *words, **env)
    assert done.status == 0, done.stderr
    shell = Shell(os.path.join(folder, "imgtool", "vm", "guest", "serial0.sock"))
    shell("mount -t proc proc /proc; mount -t sysfs sys /sys; ip link set lo up; ip link set eth0 up")
    return shell


@pytest.mark.guest
def test_a_machine_gets_a_lease_reaches_what_is_behind_the_gateway_and_is_reached(
    lan: Lab, folder: Path, alpine: Alpine
) -> None:
    lan.serve("198.51.100.7", 80, "far host", where="lan")
    before = lan.state()
    words = ("--dhcp-range", "10.77.0.5-10.77.0.5", "--forward", "tcp:8080:10.77.0.5:80")
    assert lan.imgtool("net", "create", "lab", "--nat", "10.77.0.0/24", *words).status == 0
    with closing(boot(lan, folder, alpine, "nat,net=lab")) as shell:
        # modprobe, which the kernel would call for it, reads for most of a minute under TCG.
        shell("insmod /lib/modules/*/kernel/net/packet/af_packet.ko*")
        shell("udhcpc -i eth0 -n -q -x hostname:alpine")
        assert "inet 10.77.0.5/24" in shell("ip address show dev eth0")
        network = lan.imgtool("net", "show", "lab", "--output", "json").document
        (lease,) = network["leases"]
        assert (lease["address"], lease["hostname"]) == ("10.77.0.5", "alpine")
        assert lease["mac"] == shell("cat /sys/class/net/eth0/address")
        (member,) = network["members"]
        assert member == {"name": member["name"], "kind": "tun", "up": True}

        assert "0% packet loss" in shell("ping -c 2 10.77.0.1")
        assert shell("nc -w 20 198.51.100.7 80 </dev/null") == "far host sees 192.0.2.10"
        shell("(echo the guest answers | nc -l -p 80) >/dev/null 2>&1 & true")
        shell("while ! netstat -ltn | grep -q :80; do usleep 50000; done")
        assert lan.connect("192.0.2.10", 8080, where="lan") == "the guest answers"

    refused = lan.imgtool("net", "delete", "lab")
    assert refused.status == 1
    assert f"in use by {member['name']}" in refused.stderr
    # QEMU alone holds the tap: it dies, and the tap is gone.
    lan("pkill", "-9", "-x", "qemu-system-x86")
    await_no_tap(lan)
    assert lan.imgtool("net", "delete", "lab").status == 0
    assert lan.changes(before) == []


def await_no_tap(lan: Lab) -> None:
    """The kernel closes what a QEMU with io_uring (10.2 and later) had open some time after its end."""
    lan("sh", "-c", "while ip link show | grep -q it-; do sleep 0.05; done")


@pytest.mark.guest
def test_a_machine_on_a_bridge_over_a_nic_is_on_the_lan(lan: Lab, folder: Path, alpine: Alpine) -> None:
    assert lan.imgtool("net", "create", "wire", "--bridge", "nic0", "--force").status == 0
    lan.serve("192.0.2.1", 80, "gateway", where="lan")
    with closing(boot(lan, folder, alpine, "bridge,br=br-wire")) as shell:
        shell("ip address add 192.0.2.77/24 dev eth0")
        assert shell("nc -w 20 192.0.2.1 80 </dev/null") == "gateway sees 192.0.2.77"
    (pid,) = lan.processes("qemu-system-x86")
    argv = lan("cat", f"/proc/{pid}/cmdline")
    assert '"type":"tap","id":"net0","fd":"' in argv
    assert "spawn=deny" in argv
    env = {"XDG_RUNTIME_DIR": str(folder)}
    assert lan.imgtool("vm", "kill", "guest", **env).status == 0
    await_no_tap(lan)


@pytest.mark.matrix
def test_every_queue_is_handed_over(lan: Lab, folder: Path, alpine: Alpine) -> None:
    env = {"XDG_RUNTIME_DIR": str(folder), "TMPDIR": str(folder)}
    assert lan.imgtool("net", "create", "lab", "--nat", "10.77.0.0/24").status == 0
    words = ("--accel", "tcg", "--memory", "64M", "--ephemeral", "--network", "nat,net=lab,queues=2")
    shown = lan.imgtool("boot", "-d", "--name", "vm", *words, alpine.disk, "--dry-run", **env)
    assert re.search(r'fds"?[:=]"?3:4\b', shown.stdout), (shown.stdout, shown.stderr)  # JSON where QEMU takes it
    assert "spawn=deny" in shown.stdout
    assert json.loads(lan("ip", "-json", "link", "show", "type", "tun")) == []
    done = lan.imgtool("boot", "-d", "--name", "vm", *words, alpine.disk, **env)
    assert done.status == 0, done.stderr
    (link,) = json.loads(lan("ip", "-json", "-details", "link", "show", "type", "tun"))
    assert link["master"] == "br-lab"
    details = link["linkinfo"]["info_data"]
    assert details["numqueues"] + details["numdisabled"] == 2  # the firmware uses one
    assert lan.imgtool("vm", "kill", "vm", **env).status == 0
    assert json.loads(lan("ip", "-json", "link", "show", "type", "tun")) == []


@pytest.mark.parametrize(
    ("network", "reason", "hint"),
    [
        ("nat,net=nope", "there is no network", "imgtool net create nope"),
        ("nat,net=lab", "the network lab cannot be used: its bridge br-lab is gone", "imgtool net delete lab"),
        ("bridge,br=nope", "there is no bridge nope", "`imgtool net create` makes one"),
        ("tap,ifname=x0,br=nope", "there is no bridge nope", "`imgtool net create` makes one"),
    ],
)
def test_a_network_that_cannot_be_joined_is_said_before_qemu_starts(
    lab: Lab, folder: Path, alpine: Alpine, network: str, reason: str, hint: str
) -> None:
    assert lab.imgtool("net", "create", "lab", "--nat", "10.77.0.0/24").status == 0
    lab("ip", "link", "delete", "br-lab")
    env = {"XDG_RUNTIME_DIR": str(folder), "TMPDIR": str(folder)}
    words = ("--accel", "tcg", "--ephemeral", "--network", network, "--output", "json")
    refused = lab.imgtool("boot", "-d", *words, alpine.disk, **env)
    assert refused.status in (1, 2)
    assert reason in refused.error["message"]
    assert hint in refused.error["hint"]
    assert lab.processes("qemu-system-x86") == []
    assert json.loads(lab("ip", "-json", "link", "show", "type", "tun")) == []


def test_without_root_the_bridge_helper_s_refusal_is_explained_before_it_happens(
    lab: Lab, folder: Path, alpine: Alpine
) -> None:
    lab("ip", "link", "add", "br0", "type", "bridge")
    lab("mount", "--bind", "/bin/true", "/usr/lib/qemu/qemu-bridge-helper")
    words = ("-m", "imgtool", "boot", "-d", "--accel", "tcg", "--ephemeral", "--network", "bridge,br=br0")
    refused = lab.run(
        *("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, *words),
        *("--output", "json", alpine.disk),
        XDG_RUNTIME_DIR=str(folder),
        TMPDIR=str(folder),
    )
    assert refused.status == 1
    assert "qemu-bridge-helper is not setuid root" in refused.error["message"]
    assert "chmod u+s" in refused.error["hint"]
    assert lab.processes("qemu-system-x86") == []
