"""References parsed as QEMU parses them; where they are files, QEMU itself is asked what it opens."""
# ruff: noqa: E501 - tables of names are easier to read in long lines

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgtool.errors import ImageFormatError
from imgtool.image.reference import Reference, parse

QEMU_IMG = os.environ.get("IMGTOOL_QEMU_IMG", "qemu-img")


def as_dict(reference: Reference, *keys: str) -> dict[str, Any]:
    return {key: getattr(reference, key) for key in keys}


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"base.raw", "/images/base.raw"),
        (b"./base.raw", "/images/./base.raw"),
        (b"../base.raw", "/images/../base.raw"),
        (b"/other/base.raw", "/other/base.raw"),
        (b"sub/nbd:foo", "/images/sub/nbd:foo"),
        (b"./nbd:foo", "/images/./nbd:foo"),
        (b"-x", "/images/-x"),
        (b"a,b = c", "/images/a,b = c"),
        (b"\xff\xfe", "/images/\udcff\udcfe"),
        (b"a\nb", "/images/a\nb"),
    ],
)
def test_a_plain_name_is_a_file_beside_the_overlay(name: bytes, path: str) -> None:
    assert parse(name, directory="/images") == Reference(
        text=os.fsdecode(name), kind="file", protocol="file", path=path
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nbd:10.0.0.1:10809", {"protocol": "nbd", "host": "10.0.0.1", "port": 10809, "export": ""}),
        ("nbd:[::1]:1:exportname=a b", {"protocol": "nbd", "host": "::1", "port": 1, "export": "a b"}),
        ("nbd:unix:/run/s", {"protocol": "nbd", "socket": "/run/s", "host": None, "export": ""}),
        ("nbd:unix:/run/s:exportname=e", {"protocol": "nbd", "socket": "/run/s", "export": "e"}),
        ("nbd://h", {"protocol": "nbd", "host": "h", "port": 10809, "export": ""}),
        ("nbd+tcp://[fe80::1]:99//e%20x", {"protocol": "nbd", "host": "fe80::1", "port": 99, "export": "e x"}),
        ("nbd+unix:///e?socket=/run/s", {"protocol": "nbd", "socket": "/run/s", "export": "e"}),
        ("https://u:p@h/a%2Fb?x=1", {"protocol": "https", "host": "h", "port": 443, "export": "/a/b", "user": "u:p"}),
        ("http://h:8080", {"protocol": "http", "host": "h", "port": 8080, "export": "/"}),
        ("ftp://h/x", {"protocol": "ftp", "host": "h", "port": 21, "export": "/x"}),
        ("ssh://me@h:2222/d/i", {"protocol": "ssh", "host": "h", "port": 2222, "export": "/d/i", "user": "me"}),
        ("iscsi://u%25p@h:1/iqn.2001-04.com:x/3", {"protocol": "iscsi", "host": "h", "port": 1, "user": "u"}),
        ("iscsi://h/iqn.x/0", {"protocol": "iscsi", "port": 3260, "export": "iqn.x/0"}),
        (
            "rbd:pool/image@snap:id=me:mon_host=a\\:1",
            {"protocol": "rbd", "export": "pool/image@snap", "user": "me", "host": "a:1"},
        ),
        ("rbd:pool/ns/image", {"protocol": "rbd", "export": "pool/ns/image"}),
        ("gluster://h/vol/dir/i", {"protocol": "gluster", "host": "h", "port": 24007, "export": "vol/dir/i"}),
        ("gluster+unix:///vol/i?socket=/s", {"protocol": "gluster", "socket": "/s", "host": None, "export": "vol/i"}),
        ("nfs://h/export/i?uid=0", {"protocol": "nfs", "host": "h", "export": "/export/i"}),
        ("fat:/etc", {"protocol": "vvfat", "path": "/etc"}),
        ("fat:floppy:32:rw:/etc", {"protocol": "vvfat", "path": "/etc"}),
        ("host_device:/dev/sda", {"protocol": "host_device", "path": "/dev/sda"}),
        ("nvme://0000:44:00.0/1", {"protocol": "nvme", "export": "0000:44:00.0/1"}),
        ("null-co://", {"protocol": "null-co"}),
        ("foo:bar", {"protocol": "foo", "host": None, "path": None}),
        ("NBD://h", {"protocol": "NBD", "host": None}),
    ],
)
def test_a_protocol_is_taken_apart(name: str, expected: dict[str, Any]) -> None:
    reference = parse(os.fsencode(name), directory="/images")
    assert as_dict(reference, *expected) == expected
    assert reference.kind == "protocol"
    assert reference.leaves == (reference,)


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ('{"driver":"qcow2","file":{"driver":"file","filename":"/b"}}', {"path": "/b", "format": "qcow2", "protocol": "file"}),
        ("{'driver':'qcow2','file.filename':'/b'}", {"path": "/b", "format": "qcow2"}),
        ("{'file.filename':'nbd://h'}", {"path": "/images/nbd://h", "format": None, "protocol": "file"}),
        ('{"driver":"raw","file":{"driver":"raw","file.filename":"/it\'s"}}', {"path": "/it's", "format": "raw"}),
        ("{'driver':'file','filename':'/a \\'b\\' \"c\"'}", {"path": "/a 'b' \"c\"", "format": None}),
        ('{"driver":"raw","file":{"driver":"nbd","server":{"type":"inet","host":"h","port":"1"},"export":"e"}}',
         {"protocol": "nbd", "host": "h", "port": 1, "export": "e", "format": "raw"}),
        ('{"driver":"nbd","server.type":"unix","server.path":"/s"}', {"protocol": "nbd", "socket": "/s", "port": None}),
        ('{"driver":"nbd","path":"/s"}', {"protocol": "nbd", "socket": "/s"}),
        ('{"driver":"nbd","host":"h"}', {"protocol": "nbd", "host": "h", "port": 10809}),
        ('{"driver":"https","url":"https://h/x"}', {"protocol": "https", "host": "h", "export": "/x"}),
        ('{"driver":"raw","file":{"driver":"vvfat","dir":"/etc","rw":true}}', {"protocol": "vvfat", "path": "/etc"}),
        ('{"driver":"ssh","server":{"host":"h","port":22},"path":"/i","user":"u"}', {"protocol": "ssh", "host": "h", "export": "/i", "user": "u"}),
        ('{"driver":"gluster","volume":"v","path":"i","server":[{"type":"inet","host":"h","port":"9"}]}', {"protocol": "gluster", "host": "h", "port": 9, "export": "v/i"}),
        ('{"driver":"iscsi","transport":"tcp","portal":"h:3260","target":"t","lun":1}', {"protocol": "iscsi", "host": "h:3260", "export": "t/1"}),
        ('{"driver":"rbd","pool":"p","image":"i","conf":"/c"}', {"protocol": "rbd", "export": "p/i"}),
        ('{"driver":"throttle","file":{"driver":"qcow2","file":{"driver":"host_device","filename":"/dev/x"}}}', {"protocol": "host_device", "path": "/dev/x", "format": "qcow2"}),
        ('{"driver":"raw","offset":512,"size":512,"file":{"driver":"file","filename":"/b"}}', {"path": "/b", "format": "raw"}),
    ],
)  # fmt: skip
def test_a_json_tree_of_one_leaf_is_that_leaf(tree: str, expected: dict[str, Any]) -> None:
    reference = parse(os.fsencode(f"json:{tree}"), directory="/images")
    assert reference.kind == "json"
    assert as_dict(reference, *expected) == expected
    assert reference.leaves == (reference,)


@pytest.mark.parametrize(
    ("name", "altered"),
    [
        ("/a", False),
        ("file:/a", False),
        ("blkdebug::/a", True),
        ('json:{"driver":"qcow2","file":{"driver":"file","filename":"/a"}}', False),
        (
            'json:{"driver":"qcow2","file.driver":"raw","file.file.filename":"/a","file.file.cache.direct":true}',
            False,
        ),
        ('json:{"driver":"qcow2","l2-cache-size":65536,"file":{"driver":"host_device","filename":"/dev/a"}}', False),
        ('json:{"driver":"raw","offset":512,"file":{"driver":"file","filename":"/a"}}', True),
        ('json:{"driver":"qcow2","backing":null,"file":{"driver":"file","filename":"/a"}}', True),
        ('json:{"driver":"raw","file":{"driver":"qcow2","file":{"driver":"file","filename":"/a"}}}', True),
        ('json:{"driver":"throttle","file":{"driver":"file","filename":"/a"}}', True),
        ('json:{"driver":"luks","key-secret":"s","file":{"driver":"file","filename":"/a"}}', True),
    ],
)
def test_options_may_let_something_else_be_read_than_the_files_own_disk(name: str, altered: bool) -> None:
    assert parse(os.fsencode(name), directory="/images").altered == altered


@pytest.mark.parametrize(
    ("name", "leaves"),
    [
        ("blkdebug:/c:/i", [("image", "/i"), ("config", "/c")]),
        ("blkdebug::blkdebug:/c:fat:/etc", [("image.image", "/etc"), ("image.config", "/c")]),
        ("blkverify:/r:nbd:unix:/s", [("raw", "/r"), ("image", None)]),
        ('json:{"driver":"qcow2","file.filename":"/a","backing.driver":"qcow2","backing.file.filename":"/b","data-file":{"driver":"file","filename":"/c"}}',
         [("file", "/a"), ("backing", "/b"), ("data-file", "/c")]),
        ('json:{"driver":"quorum","vote-threshold":1,"children":[{"driver":"file","filename":"/a"},{"driver":"raw","file":{"driver":"file","filename":"/b"}}]}',
         [("children.0", "/a"), ("children.1", "/b")]),
        ('json:{"driver":"quorum","vote-threshold":1,"children.0.file.filename":"/a","children.1.filename":"/b"}',
         [("children.0", "/a"), ("children.1", "/b")]),
        ('json:{"driver":"blkverify","x-image":"/i","x-raw":"nbd://h"}', [("image", "/i"), ("raw", None)]),
        ('json:{"driver":"blkdebug","config":"/c","image":{"driver":"file","filename":"/i"}}', [("image", "/i"), ("config", "/c")]),
        ('json:{"driver":"vmdk","file.filename":"/d","extents.0.driver":"file","extents.0.filename":"/e"}', [("file", "/d"), ("extents.0", "/e")]),
    ],
)  # fmt: skip
def test_every_leaf_of_a_tree_is_found(name: str, leaves: list[tuple[str, str | None]]) -> None:
    reference = parse(os.fsencode(name), directory="/images")
    assert [(leaf.role, leaf.path) for leaf in reference.leaves] == leaves
    assert reference.children


@pytest.mark.parametrize(
    "name",
    [
        "", "a\0b", ":", ":x", "nbd:", "nbd:unix:", "nbd:h", "nbd:h:x", "nbd:h:99999", "nbd://", "nbd+unix:///e", "nbd+unix://h/e?socket=/s",
        "nbd:h:1:exportname=", "http:/x", "https://", "http://h:99999/", "http://[::1/", "ssh://h", "iscsi://h/t", "rbd:pool", "rbd:/i",
        "gluster://h/vol", "nfs://h", "fat:", "file:", "blkdebug:x", "blkverify:/r", "null-co://x", "nvme://x", "json:", "json:[]",
        "json:{", "json:{}", 'json:{"driver":"qcow2"}', 'json:{"driver":1}', 'json:{"file":"node0"}', 'json:{"driver":"nbd"}',
        'json:{"driver":"file"}', 'json:{"driver":"file","filename":1}', 'json:{"filename":"/x"}', 'json:{"driver":"raw","filename":"/x"}',
        'json:{"driver":"raw","driver":"qcow2","file.filename":"/x"}', 'json:{"file.filename":"/x","file":{"filename":"/y"}}',
        'json:{"driver":"nbd","host":"h","port":"x"}', "json:" + '{"file":' * 500 + "1" + "}" * 500, "json:" + "[" * 100000,
        'json:{"driver":"quorum","children":["node"]}', 'json:{"driver":"blkdebug","x-image":1}', "json:{\"driver\":\"file\",\"filename\":\"\udcff\"}",
        "blkdebug::" * 100 + "x", 'json:{"' + "a." * 1000 + '":1}', 'json:{"driver":"nbd","host":"h","port":' + "9" * 5000 + "}",
    ],
)  # fmt: skip
def test_nonsense_is_one_clear_error(name: str) -> None:
    with pytest.raises(ImageFormatError) as caught:
        parse(os.fsencode(name), directory="/images")
    assert len(caught.value.message) < 400


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(["", "json:", "nbd:", "nbd://", "rbd:", "fat:", "blkdebug:", "ssh://", "json:{"]), st.binary())
def test_any_bytes_are_a_reference_or_an_image_format_error(prefix: str, rest: bytes) -> None:
    try:
        reference = parse(prefix.encode() + rest, directory="/images")
    except ImageFormatError:
        return
    assert all(leaf.protocol for leaf in reference.leaves)


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["file", "qcow2", "nbd", "/x"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["driver", "file", "file.driver", "filename", "file.filename", "server", "children", "backing", "x-image", "url", "0"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)  # fmt: skip
def test_any_json_is_a_reference_or_an_image_format_error(value: Any) -> None:
    try:
        parse(f"json:{json.dumps(value)}".encode(), directory="/images")
    except ImageFormatError:
        return


@pytest.mark.matrix
@pytest.mark.parametrize(
    "name",
    [
        "base.raw",
        "./base.raw",
        "../images/base.raw",
        "file:there/base.raw",
        "file:{directory}/images/base.raw",
        'json:{{"driver":"raw","file":{{"driver":"file","filename":"there/base.raw"}}}}',
        "json:{{'driver':'raw','file.filename':'{directory}/images/base.raw'}}",
        'json:{{"driver":"raw","file":{{"driver":"blkdebug","image":{{"driver":"file","filename":"there/base.raw"}}}}}}',
        'json:{{"driver":"raw","file":{{"driver":"blkdebug","x-image":"file:there/base.raw"}}}}',
        'json:{{"driver":"raw","file":{{"driver":"raw","file":{{"filename":"there/base.raw"}}}}}}',
    ],
)
def test_the_file_meant_is_the_one_qemu_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Two files of different sizes: one beside the overlay, one below the current directory."""
    images, there = tmp_path / "images", tmp_path / "elsewhere" / "there"
    for directory, size in ((images, 1 << 20), (there, 2 << 20)):
        directory.mkdir(parents=True)
        (directory / "base.raw").write_bytes(bytes(size))
    overlay = images / "overlay.qcow2"
    text = name.format(directory=tmp_path)
    subprocess.run(
        [QEMU_IMG, "create", "-q", "-u", "-f", "qcow2", "-b", text, "-F", "raw", overlay, "1M"], check=True
    )
    reference = parse(text.encode(), directory=str(images))
    assert reference.path is not None
    assert reference.relative == ("there/" in name)
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = subprocess.run(
        [QEMU_IMG, "info", "--backing-chain", "--output=json", overlay], check=True, capture_output=True
    )
    opened = json.loads(done.stdout)[1]
    if not reference.relative:
        assert os.path.getsize(reference.path) == opened["virtual-size"]
        return
    assert opened["virtual-size"] == 2 << 20
    # Started in the image's directory, QEMU takes the file there.
    there.rename(images / "there")
    assert os.path.getsize(reference.path) == opened["virtual-size"]
    monkeypatch.chdir(images)
    subprocess.run([QEMU_IMG, "info", "--backing-chain", overlay], check=True, capture_output=True)
