"""The small words of domain XML."""

from __future__ import annotations

import re
from typing import ClassVar
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from imgtool.errors import ConfigError
from imgtool.image.names import printable
from imgtool.publish import notes
from imgtool.publish.notes import LeftOut

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
OWN_NAMESPACE = "urn:imgtool:domain"
"""Of the element in `<metadata>` that says which PCI addresses were asked for: libvirt gives one to every device."""
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_ALIAS = re.compile(r"[A-Za-z0-9_-]+")
_ADDRESS = re.compile(r"(?:0x)?([0-9a-fA-F]{1,2})(?:\.([0-7]))?")
ALIAS = "ua-"
"""How an alias begins that is the user's own."""


class Notes(notes.Notes):
    no_words: ClassVar[str] = "libvirt has no such setting"


def put(parent: Element, tag: str, text: str | int | None = None, **attributes: str | int | bool | None) -> Element:
    """A new child of `parent`. Attributes that are None are left out; a bool is yes or no. ConfigError for text that
    XML cannot hold."""
    child = ElementTree.SubElement(parent, tag)
    for name, value in attributes.items():
        if value is not None:
            said = ("yes" if value else "no") if isinstance(value, bool) else str(value)
            child.set(name.rstrip("_").replace("__", "-"), _fit(said))
    if text is not None:
        child.text = _fit(str(text))
    return child


def _fit(text: str) -> str:
    if _NOT_XML.search(text):
        raise ConfigError(f"{printable(text)!r} cannot be written in XML", hint="rename it: libvirt cannot name it")
    return text


def switch(value: bool | None) -> str | None:
    """`on` and `off`."""
    return None if value is None else ("on" if value else "off")


def kib(size: int, setting: str, notes: Notes) -> int:
    """`size`, bytes of memory, in libvirt's unit for it."""
    if size % 1024:
        notes.add(setting, "libvirt counts memory in KiB")
    return size // 1024


def letters(number: int) -> str:
    """`a` of 0, `z` of 25, `aa` of 26."""
    text = ""
    number += 1
    while number:
        number, place = divmod(number - 1, 26)
        text = chr(ord("a") + place) + text
    return text


def put_alias(parent: Element, name: str | None, setting: str, notes: Notes) -> None:
    if name is None:
        return
    if _ALIAS.fullmatch(name):
        put(parent, "alias", name=ALIAS + name)
    else:
        notes.add(f"{setting}.id", "libvirt's aliases are of letters, digits, _ and -")


def put_pci(parent: Element, addr: str) -> bool:
    """The PCI address that `5` or `5.1` is on the first bus; False for what is none."""
    match = _ADDRESS.fullmatch(addr)
    if match is None:
        return False
    function = f"0x{match[2] or 0}"
    put(parent, "address", type="pci", domain="0x0000", bus="0x00", slot=f"0x{match[1]:0>2}", function=function)
    return True


__all__ = [
    "ALIAS",
    "OWN_NAMESPACE",
    "QEMU_NAMESPACE",
    "LeftOut",
    "Notes",
    "kib",
    "letters",
    "put",
    "put_alias",
    "put_pci",
    "switch",
]
