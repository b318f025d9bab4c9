from __future__ import annotations

import errno

import pytest

from imgtool.machine.config import Machine
from imgtool.machine.ports import Port, port_failure, taken
from imgtool.machine.values.devices import Display
from imgtool.machine.values.network import User

FORWARDING = Machine(networks=(User(hostfwd=("tcp::80-:80", "tcp::8022-:22")),))


@pytest.mark.parametrize(
    ("obstacles", "message", "hint"),
    [
        ({80: errno.EACCES}, "tcp port 80 of 127.0.0.1 is not for this user: web cannot forward it", "above 1023"),
        ({8022: errno.EADDRINUSE}, "tcp port 8022 of 127.0.0.1 is in use: web cannot forward it", "`ss -ap"),
    ],
)
def test_a_port_that_a_machine_cannot_have_is_named(obstacles: dict[int, int], message: str, hint: str) -> None:
    failure = port_failure(FORWARDING, "web", listen=lambda port: obstacles.get(port.number))
    assert failure is not None
    assert failure.message == message
    assert hint in (failure.hint or "")


@pytest.mark.parametrize(
    ("display", "number", "said"),
    [
        (Display(type="vnc", display=3, websocket=True), 5703, "choose another websocket=;"),
        (Display(type="vnc", display=3, websocket=80), 80, "choose another websocket=;"),
        (Display(type="spice", port=5930, tls_port=5931), 5931, "choose another port=;"),
    ],
)
def test_every_port_of_a_screen_is_looked_at(display: Display, number: int, said: str) -> None:
    obstacles = {number: errno.EADDRINUSE}
    failure = port_failure(Machine(display=display), "web", listen=lambda port: obstacles.get(port.number))
    assert failure is not None
    assert f"tcp port {number} of 127.0.0.1 is in use: web cannot show its screen" in failure.message
    assert said in (failure.hint or "")


def test_ports_that_can_be_had_are_not_why_it_did_not_start() -> None:
    assert port_failure(FORWARDING, "web", listen=lambda port: None) is None


def test_a_low_port_to_serve_on_is_said_to_be_roots() -> None:
    failure = taken(Port("tcp", "127.0.0.1", 80, "nbd"), "qemu-nbd", listen=lambda _: errno.EACCES)
    assert failure is not None
    assert (failure.message, failure.hint) == (
        "tcp port 80 of 127.0.0.1 is not for this user: qemu-nbd cannot serve there",
        "choose another --port, with a port above 1023: the others are root's",
    )
