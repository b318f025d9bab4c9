"""CPU topologies: what is worked out, and which product is wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgtool.errors import ConfigError
from imgtool.machine.describe import topology_words
from imgtool.machine.options.processor import parse_smp
from imgtool.machine.smp import Topology, topology
from imgtool.machine.values.processor import Smp


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # cpus, maxcpus, sockets, dies, clusters, cores, threads
        ("1", (1, 1, 1, 1, 1, 1, 1)),
        ("8", (8, 8, 1, 1, 1, 8, 1)),
        ("8,sockets=2", (8, 8, 2, 1, 1, 4, 1)),
        ("8,cores=2", (8, 8, 4, 1, 1, 2, 1)),
        ("8,threads=2", (8, 8, 1, 1, 1, 4, 2)),
        ("8,sockets=2,cores=2", (8, 8, 2, 1, 1, 2, 2)),
        ("2,maxcpus=8", (2, 8, 1, 1, 1, 8, 1)),
        ("maxcpus=8,sockets=2,threads=2", (8, 8, 2, 1, 1, 2, 2)),
        ("sockets=2,cores=3", (6, 6, 2, 1, 1, 3, 1)),
        ("16,dies=2,threads=2", (16, 16, 1, 2, 1, 4, 2)),
        ("16,clusters=2,sockets=2", (16, 16, 2, 1, 2, 4, 1)),
    ],
)
def test_what_is_left_out_is_worked_out_as_qemu_does(text: str, expected: tuple[int, ...]) -> None:
    assert topology(parse_smp(text)) == Topology(*expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "sockets=32,cores=4,threads=2,maxcpus=128",
            r"sockets\(32\) × cores\(4\) × threads\(2\) = 256 ≠ maxcpus\(128\)",
        ),
        ("7,sockets=2", r"sockets\(2\) × cores\(3\) × threads\(1\) = 6 ≠ cpus\(7\)"),
        ("2,dies=4", r"sockets\(1\) × dies\(4\) × cores\(1\) × threads\(1\) = 4 ≠ cpus\(2\)"),
        ("4,maxcpus=2", r"cpus\(4\) is more than maxcpus\(2\)"),
    ],
)
def test_a_contradiction_says_which_product_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        topology(parse_smp(text))


_NUMBER = st.one_of(st.none(), st.integers(1, 64))


@given(st.builds(Smp, cpus=_NUMBER, maxcpus=_NUMBER, sockets=_NUMBER, dies=_NUMBER, cores=_NUMBER, threads=_NUMBER))
def test_a_topology_adds_up_and_keeps_what_was_said(smp: Smp) -> None:
    try:
        found = topology(smp)
    except ConfigError:
        return
    assert found.sockets * found.dies * found.clusters * found.cores * found.threads == found.maxcpus
    assert 1 <= found.cpus <= found.maxcpus
    for name in ("cpus", "maxcpus", "sockets", "dies", "cores", "threads"):
        said = getattr(smp, name)
        assert said is None or said == getattr(found, name)
    assert topology(Smp(**{name: getattr(found, name) for name in found.__struct_fields__})) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1", "1 logical CPU: 1 socket × 1 core × 1 thread"),
        (
            "4,sockets=2,threads=2,maxcpus=8",
            "8 logical CPUs: 2 sockets × 2 cores × 2 threads; 4 of them plugged in at the start",
        ),
        ("8,dies=2", "8 logical CPUs: 1 socket × 2 dies × 4 cores × 1 thread"),
    ],
)
def test_a_topology_in_words(text: str, words: str) -> None:
    assert topology_words(topology(parse_smp(text))) == words
