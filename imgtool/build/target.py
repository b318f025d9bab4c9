"""Where a recipe's output is to go, looked at before anything is built: a wrong name should not cost an hour."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from imgtool.build.base import Base
from imgtool.build.keys import PLACES
from imgtool.build.recipe import Loaded, Output
from imgtool.errors import ConfigError, RefusedError
from imgtool.image.links import is_below
from imgtool.image.names import printable
from imgtool.qemu.img_help import option_help
from imgtool.qemu.programs import Programs


def check_output(loaded: Loaded, base: Base, programs: Programs) -> None:
    """ConfigError, with the line, when the output cannot be made there, or would replace what the recipe needs."""
    output = loaded.recipe.output
    if output is None:
        return
    place = os.path.realpath(output.path)
    if not os.path.isdir(os.path.dirname(place)):
        folder = printable(os.path.dirname(output.path))
        raise _wrong(loaded, "path", f"{printable(output.path)} cannot be made: there is no folder {folder}")
    if os.path.exists(place) and not stat.S_ISREG(os.stat(place).st_mode):
        raise _wrong(loaded, "path", f"{printable(output.path)} is no file that an image could replace")
    for problem, path in _needed(loaded, base):
        if os.path.realpath(path) == place or is_below(place, path):
            raise _wrong(loaded, "path", problem, "give output.path another name")
    _check_options(loaded, output, programs)


def refuse_replacing(path: str, *, force: bool) -> None:
    """RefusedError when images stand on the one that a build would replace, unless `force`."""
    if force or not os.path.exists(path):
        return
    from imgtool.chain.scan import scan

    image = scan([path]).by_path().get(path)
    if image is not None and image.children:
        raise RefusedError(
            f"{printable(path)} is the backing file of {printable(image.children[0])}, which a new image would break",
            hint="give the recipe another output.path, or --force to replace it anyway",
            path=path,
        )


def _needed(loaded: Loaded, base: Base) -> Iterator[tuple[str, str]]:
    """What goes into the image, files and folders of the host, each with what is wrong with an output there."""
    machine = loaded.recipe.machine
    yield "the output would replace the base it is made from", base.path
    yield "the output would replace the recipe", loaded.path
    named = [getattr(machine, name) for name in ("kernel", "initrd", "dtb", "cdrom", *PLACES)]
    named += [machine.firmware.bios, *(drive.file for drive in machine.drives)]
    if (seed := machine.cloud_init) is not None:
        named += [seed.user_data, seed.meta_data, seed.network_config, *seed.ssh_keys]
    for layer in loaded.recipe.layers:
        named.append(layer.script)
        for copy in layer.copy:
            yield f"the output would be a part of {printable(copy.from_)}, which is copied into it", copy.from_
    for path in named:
        if path is not None:
            yield f"the output would replace {printable(path)}, with which it is made", path


_ELSEWHERE = {
    "backing_file": "thin = true makes an overlay on the base",
    "backing_fmt": "thin = true makes an overlay on the base",
    "data_file": "the output is one file",
    "size": "image.size says it",
}
"""Options of qemu-img that a recipe says in its own words."""


def _check_options(loaded: Loaded, output: Output, programs: Programs) -> None:
    for name in output.options:
        if name in _ELSEWHERE:
            raise _wrong(loaded, "options", f"output.options cannot hold {name}", _ELSEWHERE[name])
    known = option_help(programs, output.format) if output.options else {}
    for name in output.options if known else ():
        if name not in known:
            from imgtool.machine.options.text import suggestion

            hint = suggestion(name, known)
            raise _wrong(loaded, "options", f"{output.format} has no option {printable(name)!r}", hint)


def _wrong(loaded: Loaded, key: str, message: str, hint: str | None = None) -> ConfigError:
    line = loaded.line("output", key)
    return ConfigError(f"{printable(loaded.path)}:{line}: {message}", hint=hint, path=loaded.path)
