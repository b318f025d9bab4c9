"""The CPU topology: what is left open is worked out as QEMU does since 6.2, which prefers cores over sockets.

Source: `machine_parse_smp_config` in QEMU's hw/core/machine-smp.c. imgtool writes all of it out, so that an older
QEMU (which preferred sockets) makes the same machine.
"""

from __future__ import annotations

from math import prod

from msgspec import Struct

from imgtool.errors import ConfigError
from imgtool.machine.values.processor import Smp

LEVELS = ("sockets", "dies", "clusters", "cores", "threads")


class Topology(Struct, frozen=True):
    cpus: int
    maxcpus: int
    sockets: int
    dies: int
    clusters: int
    cores: int
    threads: int

    @property
    def product(self) -> str:
        """`sockets(2) × cores(4) × threads(1)`: levels that were never spoken of are left out."""
        shown = [name for name in LEVELS if name not in ("dies", "clusters") or getattr(self, name) != 1]
        return " × ".join(f"{name}({getattr(self, name)})" for name in shown)


def topology(smp: Smp) -> Topology:
    """All seven numbers of `smp`. ConfigError, naming the product that is wrong, when they contradict each other."""
    found = _work_out(smp)
    total = prod(getattr(found, name) for name in LEVELS)
    if total != found.maxcpus:
        said = "maxcpus" if smp.maxcpus is not None else "cpus"
        raise ConfigError(
            f"{found.product} = {total} ≠ {said}({found.maxcpus})",
            hint=f"leave one of them out and it is worked out, or say {said}={total}",
        )
    if found.cpus > found.maxcpus:
        raise ConfigError(
            f"cpus({found.cpus}) is more than maxcpus({found.maxcpus})",
            hint="cpus run from the start, maxcpus can be plugged in later: maxcpus is the larger one",
        )
    return found


def _work_out(smp: Smp) -> Topology:
    dies, clusters = smp.dies or 1, smp.clusters or 1
    sockets, cores, threads = smp.sockets or 0, smp.cores or 0, smp.threads or 0
    wanted = smp.maxcpus or smp.cpus or 0
    if not wanted:
        sockets, cores, threads = sockets or 1, cores or 1, threads or 1
    elif not cores:
        sockets, threads = sockets or 1, threads or 1
        cores = wanted // (sockets * dies * clusters * threads)
    elif not sockets:
        threads = threads or 1
        sockets = wanted // (dies * clusters * cores * threads)
    threads = threads or wanted // (sockets * dies * clusters * cores)
    maxcpus = wanted or sockets * dies * clusters * cores * threads
    return Topology(
        cpus=smp.cpus or maxcpus,
        maxcpus=maxcpus,
        # A level that came out as 0 is shown as 1 in the error: the product is too large already without it.
        sockets=sockets or 1,
        dies=dies,
        clusters=clusters,
        cores=cores or 1,
        threads=threads or 1,
    )
