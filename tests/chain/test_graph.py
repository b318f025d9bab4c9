"""The pure part of the graph, on graphs of any shape."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from imgtool.chain.graph import depths, descendants, loops

NODES = st.integers(0, 12).map(lambda number: f"/{number}")
PARENTS = st.dictionaries(NODES, st.none() | NODES, max_size=13).map(
    lambda parents: {**{parent: None for parent in parents.values() if parent}, **parents}
)


def steps_to_base(parents: dict[str, str | None], node: str) -> int | None:
    """The plainest way to count, for comparison."""
    current: str | None = node
    for steps in range(len(parents) + 1):
        assert current is not None
        current = parents[current]
        if current is None:
            return steps
    return None


@given(PARENTS)
def test_depth_is_the_number_of_images_beneath(parents: dict[str, str | None]) -> None:
    assert depths(parents) == {node: steps_to_base(parents, node) for node in parents}


@given(PARENTS)
def test_loops_are_exactly_the_nodes_that_lead_back_to_themselves(parents: dict[str, str | None]) -> None:
    found = loops(parents)
    for ring in found:
        assert ring[0] == min(ring)
        assert [parents[node] for node in ring] == [*ring[1:], ring[0]]
    inside = [node for ring in found for node in ring]
    assert len(inside) == len(set(inside))
    returning = set()
    for node in parents:
        current: str | None = parents[node]
        for _ in parents:
            if current is None or current == node:
                break
            current = parents[current]
        if current == node:
            returning.add(node)
    assert set(inside) == returning


@given(PARENTS, st.lists(NODES))
def test_descendants_are_all_that_reach_a_start(parents: dict[str, str | None], starts: list[str]) -> None:
    children: dict[str, list[str]] = {}
    for node, parent in parents.items():
        if parent is not None:
            children.setdefault(parent, []).append(node)
    found = list(descendants(children, starts))
    assert len(found) == len(set(found))
    for node in parents:
        current: str | None = node
        reaches = False
        for _ in range(len(parents) + 1):
            reaches = reaches or current in starts
            current = parents[current] if current is not None else None
        assert (node in found) == reaches


def test_a_chain_of_any_length_needs_no_recursion() -> None:
    parents: dict[str, str | None] = {f"/{number}": f"/{number - 1}" for number in range(1, 200_000)}
    parents["/0"] = None
    assert depths(parents)["/199999"] == 199_999
    assert loops(parents) == []
    parents["/0"] = "/199999"
    assert len(loops(parents)[0]) == 200_000
