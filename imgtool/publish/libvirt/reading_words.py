"""Looking into domain XML."""

from __future__ import annotations

import re
from typing import NamedTuple
from xml.etree.ElementTree import Element

from imgtool.errors import ConfigError
from imgtool.image.names import printable
from imgtool.publish.libvirt.words import ALIAS, OWN_NAMESPACE, Notes

_UNITS = {"b": 1, "B": 1, "bytes": 1, "KB": 10**3, "k": 1 << 10, "KiB": 1 << 10}
_UNITS |= {"MB": 10**6, "M": 1 << 20, "MiB": 1 << 20}
_UNITS |= {"GB": 10**9, "G": 1 << 30, "GiB": 1 << 30, "TB": 10**12, "T": 1 << 40, "TiB": 1 << 40}


class Found(NamedTuple):
    """A domain, and what of it has no setting."""

    root: Element
    notes: Notes

    @property
    def addressed(self) -> list[str] | None:
        """The ids whose PCI addresses were asked for; None where imgtool did not write the domain: all of them."""
        own = self.root.find(f"metadata/{{{OWN_NAMESPACE}}}machine")
        return None if own is None else own.get("addresses", "").split()


def in_bytes(count: int, unit: str | None) -> int:
    """So many of a unit of libvirt's, which is KiB where none is named."""
    return count * _UNITS.get(unit or "KiB", 1024)


def text_at(root: Element, path: str) -> str | None:
    found = root.find(path)
    return None if found is None else (found.text or "").strip() or None


def attribute(root: Element, path: str, name: str) -> str | None:
    found = root.find(path)
    return None if found is None else found.get(name)


def number(element: Element, name: str) -> int | None:
    """A whole number, also as `0x1f`; None for what is none."""
    return _whole(element.get(name, ""))


def number_at(root: Element, path: str) -> int | None:
    """The number that an element holds. ConfigError where it holds something else."""
    text = text_at(root, path)
    found = None if text is None else _whole(text)
    if text is not None and found is None:
        raise ConfigError(f"<{path.rpartition('/')[2]}> is {printable(text[:80])!r}, which is no number")
    return found


def _whole(text: str) -> int | None:
    """None for a number that nothing can have so many of, too."""
    if re.fullmatch(r"0x[0-9a-fA-F]{1,15}", text):
        return int(text, 16)
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None


def identity(element: Element) -> str | None:
    """The id that stands as the user's own alias."""
    alias = attribute(element, "alias", "name") or ""
    return alias.removeprefix(ALIAS) if alias.startswith(ALIAS) else None


def pci_address(element: Element, found: Found) -> str | None:
    """The slot on the first bus, where the device was put there on purpose."""
    address = element.find("address[@type='pci']")
    if address is None or number(address, "bus") or number(address, "domain"):
        return None
    if found.addressed is not None and identity(element) not in found.addressed:
        return None
    slot, function = number(address, "slot") or 0, number(address, "function") or 0
    return f"{slot:x}" + (f".{function}" if function else "")
