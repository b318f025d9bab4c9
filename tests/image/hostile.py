"""Images that harm those who open them, each with what imgtool has to say about it. Made here, byte by byte; they
refer to files below `/nonexistent` and to servers that do not exist."""
# ruff: noqa: E501 - tables of names are easier to read in long lines

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from imgtool.image.findings import Verdict

BACKING_FORMAT = 0xE2792ACA
BITMAPS = 0x23852875
CRYPTO = 0x0537BE77
DATA_FILE = 0x44415441
FEATURE_NAMES = 0x6803F857

DATA_FILE_BIT = 4
CLUSTER = 65536


class Case(NamedTuple):
    name: str
    data: bytes
    verdict: Verdict
    codes: frozenset[str]
    """Findings that have to be there; there may be others."""


def qcow2(
    *,
    version: int = 3,
    size: int = 1 << 20,
    backing: bytes = b"",
    extensions: list[tuple[int, bytes]] | None = None,
    incompatible: int = 0,
    autoclear: int = 0,
    encryption: int = 0,
    snapshots: int = 0,
    snapshots_offset: int = 0,
    l1: list[int] | None = None,
    l1_offset: int = 3 * CLUSTER,
    clusters: int = 5,
    cluster_bits: int = 16,
) -> bytes:
    """A qcow2 with clusters of 64 KiB: header, reference count table and block, L1 table, first L2 table."""
    entries = [0] if l1 is None else l1
    header = bytearray(CLUSTER)
    length = 104 if version == 3 else 72
    at = length
    for kind, data in extensions or []:
        piece = struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)
        header[at : at + len(piece)] = piece
        at += len(piece)
    at += 8
    struct.pack_into(
        ">4sIQIIQIIQQIIQ",
        header,
        0,
        b"QFI\xfb",
        version,
        at if backing else 0,
        len(backing),
        cluster_bits,
        size,
        encryption,
        len(entries),
        l1_offset,
        CLUSTER,
        1,
        snapshots,
        snapshots_offset,
    )
    if version == 3:
        struct.pack_into(">QQQII", header, 72, incompatible, 0, autoclear, 4, 104)
    header[at : at + len(backing)] = backing
    image = bytearray(clusters * CLUSTER)
    image[:CLUSTER] = header[:CLUSTER]
    image[CLUSTER : CLUSTER + 8] = struct.pack(">Q", 2 * CLUSTER)
    if l1_offset + 8 * len(entries) <= len(image):
        struct.pack_into(f">{len(entries)}Q", image, l1_offset, *entries)
    return bytes(image)


def overlay(backing: bytes, format: bytes | None = b"raw", *, version: int = 3) -> bytes:
    return qcow2(
        backing=backing, extensions=[(BACKING_FORMAT, format)] if format is not None else [], version=version
    )


def with_data_file(name: bytes | None) -> bytes:
    return qcow2(incompatible=DATA_FILE_BIT, extensions=[(DATA_FILE, name)] if name is not None else [])


def descriptor(*lines: bytes, kind: bytes = b"monolithicFlat", parent: bytes = b"") -> bytes:
    text = b'# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="' + kind + b'"\n'
    if parent:
        text += b'parentFileNameHint="' + parent + b'"\n'
    return text + b"\n# Extents\n".lstrip() + b"".join(line + b"\n" for line in lines)


def sparse_vmdk(text: bytes, *, capacity: int = 2048, descriptor_at: int = 1, size: int = 65536 * 4) -> bytes:
    image = bytearray(size)
    struct.pack_into("<4sIIQQQQIQQQ", image, 0, b"KDMV", 1, 3, capacity, 128, descriptor_at, 20, 512, 21, 26, 128)
    image[73:77] = b"\n \r\n"
    image[512 : 512 + len(text)] = text
    return bytes(image)


REFERENCES: list[tuple[str, bytes, Verdict, str]] = [
    ("absolute", b"/nonexistent/shadow", "refers-to-host", "backing-outside"),
    ("above", b"../../../../../../../nonexistent/shadow", "refers-to-host", "backing-outside"),
    ("sibling", b"sibling.raw", "refers-to-host", "backing-file"),
    ("below", b"./a/b.raw", "refers-to-host", "backing-file"),
    ("file", b"file:/nonexistent/shadow", "refers-to-host", "backing-outside"),
    ("device", b"/dev/sda", "refers-to-host", "backing-device"),
    ("host-device", b"host_device:/dev/sda", "refers-to-host", "backing-device"),
    ("cdrom", b"host_cdrom:/dev/sr0", "refers-to-host", "backing-device"),
    ("proc", b"/proc/self/environ", "refers-to-host", "backing-outside"),
    ("descriptor", b"/dev/fd/3", "refers-to-host", "backing-device"),
    ("fat", b"fat:/nonexistent", "refers-to-host", "backing-directory"),
    ("fat-rw", b"fat:rw:/nonexistent", "refers-to-host", "backing-directory"),
    ("fat-floppy", b"fat:floppy:32:/nonexistent", "refers-to-host", "backing-directory"),
    ("nbd", b"nbd:192.0.2.1:10809", "refers-to-network", "backing-network"),
    ("nbd-export", b"nbd:192.0.2.1:10809:exportname=x", "refers-to-network", "backing-network"),
    ("nbd-unix", b"nbd:unix:/nonexistent/socket", "refers-to-host", "backing-device"),
    ("nbd-url", b"nbd://192.0.2.1/x", "refers-to-network", "backing-network"),
    ("nbd-unix-url", b"nbd+unix:///x?socket=/nonexistent/socket", "refers-to-host", "backing-device"),
    ("http", b"http://192.0.2.1/latest/meta-data", "refers-to-network", "backing-network"),
    ("https", b"https://192.0.2.1/x", "refers-to-network", "backing-network"),
    ("ftp", b"ftp://192.0.2.1/x", "refers-to-network", "backing-network"),
    ("ssh", b"ssh://root@192.0.2.1/nonexistent", "refers-to-network", "backing-network"),
    ("iscsi", b"iscsi://192.0.2.1/iqn.2001-04.com.example:x/0", "refers-to-network", "backing-network"),
    ("rbd", b"rbd:pool/image:mon_host=192.0.2.1", "refers-to-network", "backing-network"),
    ("rbd-conf", b"rbd:pool/image:conf=/nonexistent/ceph.conf", "refers-to-network", "backing-network"),
    ("gluster", b"gluster://192.0.2.1/volume/image", "refers-to-network", "backing-network"),
    ("nfs", b"nfs://192.0.2.1/export/image", "refers-to-network", "backing-network"),
    ("blkdebug", b"blkdebug:/nonexistent/config:sibling.raw", "refers-to-host", "backing-outside"),
    ("blkverify", b"blkverify:/nonexistent/raw:nbd:192.0.2.1:1", "refers-to-host", "backing-outside"),
    ("unknown", b"frob:x", "unknown", "backing-protocol"),
    ("capitals", b"NBD://192.0.2.1/x", "unknown", "backing-protocol"),
    ("json-file", b'json:{"driver":"raw","file":{"driver":"file","filename":"/nonexistent/s"}}', "refers-to-host", "backing-outside"),
    ("json-dotted", b'json:{"driver":"raw","file.driver":"file","file.filename":"/nonexistent/s"}', "refers-to-host", "backing-outside"),
    ("json-quotes", b"json:{'driver':'raw','file.filename':'/nonexistent/s'}", "refers-to-host", "backing-outside"),
    ("json-nbd", b'json:{"driver":"raw","file":{"driver":"nbd","host":"192.0.2.1","port":"1"}}', "refers-to-network", "backing-network"),
    ("json-unix", b'json:{"driver":"nbd","server":{"type":"unix","path":"/nonexistent/s"}}', "refers-to-host", "backing-device"),
    ("json-vvfat", b'json:{"driver":"vvfat","dir":"/nonexistent","fat-type":16}', "refers-to-host", "backing-directory"),
    ("json-https", b'json:{"driver":"https","url":"https://192.0.2.1/x"}', "refers-to-network", "backing-network"),
    ("json-quorum", b'json:{"driver":"quorum","vote-threshold":1,"children":[{"driver":"file","filename":"/nonexistent/s"},{"driver":"file","filename":"/nonexistent/t"}]}',
     "refers-to-host", "backing-outside"),
    ("json-inner", b'json:{"driver":"qcow2","file.filename":"x","backing.file.driver":"nbd","backing.file.host":"192.0.2.1"}', "refers-to-host", "backing-network"),
    ("json-x-image", b'json:{"driver":"blkdebug","x-image":"/nonexistent/s"}', "refers-to-host", "backing-outside"),
    ("json-throttle", b'json:{"driver":"throttle","throttle-group":"g","file":{"driver":"host_device","filename":"/dev/sda"}}', "refers-to-host", "backing-device"),
    ("json-not", b"json:{", "malformed", "reference-malformed"),
    ("json-twice", b'json:{"driver":"raw","driver":"nbd"}', "malformed", "reference-malformed"),
    ("json-node", b'json:{"driver":"raw","file":"node0"}', "malformed", "reference-malformed"),
    ("nbd-nonsense", b"nbd:x", "malformed", "reference-malformed"),
    ("escape", b"\x1b]0;owned\x07.raw", "refers-to-host", "control-characters"),
    ("newline", b"a\nb.raw", "refers-to-host", "control-characters"),
    ("direction", "a\u202egnp.raw".encode(), "refers-to-host", "control-characters"),
    ("spaces", "a\u200a\u00ad.raw".encode(), "refers-to-host", "control-characters"),
    ("tags", "a\U000e0041.raw".encode(), "refers-to-host", "control-characters"),
    ("relative", b"file:sibling.raw", "refers-to-host", "depends-on-cwd"),
    ("json-relative", b"json:{'driver':'raw','file.filename':'sibling.raw'}", "refers-to-host", "depends-on-cwd"),
    ("not-utf8", b"\xff\xfe.raw", "refers-to-host", "control-characters"),
    ("long", b"a" * 1023, "refers-to-host", "backing-file"),
]  # fmt: skip


def _overlays() -> Iterator[Case]:
    for name, backing, verdict, code in REFERENCES:
        yield Case(f"backing-{name}.qcow2", overlay(backing), verdict, frozenset({code}))
        codes = frozenset({code} if verdict == "malformed" else {code, "backing-format-missing"})
        if any(format in backing for format in (b'"raw"', b"'raw'", b'"qcow2"')):
            codes -= {"backing-format-missing"}
        yield Case(f"backing-{name}-v2.qcow2", overlay(backing, None, version=2), verdict, codes)
    cut = qcow2(backing=b"sibling.raw\0/nonexistent/s", extensions=[(BACKING_FORMAT, b"raw")])
    yield Case("backing-cut.qcow2", cut, "refers-to-host", frozenset({"backing-name-cut"}))
    for driver in (b"nbd", b"vvfat", b"file", b"blkdebug", b"\x1b[2J"):
        data = overlay(b"sibling.raw", driver)
        name = "".join(char for char in driver.decode() if char.isalnum())
        yield Case(f"format-{name}.qcow2", data, "refers-to-host", frozenset({"backing-format-driver"}))


def _data_files() -> Iterator[Case]:
    for name, file in (
        ("absolute", b"/nonexistent/shadow"),
        ("sibling", b"data.raw"),
        ("above", b"../../x"),
        ("device", b"/dev/sda"),
        ("escape", b"\x1b[2Jx"),
    ):
        yield Case(f"data-file-{name}.qcow2", with_data_file(file), "refers-to-host", frozenset({"data-file"}))
    for name, file in (
        ("nbd", b"nbd:192.0.2.1:10809"),
        ("json", b'json:{"driver":"nbd","host":"192.0.2.1"}'),
        ("fat", b"fat:/nonexistent"),
        ("https", b"https://192.0.2.1/x"),
    ):
        codes = frozenset({"data-file", "data-file-protocol"})
        yield Case(f"data-file-{name}.qcow2", with_data_file(file), "refers-to-host", codes)
    yield Case("data-file-missing.qcow2", with_data_file(None), "malformed", frozenset({"data-file-missing"}))
    unused = qcow2(extensions=[(DATA_FILE, b"/nonexistent/s")])
    yield Case("data-file-unused.qcow2", unused, "safe", frozenset())
    malformed = with_data_file(b"json:{")
    yield Case("data-file-nonsense.qcow2", malformed, "refers-to-host", frozenset({"reference-malformed"}))


def _vmdks() -> Iterator[Case]:
    extent = frozenset({"extent"})
    for name, lines, kind in (
        ("flat", [b'RW 2048 FLAT "/nonexistent/shadow" 0'], b"monolithicFlat"),
        ("vmfs", [b'RW 2048 VMFS "/nonexistent/shadow"'], b"vmfs"),
        ("sparse", [b'RW 2048 SPARSE "/nonexistent/shadow"'], b"twoGbMaxExtentSparse"),
        ("sesparse", [b'RW 2048 SESPARSE "s.vmdk"'], b"seSparse"),
        ("vmfssparse", [b'RW 2048 VMFSSPARSE "s.vmdk"'], b"vmfsSparse"),
        ("many", [b'RW 1 FLAT "/nonexistent/%d" 0' % number for number in range(100)], b"twoGbMaxExtentFlat"),
        ("lines", [b'RW\n2048\nFLAT\n"/nonexistent/shadow"\n0'], b"monolithicFlat"),
        ("escape", [b'RW 2048 FLAT "\x1b[2J" 0'], b"monolithicFlat"),
    ):
        yield Case(f"extent-{name}.vmdk", descriptor(*lines, kind=kind), "refers-to-host", extent)
    hidden = sparse_vmdk(descriptor(b'RW 2048 FLAT "/nonexistent/shadow" 0'), capacity=0)
    yield Case("extent-hidden.vmdk", hidden, "refers-to-host", extent)
    odd = sparse_vmdk(descriptor(b'RW 2048 SPARSE "/nonexistent/shadow"', kind=b"monolithicSparse"))
    yield Case("descriptor-path.vmdk", odd, "malformed", frozenset({"descriptor-odd"}))
    other = sparse_vmdk(descriptor(b'RW 2048 SPARSE "x.vmdk"', kind=b"custom"))
    yield Case("descriptor-kind.vmdk", other, "malformed", frozenset({"descriptor-odd"}))
    sound = sparse_vmdk(descriptor(b'RW 2048 SPARSE "x.vmdk"', kind=b"monolithicSparse"))
    yield Case("sound.vmdk", sound, "safe", frozenset())
    for name, parent, code in (
        ("absolute", b"/nonexistent/p.vmdk", "backing-outside"),
        ("nbd", b"nbd://192.0.2.1/x", "backing-network"),
        ("json", b"json:{'driver':'nbd','host':'192.0.2.1'}", "backing-network"),
    ):
        text = descriptor(b'RW 2048 SPARSE "x.vmdk"', kind=b"monolithicSparse", parent=parent)
        verdict: Verdict = "refers-to-network" if code == "backing-network" else "refers-to-host"
        yield Case(f"parent-{name}.vmdk", sparse_vmdk(text), verdict, frozenset({code}))
    malformed = frozenset({"malformed"})
    yield Case("extent-none.vmdk", descriptor(), "malformed", malformed)
    endless = descriptor(*[b'RW 1 FLAT "x" 0'] * 20000, kind=b"vmfs")
    yield Case("extent-endless.vmdk", endless, "malformed", malformed)
    yield Case("newlines.vmdk", b"version=1\n" + b"\n" * (1 << 20), "malformed", malformed)


def _bombs() -> Iterator[Case]:
    yield Case(
        "snapshots.qcow2", qcow2(snapshots=65536, snapshots_offset=CLUSTER * 4), "bomb", frozenset({"many-snapshots"})
    )
    bitmaps = struct.pack(">IIQQ", 65535, 0, 65535 * 32, 4 * CLUSTER)
    mapped = qcow2(extensions=[(BITMAPS, bitmaps)], autoclear=1)
    yield Case("bitmaps.qcow2", mapped, "bomb", frozenset({"many-bitmaps"}))
    shared = bytearray(qcow2(size=512 << 20, l1=[4 * CLUSTER], clusters=6))
    shared[4 * CLUSTER : 5 * CLUSTER] = struct.pack(">Q", 1 << 63 | 5 * CLUSTER) * 8192
    yield Case("one-cluster.qcow2", bytes(shared), "bomb", frozenset({"shared-clusters"}))
    one_table = qcow2(size=8 << 30, l1=[4 * CLUSTER] * 16)
    yield Case("one-table.qcow2", one_table, "bomb", frozenset({"shared-clusters"}))
    packed = bytearray(
        qcow2(size=8 << 30, l1=[4 * CLUSTER, 5 * CLUSTER, 6 * CLUSTER, 7 * CLUSTER] + [0] * 12, clusters=9)
    )
    for table in range(4):
        compressed = [1 << 62 | (8 * CLUSTER + table * 8192 + index) for index in range(8192)]
        struct.pack_into(">8192Q", packed, (4 + table) * CLUSTER, *compressed)
    yield Case("inflated.qcow2", bytes(packed), "bomb", frozenset({"inflated"}))
    for name, size, entries in (("huge", 1 << 51, 1 << 22), ("huger", (1 << 51) - 512, 1 << 22)):
        data = bytearray(qcow2(size=size, clusters=5))
        struct.pack_into(">I", data, 36, entries)
        yield Case(f"{name}.qcow2", bytes(data), "bomb", frozenset({"huge-disk"}))


def _damaged() -> Iterator[Case]:
    malformed = frozenset({"malformed"})
    fields: list[tuple[str, str, int, int]] = [
        ("version", ">I", 4, 4),
        ("version-huge", ">I", 4, 0xFFFFFFFF),
        ("backing-offset", ">Q", 8, 1 << 40),
        ("cluster-bits", ">I", 20, 255),
        ("cluster-bits-small", ">I", 20, 8),
        ("size", ">Q", 24, 1 << 63),
        ("encryption", ">I", 32, 9),
        ("l1-entries", ">I", 36, 0xFFFFFFFF),
        ("l1-offset", ">Q", 40, 3),
        ("refcounts", ">I", 56, 0xFFFFFFFF),
        ("refcounts-none", ">I", 56, 0),
        ("refcounts-offset", ">Q", 48, 7),
        ("snapshots", ">I", 60, 65537),
        ("refcount-order", ">I", 96, 7),
        ("header-length", ">I", 100, 1 << 20),
        ("header-short", ">I", 100, 103),
    ]
    for name, layout, at, value in fields:
        data = bytearray(qcow2())
        struct.pack_into(layout, data, at, value)
        yield Case(f"field-{name}.qcow2", bytes(data), "malformed", malformed)
    for name, extension in (
        ("long", struct.pack(">II", BACKING_FORMAT, 0xFFFFFFFF)),
        ("format", struct.pack(">II", BACKING_FORMAT, 16) + b"x" * 16),
        ("crypto", struct.pack(">II", CRYPTO, 16) + bytes(16)),
        ("bitmaps", struct.pack(">II", BITMAPS, 8) + bytes(8)),
        ("many", struct.pack(">II", 0x12345678, 0) * 4000),
    ):
        data = bytearray(qcow2())
        data[104 : 104 + len(extension)] = extension
        yield Case(f"extension-{name}.qcow2", bytes(data), "malformed", malformed)
    twice = qcow2(backing=b"x", extensions=[(BACKING_FORMAT, b"raw"), (BACKING_FORMAT, b"qcow2")])
    yield Case("extension-twice.qcow2", twice, "refers-to-host", frozenset({"extension-twice"}))
    yield Case("backing-too-long.qcow2", overlay(b"a" * 1024), "malformed", malformed)
    yield Case("crypto-missing.qcow2", qcow2(encryption=2), "malformed", frozenset({"no-crypto-header"}))
    names = struct.pack(">BB46s", 0, 40, b"\x1b[2Jfeature")
    features = qcow2(incompatible=1 << 40, extensions=[(FEATURE_NAMES, names)])
    yield Case("features.qcow2", features, "unknown", frozenset({"unknown-features"}))
    outside = frozenset({"tables-outside"})
    yield Case("l1-outside.qcow2", qcow2(l1_offset=1 << 40), "malformed", outside)
    yield Case("l2-outside.qcow2", qcow2(l1=[1 << 40]), "malformed", outside)
    yield Case("short-5.qcow2", qcow2()[:5], "safe", frozenset())  # no version: QEMU takes it for raw
    for length in (8, 71, 100):
        yield Case(f"short-{length}.qcow2", qcow2()[:length], "malformed", malformed)
    for name, at, signature in (
        ("iso", 32769, b"CD001"),
        ("gpt", 512, b"EFI PART"),
        ("vhd", -512, b"conectix"),
        ("vdi", 64, b"\x7f\x10\xda\xbe"),
    ):
        data = bytearray(qcow2())
        place = at if at >= 0 else len(data) + at
        data[place : place + len(signature)] = signature
        yield Case(f"two-{name}.qcow2", bytes(data), "malformed", frozenset({"two-formats"}))


def _others() -> Iterator[Case]:
    old = bytearray(struct.pack(">4sIQIIQBBHIQ", b"QFI\xfb", 1, 0, 0, 0, 1 << 20, 12, 9, 0, 0, 48)).ljust(8192, b"\0")
    yield Case("old.qcow", bytes(old), "unknown", frozenset({"obsolete-format"}))
    name = b"/nonexistent/shadow"
    struct.pack_into(">QI", old, 8, 200, len(name))
    old[200 : 200 + len(name)] = name
    yield Case("old-backing.qcow", bytes(old), "refers-to-host", frozenset({"backing-outside"}))
    qed = bytearray(struct.pack("<4sIIIQQQQQII", b"QED\0", 65536, 4, 1, 1, 0, 0, 65536, 1 << 20, 64, len(name)))
    qed += name
    yield Case("backing.qed", bytes(qed.ljust(8 * 65536, b"\0")), "refers-to-host", frozenset({"backing-outside"}))
    luks2 = (b"LUKS\xba\xbe\0\x02" + bytes(504)).ljust(4096, b"\0")
    yield Case("luks2.img", luks2, "unknown", frozenset({"luks2"}))
    mbr = bytearray(4096)
    mbr[446:462] = b"\x12\0\0\0\x83".ljust(16, b"\1")
    mbr[510:520] = b"\x55\xaa" + bytes(8)
    yield Case("mbr-odd.img", bytes(mbr), "malformed", frozenset({"partition-table-odd"}))
    gpt = bytearray(4096)
    gpt[446:478] = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff" * 3, 1, 0xFFFFFFFF) * 2
    gpt[510:520] = b"\x55\xaaEFI PART"
    yield Case("gpt-hybrid.img", bytes(gpt), "malformed", frozenset({"partition-table-odd"}))
    yield Case("empty.img", b"", "safe", frozenset())
    yield Case("raw.img", b"just bytes" * 100, "safe", frozenset())
    yield Case("sound.qcow2", qcow2(), "safe", frozenset())
    yield Case("sound-v2.qcow2", qcow2(version=2), "safe", frozenset())


def corpus() -> list[Case]:
    """All cases; their names are unique."""
    makers = (_overlays, _data_files, _vmdks, _bombs, _damaged, _others)
    return [case for maker in makers for case in maker()]
