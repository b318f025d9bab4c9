"""Networks: the pod's own by NAT, and those that a NetworkAttachmentDefinition describes."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from imgtool.machine.config import Machine
from imgtool.machine.values.network import Bridge, Nat, Network, Nic, Passt, Tap, User
from imgtool.publish.kubevirt.disks import pci_address
from imgtool.publish.kubevirt.words import Notes, object_name

_MODELS = {
    "virtio": "virtio",
    "virtio-net": "virtio",
    "virtio-net-pci": "virtio",
    "e1000": "e1000",
    "e1000e": "e1000e",
    "ne2k_pci": "ne2k_pci",
    "pcnet": "pcnet",
    "rtl8139": "rtl8139",
    "igb": "igb",
}
_FORWARD = re.compile(r"(tcp|udp)?:(?P<address>[^-]*):(?P<outside>[0-9]+)-(?P<guest>.*):(?P<port>[0-9]+)")
_ANYWHERE = ("", "127.0.0.1", "localhost", "0.0.0.0")
_NIC = ("model", "mac", "queues", "addr", "bootindex", "id")


LABEL = "kubevirt.io/vm"
"""On the pods of a VM; its value is the VM's name."""


class Networks(NamedTuple):
    interfaces: list[dict[str, Any]]
    networks: list[dict[str, Any]]
    attachments: list[str]
    """NetworkAttachmentDefinitions that have to be there."""
    orders: dict[int, int]
    """Place among `interfaces` → what `bootindex` says."""
    multiqueue: bool
    forwards: list[dict[str, Any]]
    """The ports of a Service that lead into the guest."""


def networks(machine: Machine, notes: Notes) -> Networks:
    found = Networks([], [], [], {}, False, [])
    wanted = (User(),) if machine.networks is None else machine.networks
    multiqueue = False
    for place, network in enumerate(wanted):
        setting = f"network[{place}]"
        name = object_name(network.id or f"net{place}")
        made = _network(network, setting, found.forwards, notes)
        if made is None:
            continue
        interface, source = made
        if "pod" in source and any("pod" in other for other in found.networks):
            notes.add(setting, "a VM has the pod's network once")
            continue
        if "multus" in source:
            found.attachments.append(source["multus"]["networkName"])
        multiqueue |= _nic(network, interface, setting, notes)
        if network.bootindex is not None:
            found.orders[len(found.interfaces)] = network.bootindex
        found.interfaces.append({"name": name, **interface})
        found.networks.append({"name": name, **source})
    return found._replace(multiqueue=multiqueue)


def _network(
    network: Network, setting: str, forwards: list[dict[str, Any]], notes: Notes
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """How the interface is bound, and what to; None, and a note, for what KubeVirt does not have."""
    if isinstance(network, User | Passt):
        interface: dict[str, Any] = {"masquerade": {}} if isinstance(network, User) else {"passtBinding": {}}
        found = [port for rule in network.hostfwd if (port := _port(rule, setting, notes)) is not None]
        forwards += found
        if found:
            interface["ports"] = [{"port": port["targetPort"], "protocol": port["protocol"]} for port in found]
        pod = {}
        known = [*_NIC, "hostfwd"]
        if isinstance(network, User) and network.net is not None:
            pod["vmNetworkCIDR"] = network.net
            known.append("net")
        notes.rest(network, setting, known)
        return interface, {"pod": pod}
    if isinstance(network, Bridge | Tap | Nat):
        name = network.net if isinstance(network, Nat) else network.br
        if name is not None:
            notes.rest(network, setting, [*_NIC, "net" if isinstance(network, Nat) else "br"])
            return {"bridge": {}}, {"multus": {"networkName": object_name(name)}}
    kind = type(network).__name__.lower()
    notes.add(setting, f"KubeVirt has no network of the kind {kind} that is described here")
    return None


def _port(rule: str, setting: str, notes: Notes) -> dict[str, Any] | None:
    """`tcp:[hostaddr]:hostport-[guestaddr]:guestport` as a port of a Service."""
    match = _FORWARD.fullmatch(rule)
    if match is None:
        notes.add(f"{setting}.hostfwd", f"{rule} is not understood")
        return None
    if match["address"] not in _ANYWHERE or match["guest"]:
        notes.add(f"{setting}.hostfwd", f"a Service has addresses of its own, not those of {rule}")
    protocol = (match[1] or "tcp").upper()
    return {
        "name": f"{protocol.lower()}-{match['outside']}",
        "protocol": protocol,
        "port": int(match["outside"]),
        "targetPort": int(match["port"]),
    }


def service(name: str, ports: list[dict[str, Any]]) -> dict[str, Any]:
    """What leads into the VM `name` within the cluster."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {LABEL: name}, "ports": ports},
    }


def _nic(network: Nic, interface: dict[str, Any], setting: str, notes: Notes) -> bool:
    """Fills in the card. Returns whether it wants several queues."""
    if network.model is not None:
        model = _MODELS.get(network.model)
        if model is None:
            notes.add(f"{setting}.model", f"KubeVirt has no network card {network.model}")
        else:
            interface["model"] = model
    if network.mac is not None:
        interface["macAddress"] = network.mac
    if network.addr is not None:
        address = pci_address(network.addr)
        if address is None:
            notes.add(f"{setting}.addr")
        else:
            interface["pciAddress"] = address
    if network.queues is not None and network.queues > 1:
        notes.add(f"{setting}.queues", "KubeVirt gives each network card as many queues as there are CPUs")
        return True
    return False
