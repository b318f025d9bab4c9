"""What the types of a recipe do not say of it."""

from __future__ import annotations

import os
import re

from imgtool.build.arguments import NAME
from imgtool.build.recipe import Check, Duration, Layer, Output, Recipe, seconds_of
from imgtool.image.names import printable
from imgtool.machine.profile import Path as Place
from imgtool.machine.profile import Wrong

_CALLED = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
_OWNER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
_STEPS = ("copy", "run", "script", "reboot", "wait", "seal", "fetch")


def check(recipe: Recipe) -> None:
    """What the types do not say. Wrong, with the place, for the first thing that is not right."""
    if not _CALLED.fullmatch(recipe.image.name):
        raise Wrong(("image", "name"), f"image.name cannot be {printable(recipe.image.name)!r}", _NAME_HINT)
    for name, pin, length in (("sha256", recipe.image.sha256, 64), ("sha512", recipe.image.sha512, 128)):
        if pin is not None and not re.fullmatch(rf"[0-9a-fA-F]{{{length}}}", pin):
            raise Wrong(("image", name), f"image.{name} is not {length} hexadecimal digits")
    _check_ready(recipe.machine.ready)
    seen: dict[str, int] = {}
    for number, layer in enumerate(recipe.layers):
        place: Place = ("layer", number)
        if not _CALLED.fullmatch(layer.name):
            raise Wrong((*place, "name"), f"a layer cannot be called {printable(layer.name)!r}", _NAME_HINT)
        if layer.name in seen:
            raise Wrong((*place, "name"), f"two layers are called {layer.name!r}", "give one of them another name")
        seen[layer.name] = number
        _check_layer(layer, place)
        _check_variables(layer, place, recipe)
    _check_duration(("machine", "boot-timeout"), recipe.machine.boot_timeout)
    for number, check in enumerate(recipe.checks):
        _check_duration(("check", number, "timeout"), check.timeout)
        _check_variables(check, ("check", number), recipe)
        if not check.run:
            raise Wrong(("check", number), "a check that runs nothing", "give it run = [COMMAND, …]")
    for number, output in enumerate(recipe.outputs):
        _check_output(output, ("output", number))
        if os.path.normpath(output.path) in [os.path.normpath(other.path) for other in recipe.outputs[:number]]:
            raise Wrong(
                ("output", number, "path"), f"two outputs are {printable(output.path)}", "give one another name"
            )
    if recipe.checks and not recipe.outputs:
        raise Wrong(("check", 0), "checks try out the output, and there is none", "add [output] with its path")


def _check_output(output: Output, place: Place) -> None:
    thin = output.thin or output.flatten is False
    if not output.path:
        raise Wrong((*place, "path"), "output.path is empty")
    if output.thin and output.flatten:
        raise Wrong((*place, "thin"), "output.thin and output.flatten exclude each other", "leave one out")
    if thin and output.format != "qcow2":
        raise Wrong((*place, "format"), "an overlay on the base (output.thin) is always a qcow2")
    compressing = ("qcow2",) if output.compression == "zstd" else ("qcow2", "qcow", "vmdk")
    if output.compression not in (None, "none") and output.format not in compressing:
        raise Wrong(
            (*place, "compression"),
            f"{output.format} knows no compression by {output.compression}",
            f"{', '.join(compressing)} does; else leave it out",
        )


_NAME_HINT = "letters, digits and `_.+-` after a letter or digit, at most 64 of them"


def _check_layer(layer: Layer, place: Place) -> None:
    if not any(getattr(layer, step) for step in _STEPS):
        raise Wrong(place, f"the layer {layer.name!r} does nothing", f"give it one of: {', '.join(_STEPS)}")
    if layer.interpreter and layer.script is None:
        raise Wrong((*place, "interpreter"), "interpreter is for a script", "add script = FILE next to it")
    for number, copy in enumerate(layer.copy):
        at = (*place, "copy", number)
        if not copy.to.startswith("/"):
            raise Wrong((*at, "to"), f"{printable(copy.to)!r} is not an absolute path in the guest")
        if copy.mode is not None and not re.fullmatch(r"0?[0-7]{3,4}", copy.mode):
            raise Wrong((*at, "mode"), f"{printable(copy.mode)!r} is not an octal mode", 'such as "0644"')
        if copy.owner is not None and not _OWNER.fullmatch(copy.owner):
            raise Wrong((*at, "owner"), f"{printable(copy.owner)!r} is not an owner", "`user` or `user:group`")
    for number, fetch in enumerate(layer.fetch):
        if not fetch.from_.startswith("/"):
            raise Wrong(
                (*place, "fetch", number, "from"), f"{printable(fetch.from_)!r} is not an absolute path in the guest"
            )
    for name in layer.secrets:
        if not NAME.fullmatch(name):
            raise Wrong((*place, "secrets"), f"{printable(name)!r} cannot be the name of a variable")
        if name in layer.env or name in layer.args:
            there = "env" if name in layer.env else "args"
            raise Wrong(
                (*place, "secrets"), f"{name} is in {there} too, which is written down", "leave it in one place"
            )
    _check_duration((*place, "max-age"), layer.max_age)
    _check_duration((*place, "timeout"), layer.timeout)


def _check_ready(ready: str | None) -> None:
    if ready is None or ready in ("agent", "ssh", "cloud-init"):
        return
    kind, colon, pattern = ready.partition(":")
    if kind != "serial" or not colon:
        raise Wrong(
            ("machine", "ready"),
            f"machine.ready cannot be {printable(ready)!r}",
            "agent, ssh, cloud-init, or serial:REGEX",
        )
    try:
        re.compile(pattern)
    except re.error as error:
        raise Wrong(("machine", "ready"), f"{printable(pattern)!r} is no regular expression: {error}") from None


def _check_variables(step: Layer | Check, place: Place, recipe: Recipe) -> None:
    for name in step.env:
        if not NAME.fullmatch(name):
            raise Wrong((*place, "env", name), f"{printable(name)!r} cannot be the name of a variable")
    for name in step.args:
        if name not in recipe.args:
            known = f"[args] has: {', '.join(recipe.args)}" if recipe.args else "[args] declares them"
            raise Wrong((*place, "args"), f"there is no argument {printable(name)!r}", known)
        if name in step.env:
            raise Wrong((*place, "args"), f"{name} is in env too", "leave it in one place")


def _check_duration(place: Place, duration: Duration | None) -> None:
    try:
        seconds = 1.0 if duration is None else seconds_of(duration)
    except (ValueError, OverflowError):
        raise Wrong(
            place, f"{printable(str(duration))!r} is not a duration", "such as 90s, 30m, 12h, 7d, 2w"
        ) from None
    if seconds < 0 or (seconds == 0 and place[-1] != "max-age"):
        raise Wrong(place, f"{place[-1]} cannot be {duration}", "such as 90s, 30m, 12h, 7d, 2w")
