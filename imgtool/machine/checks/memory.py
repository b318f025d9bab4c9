"""Memory and hugepages."""

from __future__ import annotations

from imgtool.errors import ConfigError
from imgtool.image.names import pasted, printable
from imgtool.machine.checks.context import Context, Problems, attempt
from imgtool.machine.compile.memory import memory_size, node_sizes
from imgtool.machine.host import HugepagePool
from imgtool.machine.values.processor import Hugepages
from imgtool.sizes import format_size

_MOST_SLOTS = 256
"""QEMU: ACPI_MAX_RAM_SLOTS."""
_PAGE = 4096


def check_memory(context: Context) -> Problems:
    memory, size = context.machine.memory, memory_size(context.machine)
    if size == 0:
        yield ConfigError("--memory 0 leaves the guest nothing to run in", hint="--memory 1G suits most guests")
    elif size % _PAGE:
        yield ConfigError(f"--memory {size} bytes is not a whole number of 4 KiB pages", hint="write it with M or G")
    if memory.maxmem is not None:
        yield from _maxmem(context, size, memory.maxmem)
    elif memory.slots:
        yield ConfigError(
            f"--memory slots={memory.slots} without maxmem: slots are for memory plugged in later",
            hint=f"say how far it may grow, such as maxmem={format_size(size * 2)}",
        )
    total = context.host.memory_total
    if total is not None and size > total and not context.force:
        yield ConfigError(
            f"--memory {format_size(size)} is more than this host has: {format_size(total >> 20 << 20)}",
            hint="--force starts it anyway, with swap as its memory",
        )


def _maxmem(context: Context, size: int, most: int) -> Problems:
    slots = context.machine.memory.slots
    if most < size:
        yield ConfigError(
            f"--memory {format_size(size)} is more than its maxmem, {format_size(most)}",
            hint="maxmem is the larger one",
        )
    elif most > size and not slots:
        yield ConfigError(
            f"--memory maxmem={format_size(most)} without slots: memory could never be plugged in",
            hint="slots=N says how many modules may be added, such as slots=4",
        )
    if slots is not None and slots > _MOST_SLOTS:
        yield ConfigError(f"--memory slots={slots}: a machine has at most {_MOST_SLOTS} slots")
    if most > size and not context.board.hotplug_memory:
        yield ConfigError(
            f"machine {context.board.name} cannot plug memory in while it runs", hint="leave maxmem and slots out"
        )


def check_hugepages(context: Context) -> Problems:
    pages, mount = context.machine.hugepages, context.host.hugepages
    if pages is None:
        return
    if mount is None:
        yield _no_mount(context, pages)
        return
    page_size = pages.page_size or mount.page_size
    if pages.page_size is not None and pages.page_size & (pages.page_size - 1):
        yield ConfigError(f"--hugepages page-size={pages.page_size} is not a power of two", hint="x86 has 2M and 1G")
        return
    if pages.page_size not in (None, mount.page_size):
        yield ConfigError(
            f"the pages of {mount.path} are {format_size(mount.page_size)}, not {format_size(pages.page_size or 0)}",
            hint="mount another: mkdir -p /mnt/huge && mount -t hugetlbfs "
            f"-o pagesize={format_size(pages.page_size or 0)} none /mnt/huge",
        )
    for size in _parts(context):
        if size % page_size:
            yield ConfigError(
                f"memory of {format_size(size)} is not a whole number of {format_size(page_size)} hugepages",
                hint=f"say --memory {format_size(-(-size // page_size) * page_size)}",
            )
    size = memory_size(context.machine)
    if mount.free is not None and mount.free < size and pages.prealloc is not False:
        yield ConfigError(
            f"only {format_size(mount.free)} of hugepages are free, and the machine's memory is {format_size(size)}",
            hint=f"`{_reserving(context, page_size, mount.free)}` reserves more",
        )


def _no_mount(context: Context, pages: Hugepages) -> ConfigError:
    mounts = [mount for mount in context.host.hugepage_mounts if pages.page_size in (None, mount.page_size)]
    of_size = f" with pages of {format_size(pages.page_size)}" if pages.page_size else ""
    if pages.path is None:
        message = f"--hugepages: this host has no hugetlbfs mount{of_size}"
    else:
        message = f"--hugepages: {printable(pages.path)} is not a hugetlbfs mount{of_size}"
    if pages.path is not None and mounts:
        page_size = mounts[0].page_size
        hint = f"`--hugepages={pasted(mounts[0].path)}` names one, with pages of {format_size(page_size)}"
    else:
        page_size = pages.page_size or _USUAL_PAGE
        where = pasted(pages.path or "/dev/hugepages")
        option = f"-o pagesize={format_size(pages.page_size)} " if pages.page_size else ""
        hint = f"`mkdir -p {where} && mount -t hugetlbfs {option}none {where}` mounts one"
    pool = _pool(context, page_size)
    if pool.free < memory_size(context.machine):
        hint += f"; `{_reserving(context, page_size, pool.free)}` reserves pages"
    return ConfigError(message, hint=hint)


_USUAL_PAGE = 2 << 20


def _pool(context: Context, page_size: int) -> HugepagePool:
    nothing = HugepagePool(page_size=page_size, free=0, total=0)
    return next((pool for pool in context.host.hugepage_pools if pool.page_size == page_size), nothing)


def _reserving(context: Context, page_size: int, free: int) -> str:
    """The command by which the host has as many free pages as the machine takes, beside those that others use."""
    lacking = memory_size(context.machine) - free
    count = -(-lacking // page_size) + _pool(context, page_size).total // page_size
    if page_size == _USUAL_PAGE:
        return f"sysctl vm.nr_hugepages={count}"
    return f"echo {count} > /sys/kernel/mm/hugepages/hugepages-{page_size // 1024}kB/nr_hugepages"


def _parts(context: Context) -> list[int]:
    """The pieces that memory backends are made of."""
    if not context.machine.numa.nodes:
        return [memory_size(context.machine)]
    return attempt(lambda: node_sizes(context.machine), []) or []
