"""Looking into domain XML."""

from __future__ import annotations

import re
from typing import NamedTuple
from xml.etree.ElementTree import Element

from imgtool.publish.libvirt.words import ALIAS, OWN_NAMESPACE, Notes


class Found(NamedTuple):
    """A domain, and what of it has no setting."""

    root: Element
    notes: Notes

    @property
    def addressed(self) -> list[str] | None:
        """The ids whose PCI addresses were asked for; None where imgtool did not write the domain: all of them."""
        own = self.root.find(f"metadata/{{{OWN_NAMESPACE}}}machine")
        return None if own is None else own.get("addresses", "").split()


def text_at(root: Element, path: str) -> str | None:
    found = root.find(path)
    return None if found is None else (found.text or "").strip() or None


def attribute(root: Element, path: str, name: str) -> str | None:
    found = root.find(path)
    return None if found is None else found.get(name)


def number(element: Element, name: str) -> int | None:
    """A whole number, also as `0x1f`."""
    text = element.get(name, "")
    if re.fullmatch(r"0x[0-9a-fA-F]+", text):
        return int(text, 16)
    return int(text) if re.fullmatch(r"-?[0-9]+", text) else None


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
