"""`imgtool vm set-cpus` and `vm set-memory`."""

from __future__ import annotations

import click

from imgtool.cli.context import Context, output_option, pass_context
from imgtool.cli.vm import name_argument


@click.command(
    "set-cpus",
    epilog="\b\nExamples:\n  imgtool boot -d web.qcow2 --name web --smp 2,maxcpus=8\n  imgtool vm set-cpus web 4",
)
@name_argument
@click.argument("number", type=int, metavar="N")
@output_option()
@pass_context
def set_cpus(context: Context, /, name: str, number: int) -> None:
    """Hot-plug CPUs into NAME until it has N, at most the maxcpus= it was booted with."""
    from imgtool.cli.output import emit
    from imgtool.machine import plugging
    from imgtool.machine.runtime import find

    have = plugging.set_cpus(find(name)[0], number)
    emit(context, plugging.CpusSet(name=name, cpus=have), [f"{name}: {have} CPUs"])


@click.command(
    "set-memory",
    epilog="\b\nExamples:\n"
    "  imgtool boot -d web.qcow2 --name web --memory 2G,slots=4,maxmem=16G\n"
    "  imgtool vm set-memory web 4G\n"
    "  imgtool vm set-memory web 6G --node 1",
)
@name_argument
@click.argument("size", metavar="SIZE")
@click.option("--node", type=int, metavar="N", help="The NUMA node to give it to.  [default: the first]")
@output_option()
@pass_context
def set_memory(context: Context, /, name: str, size: str, node: int | None) -> None:
    """Hot-plug memory into NAME until it has SIZE, at most the maxmem= it was booted with. Each time takes one of its
    slots=.

    Some guests use it by themselves; in others it has to be put to use (`chmem -e` there).
    """
    from imgtool.cli.output import emit
    from imgtool.machine import plugging
    from imgtool.machine.runtime import find
    from imgtool.sizes import format_size

    wanted = plugging.parse_memory(size)
    have = plugging.set_memory(*find(name), wanted, node=node)
    emit(context, plugging.MemorySet(name=name, memory=have), [f"{name}: {format_size(have)}"])
