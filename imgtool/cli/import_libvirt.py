"""`imgtool import libvirt DOMAIN`"""

from __future__ import annotations

import click

from imgtool.cli.context import Context, output_option, pass_context, quiet_option
from imgtool.cli.options import FILE_NAME


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool import libvirt web > vm.toml && imgtool boot --profile vm.toml\n"
    "  imgtool import libvirt web --connect qemu+ssh://root@host/system -o web.toml\n"
    "  imgtool import libvirt ./web.xml",
)
@click.argument("domain", type=FILE_NAME, metavar="DOMAIN")
@click.option("-c", "--connect", "uri", metavar="URI", help="The libvirt that defines it.  [default: virsh's own]")
@click.option("-o", "--output-file", "target", type=FILE_NAME, metavar="FILE", help="Write the profile to this file.")
@quiet_option
@output_option()
@pass_context
def libvirt(context: Context, domain: str, uri: str | None, target: str | None) -> None:
    """Write the domain DOMAIN (or the XML in a file: a name with a slash or ending in .xml) as a profile for
    `imgtool boot --profile`.

    Settings of the domain that a profile cannot express are reported on stderr.
    """
    from imgtool.cli.output import emit, warn
    from imgtool.errors import ConfigError
    from imgtool.image.names import absolute, printable
    from imgtool.machine.profile import read_text
    from imgtool.publish.libvirt.define import write_file
    from imgtool.publish.libvirt.reading import read_domain
    from imgtool.publish.libvirt.toml import to_toml
    from imgtool.publish.libvirt.virsh import dump, need_virsh

    if "/" in domain or domain.endswith(".xml"):
        text = read_text(domain, "a domain")
        try:
            found = read_domain(text)
        except ConfigError as error:
            error.message, error.path = f"{printable(domain)}: {error.message}", absolute(domain)
            raise
    else:
        need_virsh()
        found = read_domain(dump(domain, uri))
    profile = to_toml(found.machine)
    if target is not None:
        write_file(absolute(target), profile.encode())
    for one in found.left_out:
        warn(context, f"{one.setting} is left out: {one.reason}")
    emit(context, found, [printable(absolute(target))] if target is not None else profile.rstrip("\n").split("\n"))
