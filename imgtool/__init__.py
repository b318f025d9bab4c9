"""imgtool: git and docker-build for virtual machine disks, over stock QEMU.

    import imgtool

    graph = imgtool.scan("images")
    overlay = imgtool.new_overlay("images/base.qcow2")
    imgtool.commit(overlay.path)
    imgtool.QemuImg().create("images/data.qcow2", "10G", format="qcow2")
    imgtool.QemuImg().convert(overlay.path, "release.qcow2", output_format="qcow2", compressed=True)
    imgtool.push("release.qcow2", "registry.example.org/images/release:1")
    imgtool.build_image("web.toml")
    with imgtool.boot("release.qcow2", memory="2G", agent=True) as vm:
        vm.wait("agent")
        vm.execute(["systemctl", "is-system-running"])

What the calls have in common:

* A path is text, bytes or a PathLike; `paths` and `store` are one or several. A size is a number of bytes, or text
  in QEMU's notation (`"10G"`). What is returned has absolute paths, and sizes in bytes.
* `format` is the image's; its header decides when that is None.
* `store` is for folders in which, and below, images that stand on those concerned are looked for, besides the places
  that each call names.
* `force` goes on where RefusedError would be raised for the reasons that the call names.
* `progress` is called with percentages, 0 to 100.
* `qemu_img` is the QemuImg, `programs` the Programs to use; None takes the programs on PATH.
* Calls return structs of `msgspec`. What a field means is said below it in its class, and in what `imgtool schema`
  prints.

Every error is an ImgtoolError; `help(imgtool.errors)` draws the tree. Its `hint` says what to do next, in the words
of the command line. Here `--force` is `force=True`, or `overwrite=True` where a file is to be replaced; other options
are arguments of the same name (`-u` is `unsafe=True`); `--trust WORD` is `with imgtool.trusting("WORD"):`, and
`imgtool chain anchor` is `imgtool.anchor`.

Names are imported when they are first used.
"""

from __future__ import annotations

from imgtool._version import __version__

TYPE_CHECKING = False  # importing it would take longer than all that comes before somebody answers a Ctrl-C
if TYPE_CHECKING:
    from typing import Any

    from imgtool.build.built import Built as Built
    from imgtool.build.lint import lint_image as lint_image
    from imgtool.build.prune import prune_layers as prune_layers
    from imgtool.build.prune import verify_layers as verify_layers
    from imgtool.build.run import build_image as build_image
    from imgtool.build.run import plan_build as plan_build
    from imgtool.build.steps import StepFailed as StepFailed
    from imgtool.build.watcher import Watcher as Watcher
    from imgtool.chain.content import digest_of as digest_of
    from imgtool.chain.diff import diff as diff
    from imgtool.chain.findings import Finding as Finding
    from imgtool.chain.graph import Graph as Graph
    from imgtool.chain.graph import Image as Image
    from imgtool.chain.layers import layers as layers
    from imgtool.chain.scan import scan as scan
    from imgtool.chain.verify import verify as verify
    from imgtool.chain.walk import guard as guard
    from imgtool.chain.walk import walk as walk
    from imgtool.errors import ChainError as ChainError
    from imgtool.errors import CommandCrashed as CommandCrashed
    from imgtool.errors import CommandError as CommandError
    from imgtool.errors import CommandTimeout as CommandTimeout
    from imgtool.errors import ConfigError as ConfigError
    from imgtool.errors import DecodeError as DecodeError
    from imgtool.errors import ImageError as ImageError
    from imgtool.errors import ImageExistsError as ImageExistsError
    from imgtool.errors import ImageFormatError as ImageFormatError
    from imgtool.errors import ImageInUseError as ImageInUseError
    from imgtool.errors import ImageNotFoundError as ImageNotFoundError
    from imgtool.errors import ImageUnreadableError as ImageUnreadableError
    from imgtool.errors import ImgtoolError as ImgtoolError
    from imgtool.errors import MachineError as MachineError
    from imgtool.errors import PolicyError as PolicyError
    from imgtool.errors import ProgramError as ProgramError
    from imgtool.errors import RefusedError as RefusedError
    from imgtool.errors import UsageError as UsageError
    from imgtool.image.header import Header as Header
    from imgtool.image.header import read_header as read_header
    from imgtool.image.inspect import inspect as inspect
    from imgtool.image.policy import Policy as Policy
    from imgtool.image.policy import trusting as trusting
    from imgtool.machine.agent import AgentError as AgentError
    from imgtool.machine.agent import AgentUnavailable as AgentUnavailable
    from imgtool.machine.config import Machine as Machine
    from imgtool.machine.configure import configure as configure
    from imgtool.machine.readiness import NotReady as NotReady
    from imgtool.machine.running import RunningVm as RunningVm
    from imgtool.machine.running import boot as boot
    from imgtool.machine.running import running_vm as running_vm
    from imgtool.machine.running import running_vms as running_vms
    from imgtool.operations.anchor import anchor as anchor
    from imgtool.operations.collect import collect as collect
    from imgtool.operations.commit import commit as commit
    from imgtool.operations.delete import delete as delete
    from imgtool.operations.flatten import flatten as flatten
    from imgtool.operations.move import move as move
    from imgtool.operations.overlay import list_overlays as list_overlays
    from imgtool.operations.overlay import new_overlay as new_overlay
    from imgtool.operations.overlays import new_overlays as new_overlays
    from imgtool.operations.rebase import rebase as rebase
    from imgtool.operations.repair import repair as repair
    from imgtool.operations.reset import reset as reset
    from imgtool.operations.shorten import shorten as shorten
    from imgtool.publish.buildcache import LayerCache as LayerCache
    from imgtool.publish.containerdisk import export_containerdisk as export_containerdisk
    from imgtool.publish.mount import mount as mount
    from imgtool.publish.mount import unmount as unmount
    from imgtool.publish.oci.connection import Connection as Connection
    from imgtool.publish.oci.errors import DigestError as DigestError
    from imgtool.publish.oci.errors import RegistryAuthError as RegistryAuthError
    from imgtool.publish.oci.errors import RegistryError as RegistryError
    from imgtool.publish.oci.errors import RegistryNotFoundError as RegistryNotFoundError
    from imgtool.publish.oci.fetch import fetch as fetch
    from imgtool.publish.oci.pull import pull as pull
    from imgtool.publish.oci.push import push as push
    from imgtool.publish.serve import Server as Server
    from imgtool.publish.serve import serve as serve
    from imgtool.publish.sync.request import sync as sync
    from imgtool.publish.sync.ssh import Ssh as Ssh
    from imgtool.qemu.img_types import ImageOpts as ImageOpts
    from imgtool.qemu.process import Limits as Limits
    from imgtool.qemu.programs import Programs as Programs
    from imgtool.qemu.qemu_img import QemuImg as QemuImg
    from imgtool.qemu.qmp import QmpCommandError as QmpCommandError
    from imgtool.qemu.qmp import QmpUnreachable as QmpUnreachable
    from imgtool.sizes import format_size as format_size
    from imgtool.sizes import parse_size as parse_size

_HOMES = {
    "imgtool.build.built": ("Built",),
    "imgtool.build.lint": ("lint_image",),
    "imgtool.build.prune": ("prune_layers", "verify_layers"),
    "imgtool.build.run": ("build_image", "plan_build"),
    "imgtool.build.steps": ("StepFailed",),
    "imgtool.build.watcher": ("Watcher",),
    "imgtool.chain.content": ("digest_of",),
    "imgtool.chain.diff": ("diff",),
    "imgtool.chain.findings": ("Finding",),
    "imgtool.chain.graph": ("Graph", "Image"),
    "imgtool.chain.layers": ("layers",),
    "imgtool.chain.scan": ("scan",),
    "imgtool.chain.verify": ("verify",),
    "imgtool.chain.walk": ("guard", "walk"),
    "imgtool.errors": (
        "ChainError",
        "CommandCrashed",
        "CommandError",
        "CommandTimeout",
        "ConfigError",
        "DecodeError",
        "ImageError",
        "ImageExistsError",
        "ImageFormatError",
        "ImageInUseError",
        "ImageNotFoundError",
        "ImageUnreadableError",
        "ImgtoolError",
        "MachineError",
        "PolicyError",
        "ProgramError",
        "RefusedError",
        "UsageError",
    ),
    "imgtool.image.header": ("Header", "read_header"),
    "imgtool.image.inspect": ("inspect",),
    "imgtool.image.policy": ("Policy", "trusting"),
    "imgtool.machine.agent": ("AgentError", "AgentUnavailable"),
    "imgtool.machine.config": ("Machine",),
    "imgtool.machine.configure": ("configure",),
    "imgtool.machine.readiness": ("NotReady",),
    "imgtool.machine.running": ("RunningVm", "boot", "running_vm", "running_vms"),
    "imgtool.operations.anchor": ("anchor",),
    "imgtool.operations.collect": ("collect",),
    "imgtool.operations.commit": ("commit",),
    "imgtool.operations.delete": ("delete",),
    "imgtool.operations.flatten": ("flatten",),
    "imgtool.operations.move": ("move",),
    "imgtool.operations.overlay": ("list_overlays", "new_overlay"),
    "imgtool.operations.overlays": ("new_overlays",),
    "imgtool.operations.rebase": ("rebase",),
    "imgtool.operations.repair": ("repair",),
    "imgtool.operations.reset": ("reset",),
    "imgtool.operations.shorten": ("shorten",),
    "imgtool.publish.buildcache": ("LayerCache",),
    "imgtool.publish.containerdisk": ("export_containerdisk",),
    "imgtool.publish.mount": ("mount", "unmount"),
    "imgtool.publish.oci.connection": ("Connection",),
    "imgtool.publish.oci.errors": ("DigestError", "RegistryAuthError", "RegistryError", "RegistryNotFoundError"),
    "imgtool.publish.oci.fetch": ("fetch",),
    "imgtool.publish.oci.pull": ("pull",),
    "imgtool.publish.oci.push": ("push",),
    "imgtool.publish.serve": ("Server", "serve"),
    "imgtool.publish.sync.request": ("sync",),
    "imgtool.publish.sync.ssh": ("Ssh",),
    "imgtool.qemu.img_types": ("ImageOpts",),
    "imgtool.qemu.process": ("Limits",),
    "imgtool.qemu.programs": ("Programs",),
    "imgtool.qemu.qemu_img": ("QemuImg",),
    "imgtool.qemu.qmp": ("QmpCommandError", "QmpUnreachable"),
    "imgtool.sizes": ("format_size", "parse_size"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]  # noqa: PLE0604 - strings all


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'imgtool' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
