"""Where a recipe's output is to go, looked at before anything is built: a wrong name should not cost an hour."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from imgtool.build.base import Base, disk_size
from imgtool.build.current import compression_of, options_of
from imgtool.build.inputs import excluded
from imgtool.build.keys import PLACES
from imgtool.build.recipe import Loaded, Output
from imgtool.errors import CommandError, ConfigError, RefusedError
from imgtool.image.links import is_below
from imgtool.image.manifest import SUFFIX
from imgtool.image.names import printable
from imgtool.qemu.img_help import option_help
from imgtool.qemu.img_types import OptionValue
from imgtool.qemu.qemu_img import QemuImg


def check_output(loaded: Loaded, base: Base, qemu_img: QemuImg) -> None:
    """ConfigError, with the line, when an output cannot be made there, or would replace what the recipe needs."""
    for number, output in enumerate(loaded.recipe.outputs):
        wanted = _Wanted(loaded, base, number, output)
        wanted.check_path()
        wanted.check_copies()
        wanted.check_options(qemu_img)


def refuse_replacing(path: str, *, layers: str, force: bool) -> None:
    """RefusedError when images stand on the one that a build would replace, unless `force`. Layers in the store at
    `layers` do not count: they are of recipes that start from it, and are made again from the new one."""
    if force or not os.path.exists(path):
        return
    from imgtool.chain.scan import scan

    images = scan([path]).by_path()
    above = [path]
    for name in above:
        children = images[name].children if name in images else ()
        above += [child for child in children if child not in above]
    broken = next((name for name in above[1:] if not is_below(name, layers)), None)
    if broken is not None:
        raise RefusedError(
            f"{printable(broken)} stands on {printable(path)}, and a new image there would break it",
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


class _Wanted(NamedTuple):
    """One output of a recipe."""

    loaded: Loaded
    base: Base
    number: int
    output: Output

    def check_path(self) -> None:
        path = self.output.path
        place = os.path.realpath(path)
        if not os.path.isdir(os.path.dirname(place)):
            folder = printable(os.path.dirname(path))
            raise self._wrong("path", f"{printable(path)} cannot be made: there is no folder {folder}")
        if os.path.exists(place) and not stat.S_ISREG(os.stat(place).st_mode):
            raise self._wrong("path", f"{printable(path)} is no file that an image could replace")
        for problem, needed in _needed(self.loaded, self.base):
            if os.path.realpath(needed) == place or is_below(place, needed):
                raise self._wrong("path", problem, "give output.path another name")

    def check_copies(self) -> None:
        """ConfigError when a folder that is copied would hold the output or its manifest: the next build would find
        it changed."""
        place = os.path.realpath(self.output.path)
        for layer in self.loaded.recipe.layers:
            for copy in layer.copy:
                folder = os.path.realpath(copy.from_)
                if not is_below(place, folder) and place != folder:
                    continue
                without = excluded(copy)
                inside = os.path.relpath(place, folder)
                if without is not None and without(inside) and without(inside + SUFFIX):
                    continue
                problem = f"the output would be a part of {printable(copy.from_)}, which is copied into it"
                hint = f'put it elsewhere, or leave it out: exclude = ["/{printable(inside)}*"]'
                raise self._wrong("path", problem, hint)

    def check_options(self, qemu_img: QemuImg) -> None:
        output = self.output
        if not output.options:
            return
        for name in output.options:
            if name in _ELSEWHERE:
                raise self._wrong("options", f"output.options cannot hold {name}", _ELSEWHERE[name], at=name)
        known = option_help(qemu_img.programs, output.format)
        for name in output.options if known else ():
            if name not in known:
                from imgtool.machine.options.text import suggestion

                hint = suggestion(name, known)
                raise self._wrong("options", f"{output.format} has no option {printable(name)!r}", hint, at=name)
        self._check_values(qemu_img, known)

    def _check_values(self, qemu_img: QemuImg, known: Mapping[str, str]) -> None:
        """What values an option can have, qemu-img says only when it makes an image: it makes an empty one."""
        output = self.output
        options, compressed = options_of(output), compression_of(output) != "none"
        with tempfile.TemporaryDirectory(prefix="imgtool-") as folder:
            trial = _Trial(qemu_img, output.format, folder, disk_size(self.loaded, self.base))
            together = trial.problem(options, compressed=compressed)
            if together is None or trial.problem({}) is not None:
                return  # what goes wrong without any option is for the build to say
            for name, value in output.options.items():
                alone = trial.problem({name: value})
                if alone is not None:
                    message = f"{output.format} cannot have {printable(f'{name}={value}')}: {alone}"
                    raise self._wrong("options", message, known.get(name), at=name)
            hint = "leave one out"
            if trial.problem(output.options) is None:
                hint = 'compression = "none" goes with them'
                if output.format == "qcow2" and trial.problem(output.options, compressed=True) is None:
                    hint = 'compression = "zlib" goes with them'
            raise self._wrong("options", f"{output.format} cannot have all that at once: {together}", hint)

    def _wrong(self, key: str, message: str, hint: str | None = None, *, at: str | None = None) -> ConfigError:
        line = self.loaded.line("output", self.number, key, *(() if at is None else (at,)))
        return ConfigError(f"{printable(self.loaded.path)}:{line}: {message}", hint=hint, path=self.loaded.path)


class _Trial:
    """Images that are made as the output would be, of a disk that is empty."""

    def __init__(self, qemu_img: QemuImg, format: str, folder: str, size: int) -> None:
        self._qemu_img, self._format, self._size = qemu_img, format, size
        self._source, self._target = os.path.join(folder, "source"), os.path.join(folder, "output")

    def problem(self, options: Mapping[str, OptionValue], *, compressed: bool = False) -> str | None:
        """Why qemu-img makes no such image, in its words; None when it does."""
        size = _SMALL if any(name in options for name in _LARGE) else self._size
        try:
            self._qemu_img.create(self._source, size, format="qcow2", overwrite=True)
            self._qemu_img.convert(
                self._source,
                self._target,
                format="qcow2",
                output_format=self._format,
                options=options,
                compressed=compressed,
                cache="unsafe",
                overwrite=True,
            )
        except CommandError as error:
            words = printable(error.message)
            for before in ("qemu-img: ", f"{self._target}: ", f"error while converting {self._format}: "):
                words = words.removeprefix(before)
            return words
        return None


_LARGE = ("preallocation", "static", "subformat")
"""Options by which an empty image may take as much room as its disk; it is made of a small one then."""
_SMALL = 1 << 20
