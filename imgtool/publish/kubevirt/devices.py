"""The devices that are neither disk nor network, and the cloud-init seed."""

from __future__ import annotations

import base64
from typing import Any, NamedTuple

from imgtool.machine.config import Machine
from imgtool.machine.seed import seed
from imgtool.publish.kubevirt.words import Notes

_VIDEO = {"std": "vga", "virtio": "virtio", "cirrus": "cirrus"}
_SOUND = {None: "ich9", "hda": "ich9", "ac97": "ac97"}
_ACTIONS = (None, "reset", "shutdown", "poweroff")
_INLINE = 2048
"""Bytes of user data that KubeVirt takes within a VM; what is longer is a Secret."""


def devices(machine: Machine, notes: Notes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    _show(machine, found, notes)
    _ports(machine, found, notes)
    if machine.tpm is not None:
        found["tpm"] = {"persistent": True} if machine.tpm.state is not None else {}
        if machine.tpm.state is not None:
            notes.add("tpm.state", "what it keeps is kept, but begins empty: the folder is not taken along")
        notes.rest(machine.tpm, "tpm", ["state"], "KubeVirt chooses it")
    if machine.rng is not None:
        found["rng"] = {}
        known = ["source"] if machine.rng.source in (None, "/dev/urandom", "/dev/random") else []
        notes.rest(machine.rng, "rng", known)
    if machine.balloon is not None:
        found["autoattachMemBalloon"] = True
        notes.rest(machine.balloon, "balloon")
    if machine.vsock is not None:
        found["autoattachVSOCK"] = True
        notes.add("vsock.cid", "KubeVirt chooses it")
    if machine.tablet:
        found["inputs"] = [{"name": "tablet", "type": "tablet", "bus": "usb"}]
    _watchdog(machine, found, notes)
    _sound(machine, found, notes)
    for place, _ in enumerate(machine.shares):
        notes.add(f"share[{place}]", "KubeVirt shares no folder of the host")
    return found


def _show(machine: Machine, found: dict[str, Any], notes: Notes) -> None:
    display = machine.display
    if display.type == "none" or machine.vga == "none":
        found["autoattachGraphicsDevice"] = False
    elif machine.vga is not None:
        video = _VIDEO.get(machine.vga)
        if video is None:
            notes.add("vga", f"KubeVirt has no {machine.vga}")
        else:
            found["video"] = {"type": video}
    if display.type not in (None, "none", "vnc"):
        notes.add("display.type", "KubeVirt shows a VM over VNC")
    notes.rest(display, "display", ["type"], "KubeVirt shows a VM over VNC, in its own way")
    if machine.keymap is not None:
        notes.add("keymap")


def _ports(machine: Machine, found: dict[str, Any], notes: Notes) -> None:
    if machine.serial is not None:
        found["autoattachSerialConsole"] = bool(machine.serial)
        for place, port in enumerate(machine.serial):
            if place:
                notes.add(f"serial[{place}]", "a VM has one serial console")
            elif port.type not in ("stdio", "pty", "vc"):
                notes.add("serial[0]", "the serial console is KubeVirt's own: `virtctl console`")
    for place, _ in enumerate(machine.parallel):
        notes.add(f"parallel[{place}]", "KubeVirt has no parallel ports")


def _watchdog(machine: Machine, found: dict[str, Any], notes: Notes) -> None:
    wanted = machine.watchdog
    if wanted is None:
        return
    model = wanted.model or "i6300esb"
    if model not in ("i6300esb", "diag288"):
        notes.add("watchdog.model", f"KubeVirt has no {model}")
    elif wanted.action not in _ACTIONS:
        notes.add("watchdog.action", f"KubeVirt does not {wanted.action}, but reset, shutdown or poweroff")
    else:
        found["watchdog"] = {"name": "watchdog", model: {"action": wanted.action or "reset"}}


def _sound(machine: Machine, found: dict[str, Any], notes: Notes) -> None:
    wanted = machine.audio
    if wanted is None:
        return
    model = _SOUND.get(wanted.model)
    if model is None:
        notes.add("audio.model", f"KubeVirt has no sound card {wanted.model}")
    else:
        found["sound"] = {"name": "sound", "model": model}
    if wanted.driver != "none":
        notes.add("audio.driver", "a VM in KubeVirt has no audio output")
    notes.rest(wanted, "audio", ["driver", "model"])


class CloudInit(NamedTuple):
    volume: dict[str, Any]
    device: dict[str, Any]
    secrets: list[dict[str, Any]]
    hostname: str | None


def cloud_init(machine: Machine, name: str, notes: Notes) -> CloudInit | None:
    """The seed as a volume. ConfigError when a file it names cannot be read."""
    wanted = machine.cloud_init
    if wanted is None:
        return None
    content = seed(wanted, name)
    source: dict[str, Any] = {}
    secrets = []
    for key, reference, data in (
        ("userData", "secretRef", content.user_data),
        ("networkData", "networkDataSecretRef", content.network_config),
    ):
        if data is None:
            continue
        text, plain = _text_of(data)
        if len(data) <= _INLINE:
            source[key if plain else f"{key}Base64"] = text
        else:
            secret = f"{name}-{key.lower()}"
            source[reference] = {"name": secret}
            secrets.append(
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": {"name": secret},
                    "stringData" if plain else "data": {key.lower(): text},
                }
            )
    if wanted.meta_data is not None:
        notes.add("cloud-init.meta-data", "KubeVirt writes it by itself")
    device = {"name": "cloudinit", "disk": {"bus": "virtio"}}
    return CloudInit({"name": "cloudinit", "cloudInitNoCloud": source}, device, secrets, wanted.hostname)


def _text_of(data: bytes) -> tuple[str, bool]:
    """`data` as a document can have it, and whether it is itself: what is not UTF-8 (cloud-init takes user-data that
    is compressed) is base64."""
    try:
        return data.decode(), True
    except UnicodeDecodeError:
        return base64.b64encode(data).decode(), False
