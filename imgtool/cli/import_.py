"""`imgtool import …`: machines from other engines."""

from __future__ import annotations

import click

from imgtool.cli.lazy import Entry, LazyGroup

SECTIONS = {
    "Commands": {
        "libvirt": Entry("imgtool.cli.import_libvirt:libvirt", "Write a libvirt domain as a machine profile."),
    },
}


@click.group("import", cls=LazyGroup, sections=SECTIONS)
def import_() -> None:
    """Import machine profiles from libvirt."""
