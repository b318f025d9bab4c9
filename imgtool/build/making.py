"""Building one layer: a VM on the layer beneath unless one runs, the steps, the overlay closed and sealed."""

from __future__ import annotations

import contextlib
import os
import time

from imgtool.build.executor import Access, ExecutorError, Kind
from imgtool.build.guest import Guest, Start, kinds_used
from imgtool.build.guestwatch import Trouble
from imgtool.build.keys import KeyDocument
from imgtool.build.layers import (
    Ground,
    Sealing,
    image_name,
    new_overlay,
    reference_to,
    reference_to_folder,
    seal,
    stand_on,
)
from imgtool.build.output import Log
from imgtool.build.recipe import executor_of
from imgtool.build.session import Failure, Session
from imgtool.build.steps import StepFailed, Steps
from imgtool.build.store import LOG, Layer, Work
from imgtool.errors import ImgtoolError, MachineError
from imgtool.image import remembered
from imgtool.image.names import pasted, printable

_WAYS: dict[Kind, str] = {"agent": "the guest agent", "ssh": "SSH", "serial": "the serial port"}


def make_layer(session: Session, number: int, document: KeyDocument, below: Layer | None) -> Layer:
    """Builds the layer `number`, which stands on `below` (None: on the base). Called with its key held.

    What goes wrong is raised once the VM has ended and what was half done is gone, or kept if that was asked for."""
    ground = Ground.of_base(session.inputs.base) if below is None else Ground.of_layer(below)
    try:
        if session.guest is None:
            _boot(session, number, ground)
        began = time.monotonic()
        _do_steps(session, number, document)
        return _close(session, number, document, ground, time.monotonic() - began)
    except ImgtoolError as error:
        guest = session.guest
        trouble = guest.trouble() if guest is not None else None
        if guest is not None and trouble is not None:
            error.message += f"\n{guest.name} was ended: {printable(trouble.text)}"
            error.hint = _hint(session, trouble)
        elif error.hint is None and isinstance(error, StepFailed) and session.tools.on_error == "clean":
            error.hint = _LOOK
        if session.tools.on_error == "keep":
            _keep(session, number, ground, error)
        raise


_LOOK = "--on-error shell opens the guest's console where the step fails, --on-error keep leaves its disk"


def _hint(session: Session, trouble: Trouble) -> str:
    if trouble.part == "disk":
        return f"make room in {printable(session.tools.store.root)} and build again: what is sealed is kept"
    return "what is sealed is kept; --on-error keep leaves the disk as the step left it, to look into"


def _boot(session: Session, number: int, ground: Ground) -> None:
    recipe = session.recipe
    if ground.layer is not None:
        stand_on(session.tools.store, ground.layer, session.inputs.base)
    session.work = session.tools.store.work()
    overlay = new_overlay(
        session.tools.qemu_img,
        session.work,
        recipe.layers[number].name,
        reference_to(ground),
        ground.format,
        session.inputs.disk.size,
    )
    session.tools.watcher.booting(recipe.image.name)
    session.boots += 1
    ways = kinds_used([executor_of(recipe, layer) for layer in recipe.layers[number : session.last + 1]])
    session.guest = session.tools.start(
        Start(
            name=recipe.image.name,
            image=overlay,
            format="qcow2",
            machine=recipe.machine,
            executors=ways,
            folder=session.scratch(),
        )
    )
    if "auto" in ways:
        session.tools.watcher.note(f"steps go in by {_WAYS[session.guest.executor('auto').kind]}")


def _do_steps(session: Session, number: int, document: KeyDocument) -> None:
    layer = session.recipe.layers[number]
    tools = session.tools
    guest, work = _running(session)
    with open(os.path.join(work.path, LOG), "wb") as file:
        log = Log(file, tools.secrets.values(), session.tools.watcher.output)
        steps = Steps(
            session.loaded, ("layer", number), guest, log, secrets=tools.secrets, say=session.tools.watcher.step
        )
        while True:
            try:
                steps.perform(layer, tools.memory, work.path, session.scratch())
                break
            except MachineError as error:
                if tools.on_error != "shell":
                    raise
                guest.let_go()
                if tools.decide(Failure(error, guest, layer.name)) == "give-up":
                    raise
                # Whatever was done there by hand is in this layer, and under those that follow.
                session.by_hand = True
                log.heading("somebody worked in the guest; the layer is tried again")
        log.end_step()
    steps.check_unchanged(layer, tools.memory, document.step.copy)


def _running(session: Session) -> tuple[Guest, Work]:
    assert session.guest is not None
    assert session.work is not None
    return session.guest, session.work


def _close(session: Session, number: int, document: KeyDocument, ground: Ground, seconds: float) -> Layer:
    """Closes the overlay that the guest wrote to and seals it; another takes its place, unless it was the last."""
    guest, work = _running(session)
    layers = session.recipe.layers
    folder = session.tools.store.free_name(document.key())
    if number == session.last:
        guest.power_off()
        session.guest = None
        session.work = None
        return _seal(session, number, document, ground, seconds, work, folder)
    following = session.tools.store.work()
    try:
        overlay = new_overlay(
            session.tools.qemu_img,
            following,
            layers[number + 1].name,
            reference_to_folder(folder, image_name(layers[number].name)),
            "qcow2",
            session.inputs.disk.size,
        )
        _snapshot(session, guest, executor_of(session.recipe, layers[number]), overlay)
    except BaseException:
        session.tools.store.drop(following)
        raise
    session.work = following
    return _seal(session, number, document, ground, seconds, work, folder)


def _snapshot(session: Session, guest: Guest, kind: Access, overlay: str) -> None:
    executor = guest.executor(kind)
    executor.sync()
    try:
        frozen = executor.freeze()
    except ExecutorError as error:
        session.tools.watcher.note(f"the guest does not freeze its file systems ({error.message}); it was synced")
        frozen = False
    try:
        guest.snapshot(overlay)
    finally:
        if frozen:
            executor.thaw()


def _seal(
    session: Session,
    number: int,
    document: KeyDocument,
    ground: Ground,
    seconds: float,
    work: Work,
    folder: str,
) -> Layer:
    tools = session.tools
    sealing = Sealing(
        recipe=session.recipe.image.name,
        layer=session.recipe.layers[number].name,
        document=document,
        ground=ground,
        base=session.inputs.base,
        seconds=round(seconds, 3),
        by_hand=session.by_hand,
        qemu=session.qemu_version(),
    )
    try:
        return seal(session.tools.store, work, folder, sealing, tools.memory, tools.qemu_img)
    except BaseException:
        if os.path.exists(work.path):
            session.tools.store.drop(work)
        raise


def _keep(session: Session, number: int, ground: Ground, error: ImgtoolError) -> None:
    """Leaves what the guest wrote, with its log, and says so in the error."""
    guest, work = session.guest, session.work
    session.guest = session.work = None
    if guest is not None:
        with contextlib.suppress(MachineError, OSError):
            guest.executor(executor_of(session.recipe, session.recipe.layers[number])).sync()
        guest.kill()
    if work is None:
        return
    name = session.recipe.layers[number].name
    if not os.path.exists(os.path.join(work.path, image_name(name))):
        session.tools.store.drop(work)  # the failed layer is gone; this one stands on it
        return
    kept = session.tools.store.keep_failed(work, f"{session.recipe.image.name}-{name}")
    remembered.remember(os.path.join(kept, image_name(name)), ground.image)
    command = f"imgtool boot {pasted(f'{session.loaded.path}@{os.path.basename(kept)}')}"
    error.hint = f"`{command}` boots what was kept; its log is {printable(os.path.join(kept, LOG))}" + (
        f"; {error.hint}" if error.hint else ""
    )
