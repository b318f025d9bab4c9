"""The options that shells complete are those that qemu-img has."""

from __future__ import annotations

import pytest

from imgtool.qemu.img_help import option_help
from imgtool.qemu.option_words import AMENDED, CREATED, LEFT_OUT, Options
from imgtool.qemu.programs import Programs

pytestmark = pytest.mark.matrix

LATER = {
    "qcow2": {"keep_data_file"},
    "luks": {"detached-header"},
    "vmdk": {"toolsversion"},
    "parallels": set(CREATED["parallels"]),
}
"""What not every QEMU has: since 10.2, since 9.0, since 6.0, and Debian's 5.2 makes no such image."""


def check(format: str, words: Options, *, amend: bool) -> None:
    known = {
        name: line for name, line in option_help(Programs(), format, amend=amend).items() if name not in LEFT_OUT
    }
    assert known.keys() <= words.keys()
    assert words.keys() - known.keys() <= LATER.get(format, set())
    switches = {name for name, line in known.items() if "=<bool" in line}
    assert switches == {name for name in known if words[name] == ("on", "off")}


@pytest.mark.parametrize("format", CREATED)
def test_options_of_new_images(format: str) -> None:
    check(format, CREATED[format], amend=False)


@pytest.mark.parametrize("format", AMENDED)
def test_options_that_can_be_amended(format: str) -> None:
    check(format, AMENDED[format], amend=True)
