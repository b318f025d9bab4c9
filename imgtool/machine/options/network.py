"""`--network`."""

from __future__ import annotations

from typing import Any, get_args

from imgtool.errors import UsageError
from imgtool.image.names import printable
from imgtool.machine.options.fields import build, kinds, scalars
from imgtool.machine.options.text import once, pairs, suggestion
from imgtool.machine.values.network import Address, Network, Nic

_LISTS = ("hostfwd", "guestfwd", "dnssearch")
_ALIASES = {"macaddr": "mac"}

TYPES: dict[str, type[Nic]] = {str(kind.__struct_config__.tag): kind for kind in get_args(Network)}
_END_KEYS = scalars(Address)


def parse_network(text: str) -> Network | None:
    """`user,hostfwd=tcp::2222-:22`, `bridge,br=br0`, `stream,server=on,addr.type=unix,addr.path=…`: a back end with
    QEMU's -netdev keys, and the card's model, mac, queues, addr and bootindex. None for `none`."""
    name, _, rest = text.partition(",")
    name = name.removeprefix("type=")
    if name == "none":
        if rest:
            raise UsageError("--network none takes nothing more")
        return None
    kind = TYPES.get(name)
    if kind is None:
        hint = suggestion(name, [*TYPES, "none"])
        if not hint.endswith("?"):
            hint += "; one made by `imgtool net` is nat,NAME"
        raise UsageError(f"--network has no {printable(name)!r}", hint=hint)
    option = f"--network {name}"
    known = kinds(kind)
    lists = [key for key in _LISTS if key in known]
    ends = {
        key: field for key, field in (("addr", "address"), ("local", "local"), ("remote", "remote")) if field in known
    }
    nested = [f"{key}.{inner}" for key in ends for inner in _END_KEYS]
    first = next((key for key in ("net", "ifname", "br", "path") if key in known and name != "user"), None)
    keys = [*scalars(kind), *lists, *nested, *_ALIASES]
    found = [(_ALIASES.get(key, key), value) for key, value in pairs(option, rest, first=first, keys=keys)]
    words = once(option, found, repeated=lists)
    ready: dict[str, Any] = {key: tuple(value for name_, value in found if name_ == key) for key in lists}
    for key, field in ends.items():
        inner = {
            part.partition(".")[2]: words.pop(part) for part in nested if part in words and part.startswith(f"{key}.")
        }
        if inner:
            ready[field] = build(option, Address, inner)
    if "address" in known and "address" not in ready:
        raise UsageError(f"{option} needs addr.type=", hint="such as addr.type=unix,addr.path=/run/my.sock")
    made: Any = build(option, kind, words, **ready)
    found_network: Network = made
    return found_network


def parse_networks(texts: list[str]) -> tuple[Network, ...]:
    """All `--network` options. UsageError when `none` stands beside another."""
    found = [parse_network(text) for text in texts]
    if None in found and len(found) > 1:
        raise UsageError("--network none leaves no room for another --network")
    return tuple(network for network in found if network is not None)
