"""Making a network: step by step, each written down before it is taken; all of it or nothing."""

from __future__ import annotations

from msgspec.structs import replace

from imgtool.errors import CommandError, ImgtoolError, RefusedError
from imgtool.machine.nets import delete, dnsmasq, forwarding, guard, iproute, journal, needs, store
from imgtool.machine.nets.journal import ForwardingOn
from imgtool.machine.nets.needs import Tools
from imgtool.machine.nets.prepare import Prepared, Request, Step
from imgtool.machine.nets.values import Config, Plan
from imgtool.machine.process import ProcessId
from imgtool.qemu.process import Completed, Limits, Runner, failure, run

_LIMITS = Limits(seconds=30)


def plan(request: Request, *, tools: Tools | None = None, runner: Runner = run) -> Plan:
    """What `create` would run; what is missing to do so is among the warnings."""
    tools = tools or needs.find_tools()
    _check_name_is_free(request.name, tools, runner)
    prepared = request.prepare(tools, runner)
    lacking = needs.lacking(request.programs, tools)
    return Plan(
        network=request.name,
        commands=tuple(step.argv for step in prepared.steps),
        warnings=(*prepared.warnings, *(f"{lack.what}: {lack.fix}" for lack in lacking)),
    )


def create(request: Request, *, tools: Tools | None = None, runner: Runner = run) -> tuple[str, ...]:
    """Makes the network and returns the warnings, after it has undone what a killed imgtool left. MachineError names
    all that is missing at once; RefusedError is said before anything is changed; whatever fails later is undone."""
    tools = tools or needs.find_tools()
    needs.demand(request.programs, tools, "make a network")
    with store.locked() as lock:
        _sweep(lock, tools, runner)
        _check_name_is_free(request.name, tools, runner)
        prepared = request.prepare(tools, runner)
        _make(prepared, lock, tools, runner)
    return prepared.warnings


def _check_name_is_free(name: str, tools: Tools, runner: Runner) -> None:
    """RefusedError when there is a network `name`. One that imgtool died over does not count."""
    entry = store.entry(name)
    if entry is None or entry.meta is None:
        return
    guard.check_made_here(name, entry.meta.namespace, store.namespace())
    if entry.complete is None:
        return
    config = entry.meta.config
    links = iproute.links(tools.ip, runner)
    if any((link.ifname, link.address) == (config.bridge, config.mac) for link in links):
        raise RefusedError(
            f"there is a network {name} already",
            hint=f"`imgtool net show {name}` shows it, `imgtool net delete {name}` removes it",
        )
    raise RefusedError(
        f"there is a network {name} already, whose bridge is gone", hint=f"`imgtool net delete {name}` clears it"
    )


def _make(prepared: Prepared, lock: int, tools: Tools, runner: Runner) -> None:
    """All or nothing: whatever fails or interrupts, what was done is undone, and where even that is cut short the
    next create or delete goes on with it."""
    config = prepared.config
    directory = store.begin(config)
    try:
        for step in prepared.steps:
            _take(step, config, directory, lock, tools, runner)
        store.finish(directory, store.Complete(dnsmasq=_dnsmasq_process(config, directory)))
    except BaseException as error:
        try:
            delete.undo_all(config.name, directory, tools, delete.holding(lock, runner))
        except ImgtoolError as second:
            if isinstance(error, ImgtoolError):
                error.hint = (
                    f"undoing what was done failed, too ({second.message}): "
                    f"`imgtool net delete {config.name}` tries again"
                )
        raise


def _sweep(lock: int, tools: Tools, runner: Runner) -> None:
    """Undoes what an imgtool left that died while making or deleting a network."""
    for entry in store.entries():
        made_here = entry.meta is None or entry.meta.namespace == store.namespace()
        if entry.complete is None and made_here:
            delete.undo_all(entry.name, entry.directory, tools, delete.holding(lock, runner))


def _take(step: Step, config: Config, directory: str, lock: int, tools: Tools, runner: Runner) -> None:
    for record in step.records:
        journal.append(directory, record)
        if isinstance(record, ForwardingOn):
            forwarding.remember(config)
    serves = step.argv[0] == tools.dnsmasq
    # What stays in the background must not keep the lock; it is found by its argv instead.
    done = runner(step.argv, limits=_LIMITS, pass_fds=() if serves else (lock,))
    if done.status != 0:
        raise _dnsmasq_failure(done, directory, config) if serves else failure(done)


def _dnsmasq_failure(done: Completed, directory: str, config: Config) -> CommandError:
    said = done.stderr.decode(errors="replace").strip() or dnsmasq.log_end(directory)
    hint = None
    if "Address already in use" in said:
        hint = (
            "another DNS or DHCP server listens to every address of this host (`ss -lnup` shows it); "
            f"where that is dnsmasq, `bind-dynamic` and `except-interface={config.bridge}` in its configuration help"
        )
    error = failure(replace(done, stderr=said.encode()))
    error.hint = hint
    return error


def _dnsmasq_process(config: Config, directory: str) -> ProcessId | None:
    if config.kind != "nat":
        return None
    pid = dnsmasq.read_pid(directory)
    return None if pid is None else ProcessId.of(pid)
