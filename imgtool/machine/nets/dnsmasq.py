"""dnsmasq: DHCP and DNS for one network, on its bridge and nowhere else. dnsmasq(8)."""

from __future__ import annotations

import ipaddress
import os
import signal

from imgtool.errors import MachineError
from imgtool.machine.nets.values import Config, Lease
from imgtool.machine.process import ProcessId

PID_FILE = "dnsmasq.pid"
LEASES = "leases"
LOG = "dnsmasq.log"

_MOST_LEASES = 65536

_GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL."""


def argv(program: str, config: Config, directory: str, *, stay_root: bool = False) -> list[str]:
    """Puts itself into the background once it serves. What it keeps lies in `directory`, opened before it becomes an
    unprivileged user, unless it is to `stay_root`. It reads no configuration of the host but resolv.conf."""
    words = [
        program,
        "--conf-file=/dev/null",
        f"--pid-file={os.path.join(directory, PID_FILE)}",
        f"--dhcp-leasefile={os.path.join(directory, LEASES)}",
        f"--log-facility={os.path.join(directory, LOG)}",
        f"--interface={config.bridge}",
        "--except-interface=lo",
        "--bind-dynamic",
        "--no-hosts",
        "--domain-needed",
        "--quiet-dhcp",
        "--quiet-dhcp6",
        "--quiet-ra",
    ]
    if stay_root:
        words += ["--user=root", "--group="]
    if config.isolated:
        # Nobody to ask and nowhere to go: an empty router option (3) keeps guests from a default route.
        words += ["--no-resolv", "--dhcp-option=option:router"]
    if config.dhcp_range is not None:
        assert config.subnet is not None
        first, last = config.dhcp_range
        mask = ipaddress.IPv4Network(config.subnet).netmask
        room = int(ipaddress.IPv4Address(last)) - int(ipaddress.IPv4Address(first)) + 1
        words += [
            f"--dhcp-range={first},{last},{mask},12h",
            f"--dhcp-lease-max={min(room, _MOST_LEASES)}",
            "--dhcp-authoritative",
        ]
    if config.ipv6_subnet is not None:
        prefix = ipaddress.IPv6Network(config.ipv6_subnet).network_address
        words += ["--enable-ra", f"--dhcp-range={prefix},ra-only,64,12h"]
        if config.isolated:
            words.append(f"--ra-param={config.bridge},0,0")  # announced as a prefix, not as a way out
    return words


def find(directory: str) -> list[ProcessId]:
    """Every dnsmasq of the network in `directory`, one that was not yet in the background included."""
    word = os.fsencode(f"--pid-file={os.path.join(directory, PID_FILE)}")
    # Twice: one that changes its process id while /proc is read can be missed once.
    return _with_argument(word) or _with_argument(word)


def end(directory: str) -> None:
    """Ends what `find` finds: SIGTERM, then SIGKILL."""
    # One that was just putting itself into the background has another process id by now, hence again and again.
    while found := find(directory):
        for process in found:
            for number in (signal.SIGTERM, signal.SIGKILL):
                if not process.send(number) or process.wait(_GRACE):
                    break
            else:
                raise MachineError(
                    f"dnsmasq does not end (process {process.pid})", hint="`ps` shows what it waits for"
                )


def _with_argument(word: bytes) -> list[ProcessId]:
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and word in _arguments(entry)]
    return [process for process in map(ProcessId.of, pids) if process is not None]


def _arguments(pid: str) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def read_pid(directory: str) -> int | None:
    try:
        with open(os.path.join(directory, PID_FILE)) as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def parse_leases(text: str) -> tuple[Lease, ...]:
    """The lines of dnsmasq's lease file: `expiry MAC address hostname client-id`, `*` for what is not known. IPv6
    leases follow a line `duid …` and have an IAID in place of the MAC."""
    leases = []
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["duid"]:
            break
        if len(words) >= 4 and words[0].isdigit():
            expires, mac, address, hostname = words[:4]
            leases.append(
                Lease(
                    address=address,
                    mac=mac,
                    hostname=None if hostname == "*" else hostname,
                    expires=int(expires) or None,
                )
            )
    return tuple(sorted(leases, key=_by_address))


def _by_address(lease: Lease) -> tuple[int, str]:
    try:
        return int(ipaddress.ip_address(lease.address)), ""
    except ValueError:
        return 0, lease.address


def read_leases(directory: str) -> tuple[Lease, ...]:
    try:
        with open(os.path.join(directory, LEASES), encoding="utf-8", errors="surrogateescape") as file:
            return parse_leases(file.read())
    except FileNotFoundError:
        return ()


def log_end(directory: str, lines: int = 5) -> str:
    """The last words of a dnsmasq that did not start, or died."""
    try:
        with open(os.path.join(directory, LOG), errors="replace") as file:
            return "".join(file.readlines()[-lines:]).strip()
    except OSError:
        return ""


def must_stay_root(uid_map: str) -> bool:
    """Whether there is no other user to become: in a user namespace that maps a single one (`/proc/self/uid_map`),
    where root is nobody special outside."""
    return sum(int(line.split()[2]) for line in uid_map.splitlines() if line.strip()) < 65536
