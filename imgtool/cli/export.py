"""`imgtool export …`: images and machines for other engines."""

from __future__ import annotations

import click

from imgtool.cli.lazy import Entry, LazyGroup

SECTIONS = {
    "Commands": {
        "containerdisk": Entry(
            "imgtool.cli.export_containerdisk:containerdisk", "Make a KubeVirt containerDisk from an image."
        ),
        "kubevirt": Entry("imgtool.cli.export_kubevirt:kubevirt", "Write a machine as KubeVirt manifests."),
        "libvirt": Entry("imgtool.cli.export_libvirt:libvirt", "Write or define a machine as a libvirt domain."),
    },
}


@click.group(cls=LazyGroup, sections=SECTIONS)
def export() -> None:
    """Export images and machines: KubeVirt containerDisks and manifests, libvirt domains."""
