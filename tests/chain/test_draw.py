"""Pictures of graphs: pure text, compared whole."""

from __future__ import annotations

import msgspec

from imgtool.chain.draw import ASCII, MAX_INDENT, to_dot, to_mermaid, tree
from imgtool.chain.findings import finding
from imgtool.chain.graph import Graph, Image


def picture(graph: Graph, **options: object) -> list[str]:
    lines = []
    for line in tree(graph, **options):  # type: ignore[arg-type]
        words = line.name or (line.finding.code if line.finding else f"{line.more} more")
        lines.append(f"{line.prefix}{words}{f' [{line.role}]' if line.role else ''}")
    return lines


def graph_of(parents: dict[str, str | None], roots: list[str]) -> Graph:
    children: dict[str, list[str]] = {}
    for path, parent in parents.items():
        if parent is not None:
            children.setdefault(parent, []).append(path)
    images = [
        Image(path=path, format="qcow2", parent=parent, children=children.get(path, ()))
        for path, parent in sorted(parents.items())
    ]
    return Graph(images=images, roots=roots, findings=[])


FOREST = graph_of(
    {
        "/s/base": None,
        "/s/a": "/s/base",
        "/s/a1": "/s/a",
        "/s/a2": "/s/a",
        "/s/sub/b": "/s/base",
        "/other/c": "/s/sub/b",
        "/s/alone": None,
    },
    ["/s/alone", "/s/base"],
)


def test_the_base_is_the_root_and_overlays_are_its_branches() -> None:
    assert picture(FOREST, start="/s") == [
        "alone",
        "base",
        "├─ a",
        "│  ├─ a1",
        "│  └─ a2",
        "└─ sub/b",
        "   └─ /other/c",
    ]


def test_a_name_under_the_directory_can_be_typed_there_wherever_its_parent_lies() -> None:
    graph = graph_of(
        {
            "/s/bases/base": None,
            "/s/web": "/s/bases/base",
            "/s/bases/web": "/s/bases/base",
            "/other/base": None,
            "/other/web": "/other/base",
            "/s/far": "/other/base",
        },
        ["/other/base", "/s/bases/base"],
    )
    assert picture(graph, start="/s") == [
        "/other/base",
        "├─ web",
        "└─ /s/far",
        "bases/base",
        "├─ web",
        "└─ bases/web",
    ]


def test_a_tree_can_be_drawn_in_ascii() -> None:
    assert picture(FOREST, style=ASCII)[1:4] == ["/s/base", "|- a", "|  |- a1"]


def test_findings_stand_below_their_image_inside_its_branch() -> None:
    graph = graph_of({"/base": None, "/a": "/base", "/b": "/base"}, ["/base"])
    for image in graph.images:
        image.add(finding("too-deep", "deep"))
    assert picture(graph) == ["/base", "│  too-deep", "├─ a", "│     too-deep", "└─ b", "      too-deep"]


def test_a_cycle_is_drawn_once_around() -> None:
    graph = graph_of({"/a": "/c", "/b": "/a", "/c": "/b", "/tail": "/b"}, ["/a"])
    assert picture(graph) == ["/a", "└─ b", "   ├─ c", "   │  └─ a [again]", "   └─ tail"]


def test_a_data_file_stands_below_its_owner() -> None:
    graph = graph_of({"/base": None, "/top": "/base", "/data": None}, ["/base"])
    graph.images[1].data_file_of = ["/base"]
    assert picture(graph) == ["/base", "├─ data [data-file]", "└─ top"]


def test_children_left_out_are_counted() -> None:
    graph = graph_of({"/base": None, "/top": "/base"}, ["/base"])
    graph.images[0].other_children = 7
    assert picture(graph) == ["/base", "├─ 7 more", "└─ top"]


def test_a_deep_chain_stays_narrow_and_numbers_its_levels() -> None:
    length = 5000
    parents: dict[str, str | None] = {f"/{number:04}": f"/{number - 1:04}" for number in range(1, length)}
    parents["/0000"] = None
    lines = picture(graph_of(parents, ["/0000"]))
    assert len(lines) == length
    assert lines[-1].endswith("└─ (4999) 4999")
    assert max(map(len, lines)) < MAX_INDENT * 3 + 20


HOSTILE = '/a"b\\c\n<i>&amp;%%{init}`;#_.qcow2'


def test_dot_escapes_what_dot_would_read() -> None:
    graph = graph_of({HOSTILE: None, "/top": HOSTILE}, [HOSTILE])
    graph.images[1].add(finding("cycle", "…"))
    graph.images[0].data_file = msgspec.UNSET
    assert to_dot(graph).splitlines() == [
        "digraph chain {",
        "  rankdir=BT;",
        "  node [shape=box];",
        '  n0 [label="a\\"b\\\\\\\\c\\\\n<i>&amp;amp;%%{init}`;#_.qcow2\\nqcow2"];',
        '  n1 [label="top\\nqcow2\\ncycle", color="red"];',
        "  n1 -> n0;",
        "}",
    ]


def test_mermaid_escapes_what_mermaid_markdown_and_html_would_read() -> None:
    graph = graph_of({HOSTILE: None, "/top": HOSTILE, "/data": None}, [HOSTILE])
    by_path = graph.by_path()
    by_path["/top"].add(finding("too-deep", "…"))
    by_path["/data"].data_file_of = ["/top"]
    names = "a#34;b#92;#92;c#92;n#60;i#62;#38;amp#59;#37;#37;#123;init#125;#96;#59;#35;#95;.qcow2<br/>qcow2"
    assert to_mermaid(graph).splitlines() == [
        "flowchart BT",
        f'  n0["{names}"]',
        '  n1["data<br/>qcow2"]',
        '  n2["top<br/>qcow2<br/>too-deep"]',
        "  n2 --> n0",
        "  n2 -.-> n1",
        "  classDef warning stroke:orange",
        "  class n2 warning",
    ]
