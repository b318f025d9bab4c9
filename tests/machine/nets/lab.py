"""A host of its own to make networks on: namespaces for its network, its mounts and its processes.

Nothing in it sees the machine's real network, and nothing of it outlives it: with its first process everything ends,
and with its namespaces everything goes. Without root it is made in a user namespace, too.
"""

from __future__ import annotations

import difflib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.guests import BOOT_SECONDS

INIT = """
import os, subprocess, sys, threading, time
threading.Thread(target=lambda: os._exit(len(sys.stdin.read())), daemon=True).start()
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
# No second's wait for duplicates of each IPv6 address.
subprocess.run(["sysctl", "-qw", "net.ipv6.conf.default.dad_transmits=0"], check=True)
print("ready", flush=True)
while True:
    try:
        os.wait()
    except ChildProcessError:
        time.sleep(0.02)
"""
"""The first process, which buries those that others leave, as an init does. It ends, and all with it, when the test
that holds the other end of its stdin ends in whatever way."""

SERVER = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), family=family)
print("ready", flush=True)
while True:
    connection, peer = listener.accept()
    connection.sendall(f"{sys.argv[3]} sees {peer[0]}".encode())
    connection.close()
"""

CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3) as connection:
    print(connection.makefile().read())
"""

UDHCPC = """#!/bin/sh
case "$1" in
bound|renew)
    ip address flush dev "$interface"
    ip address add "$ip/$mask" dev "$interface"
    [ -z "$router" ] || ip route replace default via "$router"
    echo "ip=$ip router=$router dns=$dns"
    ;;
esac
"""


class Done(NamedTuple):
    status: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        return json.loads(self.stdout)

    @property
    def error(self) -> Any:
        return json.loads(self.stderr)["error"]


class Lab:
    """`host`, where imgtool runs, is the outermost network; others (a LAN, guests) are made beside it by name."""

    def __init__(self) -> None:
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        self._first = subprocess.Popen(
            [
                *("unshare", *user, "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
                *(sys.executable, "-c", INIT),
            ],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
        )
        assert self._first.stdout is not None
        assert self._first.stdout.readline() == b"ready\n"
        inside = _child(self._first.pid)
        enter = ["--user", "--preserve-credentials"] if user else []
        self._enter = ["nsenter", "--target", str(inside), *enter, "--net", "--mount", "--pid"]
        self._started: list[subprocess.Popen[bytes]] = []

    def close(self) -> None:
        self._first.kill()
        for process in (self._first, *self._started):
            process.wait(10)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def argv(self, *words: str | Path, where: str | None = None) -> list[str]:
        inner = ["nsenter", f"--net=/run/netns/{where}"] if where else []
        return [*self._enter, *inner, *map(str, words)]

    def __call__(self, *words: str | Path, where: str | None = None, check: bool = True, **env: str) -> str:
        """What the command prints, run on the host or in the network `where`."""
        done = self.run(*words, where=where, **env)
        assert not check or done.status == 0, f"{words}: {done.stderr}"
        return done.stdout

    def run(self, *words: str | Path, where: str | None = None, **env: str) -> Done:
        done = subprocess.run(
            self.argv(*words, where=where),
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BOOT_SECONDS,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def imgtool(self, *words: str | Path, **env: str) -> Done:
        return self.run(sys.executable, "-m", "imgtool", *words, **env)

    def start(self, *words: str | Path, where: str | None = None) -> Started:
        process = subprocess.Popen(
            self.argv(*words, where=where),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._started.append(process)
        return Started(process)

    def add_network(self, name: str) -> None:
        self("ip", "netns", "add", name)
        self("ip", "link", "set", "lo", "up", where=name)

    def add_nic(self, name: str, network: str, inside: str) -> None:
        """A cable: `name` on the host, `inside` in `network`, both up."""
        self("ip", "link", "add", name, "type", "veth", "peer", "name", inside, "netns", network)
        self("ip", "link", "set", name, "up")
        self("ip", "link", "set", inside, "up", where=network)

    def add_guest(self, name: str, bridge: str) -> None:
        """A namespace `name` with an `eth0` that is plugged into `bridge`."""
        self.add_network(name)
        self.add_nic(f"v-{name}", name, "eth0")
        self("ip", "link", "set", f"v-{name}", "master", bridge)

    def dhcp(self, guest: str, folder: Path) -> dict[str, str]:
        """Asks for a lease as `guest` and takes it; what was offered."""
        script = folder / "udhcpc.sh"
        script.write_text(UDHCPC)
        script.chmod(0o755)
        words: list[str | Path] = [
            "busybox",
            "udhcpc",
            "-i",
            "eth0",
            "-f",
            "-q",
            "-n",
            "-t",
            "10",
            "-T",
            "1",
            "-s",
            script,
        ]
        output = self(*words, "-x", f"hostname:{guest}", where=guest)
        line = next(line for line in output.splitlines() if line.startswith("ip="))
        return dict(pair.partition("=")[::2] for pair in line.split(" "))

    def serve(self, address: str, port: int, name: str, *, where: str | None = None) -> None:
        """Starts a TCP server that tells each client its `name` and whom it sees."""
        started = self.start(sys.executable, "-c", SERVER, address, str(port), name, where=where)
        assert started.line() == "ready"

    def connect(self, address: str, port: int, *, where: str | None = None) -> str:
        """What the server at `address` says, or `""` when it cannot be reached."""
        done = self.run(sys.executable, "-c", CLIENT, address, str(port), where=where)
        return done.stdout.strip()

    def add_lan(self) -> None:
        """A LAN on the host's `nic0`: 192.0.2.0/24, the host its 10, a gateway its 1, and 198.51.100.7 behind that.
        Nobody there knows of any network behind the host. `spare0` is another NIC that is up."""
        self.add_network("lan")
        self.add_nic("nic0", "lan", "lan0")
        self("ip", "address", "add", "192.0.2.1/24", "dev", "lan0", where="lan")
        self("ip", "address", "add", "198.51.100.7/32", "dev", "lo", where="lan")
        self("ip", "address", "add", "192.0.2.10/24", "broadcast", "+", "dev", "nic0")
        self("ip", "route", "add", "default", "via", "192.0.2.1")
        self.add_network("elsewhere")
        self.add_nic("spare0", "elsewhere", "eth0")
        self.settle()

    def settle(self) -> None:
        """Waits for what the kernel does by itself and late: it notices carriers, and then gives each interface its
        link-local address."""
        deadline = time.monotonic() + 30
        while not all(_settled(link) for link in json.loads(self("ip", "-json", "address", "show"))):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def state(self) -> dict[str, list[str]]:
        """Everything a network may change, to be compared."""
        self.settle()
        # The kernel makes up the fast open key when a first socket listens. Some cannot be read, over which
        # the sysctl of procps 4.0.7 fails, having listed the rest.
        listed = self("sysctl", "-a", check=False).splitlines()
        sysctls = [line for line in listed if "tcp_fastopen_key" not in line]
        assert sysctls
        seen = {
            "addresses": self("ip", "-json", "address", "show"),
            "links": self("ip", "-json", "-details", "link", "show"),
            "routes": self("ip", "-json", "-details", "-4", "route", "show", "table", "all"),
            "routes6": self("ip", "-json", "-details", "-6", "route", "show", "table", "all"),
            "ruleset": self("nft", "list", "ruleset"),
            "sysctls": "\n".join(line for line in sysctls if line.startswith(("net.ipv4.", "net.ipv6."))),
            "files": self("find", "/run/imgtool/net", "-mindepth", "1", "-not", "-name", ".lock", check=False),
        }
        return {what: text.splitlines() for what, text in seen.items()}

    def changes(self, before: dict[str, list[str]]) -> list[str]:
        """What is different now; empty when all is as it was, byte for byte."""
        now = self.state()
        return [
            f"{what} {line}"
            for what, lines in before.items()
            for line in difflib.unified_diff(lines, now[what], n=0, lineterm="")
        ]

    def processes(self, name: str) -> list[str]:
        found = self.run("pgrep", "-x", name).stdout.split()
        return [line.strip() for line in found]


class Started:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def kill(self) -> None:
        """kill -9 of the program itself, which nsenter started."""
        child = _child(self.process.pid, missing_ok=True)
        if child is not None:
            os.kill(child, signal.SIGKILL)
        self.process.wait(10)


def _settled(link: dict[str, Any]) -> bool:
    if any(entry.get("tentative") for entry in link["addr_info"]):
        return False
    if "LOWER_UP" not in link["flags"] or link["link_type"] != "ether" or "master" in link:
        return True
    local = [entry for entry in link["addr_info"] if entry["family"] == "inet6" and entry["scope"] == "link"]
    return link["operstate"] == "UP" and bool(local)


def _child(pid: int, *, missing_ok: bool = False) -> int | None:
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        words = []
    if not words:
        assert missing_ok
        return None
    return int(words[0])


@contextmanager
def made_lab() -> Iterator[Lab]:
    lab = Lab()
    try:
        yield lab
    finally:
        lab.close()
