"""The documents of `--output json` that no floor below has a type for: lists, and what a command puts together."""

from __future__ import annotations

from typing import Any

import msgspec

from imgtool.build.prune import Kept, Verified
from imgtool.build.sharing import Shared
from imgtool.build.store import Manifest
from imgtool.machine.control import Status
from imgtool.machine.doctor import Check
from imgtool.machine.nets.values import Network
from imgtool.qemu.capabilities import CpuModel, DeviceType, MachineType

Checks = list[Check]
"""`doctor`"""
Layers = list[Manifest]
"""`layers tree`, oldest first"""
VerifiedLayers = list[Verified]
SharedLayers = list[Shared]
"""`layers push` and `layers pull`"""
Vms = list[Status]
Networks = list[Network]
MachineTypes = list[MachineType]
"""`boot --machine help`"""
NicModels = list[DeviceType]
"""`boot --nic-model help`"""


class KeptLayers(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `layers list`."""

    layers: tuple[Kept, ...]
    """Oldest first."""
    failed: tuple[str, ...]
    """The folders of failed layers that were kept."""


class LayerShown(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The answer of `layers show`."""

    path: str
    """Its folder."""
    manifest: Manifest
    """What the layer is."""
    key_document: dict[str, Any]
    """Everything that went into the layer's key."""
    log: str
    """What its steps wrote, escaped for a terminal."""


class Launched(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `boot --detach`, once the guest is as far as --wait says."""

    name: str
    """The VM's, for `imgtool vm`."""
    accelerator: str
    """What runs the guest: kvm, tcg, …"""


class Executed(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The answer of `vm exec`, which exits with the same status."""

    exit_status: int
    """The program's; 128 and the signal's number where one ended it."""
    stdout: str
    """What is not UTF-8 is replaced."""
    stderr: str
    """As stdout."""
    truncated: bool
    """The guest agent cut stdout or stderr off."""


class NetworkDeleted(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `net delete`."""

    deleted: str
    """The network's name."""


class CpuModels(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `boot --cpu help`."""

    models: tuple[CpuModel, ...]
    """Those of this QEMU."""
    features: tuple[str, ...]
    """The names that may follow a model as `+FEATURE` or `-FEATURE`."""
