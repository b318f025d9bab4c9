"""CPU, memory, firmware, clock: what is neither disk nor network nor any other device."""

from __future__ import annotations

from typing import Any

from imgtool.machine.config import DEFAULT_MEMORY, Machine
from imgtool.machine.smp import topology
from imgtool.publish.kubevirt.words import Notes, quantity

_PAGES = {2 << 20: "2Mi", 1 << 30: "1Gi", 64 << 10: "64Ki", 16 << 20: "16Mi"}
_USUAL_PAGE = "2Mi"
_ON = (True, "on", 1)
_OFF = (False, "off", 0)


def cpu(machine: Machine, notes: Notes) -> dict[str, Any]:
    found: dict[str, Any] = _topology(machine, notes)
    model = machine.cpu.model
    if model == "host":
        found["model"] = "host-passthrough"
    elif model == "max":
        notes.add("cpu", "max is a model of QEMU's own: name one, or host")
    elif model is not None:
        found["model"] = model
    policies = {word[1:]: "require" if word[0] == "+" else "disable" for word in machine.cpu.features}
    for name, value in machine.cpu.properties.items():
        if name == "kvm" and value in _OFF:
            continue  # `hides_kvm` says it
        if value in _ON or value in _OFF:
            policies[name] = "require" if value in _ON else "disable"
        else:
            notes.add(f"cpu.properties.{name}")
    if policies:
        found["features"] = [{"name": name, "policy": policy} for name, policy in policies.items()]
    if machine.numa.nodes:
        _numa(machine, found, notes)
    notes.rest(machine.numa, "numa", ["nodes"])
    return found


def hides_kvm(machine: Machine) -> bool:
    return "kvm" in machine.cpu.properties and machine.cpu.properties["kvm"] in _OFF


def _topology(machine: Machine, notes: Notes) -> dict[str, Any]:
    wanted = topology(machine.smp)
    found: dict[str, Any] = {"cores": wanted.cores, "threads": wanted.threads}
    for name in ("dies", "clusters"):
        if getattr(wanted, name) != 1:
            notes.add(f"smp.{name}", "KubeVirt's topology is sockets, cores and threads")
    each = wanted.cores * wanted.threads
    if wanted.cpus == wanted.maxcpus:
        found["sockets"] = wanted.sockets * wanted.dies * wanted.clusters
    else:
        found["sockets"], odd = divmod(wanted.cpus, each)
        found["sockets"] = max(1, found["sockets"])
        found["maxSockets"] = wanted.maxcpus // each
        if odd:
            notes.add("smp.cpus", f"KubeVirt plugs in whole sockets, here of {each} CPUs")
    return found


def _numa(machine: Machine, found: dict[str, Any], notes: Notes) -> None:
    """KubeVirt's only way: the guest gets the nodes that its dedicated CPUs have on the host."""
    if machine.hugepages is None:
        notes.add("numa.node", "KubeVirt has NUMA nodes only with hugepages and dedicated CPUs: those of the host")
        return
    found["dedicatedCpuPlacement"] = True
    found["numa"] = {"guestMappingPassthrough": {}}
    notes.add("numa.node", "the guest gets the nodes of the host's CPUs that are dedicated to it, not these")


def memory(machine: Machine, notes: Notes) -> dict[str, Any]:
    found: dict[str, Any] = {"guest": quantity(machine.memory.size or DEFAULT_MEMORY)}
    if machine.memory.maxmem is not None and machine.memory.maxmem != machine.memory.size:
        found["maxGuest"] = quantity(machine.memory.maxmem)
    notes.rest(machine.memory, "memory", ["size", "maxmem"], "KubeVirt sees to slots by itself")
    pages = machine.hugepages
    if pages is not None:
        size = _USUAL_PAGE if pages.page_size is None else _PAGES.get(pages.page_size)
        if size is None:
            notes.add("hugepages.page-size", f"Kubernetes has no pages of {pages.page_size} bytes")
        else:
            found["hugepages"] = {"pageSize": size}
        if pages.page_size is None:
            notes.add("hugepages.page-size", f"not said, and Kubernetes must be told: {_USUAL_PAGE} is taken")
        known = ["page_size", *(["prealloc"] if pages.prealloc else [])]
        notes.rest(pages, "hugepages", known, "KubeVirt sees to this by itself")
    return found


def firmware(machine: Machine, notes: Notes) -> dict[str, Any]:
    wanted = machine.firmware
    found: dict[str, Any] = {}
    if machine.uuid is not None:
        found["uuid"] = machine.uuid
    if wanted.uefi or wanted.secure_boot or wanted.vars is not None:
        efi: dict[str, Any] = {"secureBoot": bool(wanted.secure_boot)}
        if wanted.vars is not None:
            efi["persistent"] = True
            notes.add("firmware.vars", "the variables are kept, but begin empty: the file is not taken along")
        found["bootloader"] = {"efi": efi}
    elif wanted.uefi is False:
        found["bootloader"] = {"bios": {}}
    notes.rest(wanted, "firmware", ["uefi", "secure_boot", "vars"])
    for name in ("kernel", "initrd", "append", "dtb"):
        if getattr(machine, name) is not None:
            notes.add(name, "KubeVirt starts a kernel out of a container image only")
    return found


def features(machine: Machine) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if machine.firmware.secure_boot:
        found["smm"] = {"enabled": True}
    if hides_kvm(machine):
        found["kvm"] = {"hidden": True}
    return found


def clock(machine: Machine, notes: Notes) -> dict[str, Any]:
    wanted = machine.rtc
    if wanted is None:
        return {}
    found: dict[str, Any] = {}
    rtc: dict[str, Any] = {}
    known = []
    if wanted.base == "utc":
        found["utc"] = {}
        known.append("base")
    if wanted.driftfix is not None:
        rtc["tickPolicy"] = "catchup" if wanted.driftfix == "slew" else "delay"
        known.append("driftfix")
    if wanted.clock in ("host", "vm"):
        rtc["track"] = "wall" if wanted.clock == "host" else "guest"
        known.append("clock")
    if rtc:
        found["timer"] = {"rtc": {"present": True, **rtc}}
    notes.rest(wanted, "rtc", known)
    return found


def machine_type(machine: Machine, notes: Notes) -> dict[str, Any]:
    kind = machine.machine.type
    notes.rest(machine.machine, "machine", ["type"])
    if kind is None:
        return {}
    if kind == "q35" or kind.startswith(("pc-q35-", "virt", "s390-ccw-virtio", "pseries")):
        return {"type": kind}
    notes.add("machine", f"KubeVirt has no machine {kind}, but q35")
    return {}
