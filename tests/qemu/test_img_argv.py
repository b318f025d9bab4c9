import pytest

from imgtool.errors import UsageError
from imgtool.qemu import img_argv
from imgtool.qemu.img_argv import ImageOpts, Merge, SnapshotParam, Verbatim

Q = "/bin/qemu-img"
OPTS = ImageOpts("driver=luks,key-secret=s,file.filename=/a")
SECRET = "secret,id=s,file=/k"

CASES = {
    "create, a size": (
        img_argv.create(Q, "/a.raw", 1024, format="raw"),
        [Q, "create", "-q", "-f", "raw", "/a.raw", "1024"],
    ),
    "create, everything": (
        img_argv.create(
            Q,
            b"/d/a,b:\xff",
            1024,
            format="qcow2",
            backing="base.raw",
            backing_format="raw",
            unsafe_backing=True,
            options={"lazy_refcounts": True, "data_file_raw": False, "cluster_size": 65536, "data_file": "/x,y"},
            objects=[SECRET],
        ),
        [
            *[Q, "create", "--object", SECRET, "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "-u"],
            *["-o", "lazy_refcounts=on,data_file_raw=off,cluster_size=65536,data_file=/x,,y"],
            *["/d/a,b:\udcff", "1024"],
        ],
    ),
    "create, a backing file that looks like a protocol": (
        img_argv.create(Q, "/a", format="qcow2", backing="nbd:foo", backing_format="raw"),
        [Q, "create", "-q", "-f", "qcow2", "-b", "./nbd:foo", "-F", "raw", "/a"],
    ),
    "create, a backing file that looks like an option": (
        img_argv.create(Q, "/a", format="qcow2", backing="-x", backing_format="raw"),
        [Q, "create", "-q", "-f", "qcow2", "-b", "./-x", "-F", "raw", "/a"],
    ),
    "create, a colon after the first slash": (
        img_argv.create(Q, "/a", format="qcow2", backing="d/x:y", backing_format="raw"),
        [Q, "create", "-q", "-f", "qcow2", "-b", "d/x:y", "-F", "raw", "/a"],
    ),
    "create, a reference that is no path": (
        img_argv.create(Q, "/a", format="qcow2", backing=Verbatim("nbd://h/x"), backing_format="raw"),
        [Q, "create", "-q", "-f", "qcow2", "-b", "nbd://h/x", "-F", "raw", "/a"],
    ),
    "info": (img_argv.info(Q, "/-x"), [Q, "info", "--output=json", "-U", "/-x"]),
    "info, everything": (
        img_argv.info(Q, "/a", format="raw", backing_chain=True, force_share=False, objects=[SECRET]),
        [Q, "info", "--output=json", "--object", SECRET, "--backing-chain", "-f", "raw", "/a"],
    ),
    "info, image options": (
        img_argv.info(Q, OPTS, format="raw", objects=[SECRET]),
        [Q, "info", "--output=json", "--object", SECRET, "-U", "--image-opts", OPTS.text],
    ),
    "check": (img_argv.check(Q, "/a"), [Q, "check", "--output=json", "/a"]),
    "check, everything": (
        img_argv.check(Q, "/a", format="qcow2", repair="leaks", source_cache="none", force_share=True),
        [Q, "check", "--output=json", "-r", "leaks", "-T", "none", "-U", "-f", "qcow2", "/a"],
    ),
    "convert": (
        img_argv.convert(Q, ["/a"], "/b", output_format="qcow2"),
        [Q, "convert", "-t", "writeback", "-O", "qcow2", "/a", "/b"],
    ),
    "convert, everything": (
        img_argv.convert(
            Q,
            ["/a1", "/a2"],
            "/b",
            output_format="qcow2",
            format="raw",
            backing="/base",
            backing_format="qcow2",
            options={"compression_type": "zstd"},
            snapshot="first",
            compressed=True,
            sparse_size=0,
            num_coroutines=16,
            out_of_order=True,
            rate_limit=1 << 20,
            cache="none",
            source_cache="directsync",
            copy_offload=True,
            skip_creation=True,
            target_is_zero=True,
            bitmaps=True,
            skip_broken_bitmaps=True,
            salvage=True,
            force_share=True,
            objects=[SECRET],
            progress=True,
        ),
        [
            *[Q, "convert", "--object", SECRET, "-p", "-t", "none", "-T", "directsync", "-B", "/base"],
            *[
                "-o",
                "compression_type=zstd,backing_fmt=qcow2",
                "-l",
                "first",
                "-c",
                "-S",
                "0",
                "-m",
                "16",
                "-W",
                "-r",
                "1048576",
                "-C",
            ],
            *["-n", "--target-is-zero", "--bitmaps", "--skip-broken-bitmaps", "--salvage", "-U"],
            *["-O", "qcow2", "-f", "raw", "/a1", "/a2", "/b"],
        ],
    ),
    "convert, from image options": (
        img_argv.convert(Q, [OPTS, "/x,y"], "/b", output_format="raw", format="qcow2"),
        [
            *[Q, "convert", "-t", "writeback", "-O", "raw", "--image-opts", OPTS.text],
            *["driver=qcow2,file.filename=/x,,y", "/b"],
        ],
    ),
    "convert, into image options": (
        img_argv.convert(Q, ["/a"], OPTS, output_format="luks", skip_creation=True),
        [Q, "convert", "-t", "writeback", "-n", "--target-image-opts", "/a", OPTS.text],
    ),
    "convert, a snapshot whose name looks like options": (
        img_argv.convert(Q, ["/a"], "/b", output_format="raw", snapshot="snapshot.id=1,x"),
        [
            *[Q, "convert", "-t", "writeback", "-l", "snapshot.name=snapshot.id=1,,x"],
            *["-O", "raw", "/a", "/b"],
        ],
    ),
    "commit": (img_argv.commit(Q, "/a"), [Q, "commit", "/a"]),
    "commit, everything": (
        img_argv.commit(
            Q,
            "/a",
            format="qcow2",
            base="/base",
            keep=True,
            cache="none",
            rate_limit=5,
            objects=[SECRET],
            progress=True,
        ),
        [
            *[Q, "commit", "--object", SECRET, "-p", "-t", "none", "-b", "/base", "-d", "-r", "5"],
            *["-f", "qcow2", "/a"],
        ],
    ),
    "snapshot create": (
        img_argv.snapshot(Q, "/a,b", "create", "-s", format="qcow2"),
        [Q, "snapshot", "-q", "-c", "-s", "--image-opts", "driver=qcow2,file.filename=/a,,b"],
    ),
    "snapshot apply": (img_argv.snapshot(Q, "/a", "apply", "s"), [Q, "snapshot", "-q", "-a", "s", "/a"]),
    "snapshot delete": (
        img_argv.snapshot(Q, OPTS, "delete", "s", objects=[SECRET]),
        [Q, "snapshot", "--object", SECRET, "-q", "-d", "s", "--image-opts", OPTS.text],
    ),
    "rebase": (
        img_argv.rebase(Q, "/a", backing="../b", backing_format="qcow2"),
        [Q, "rebase", "-t", "writethrough", "-b", "../b", "-F", "qcow2", "/a"],
    ),
    "rebase, onto nothing": (
        img_argv.rebase(Q, "/a", backing=None),
        [Q, "rebase", "-t", "writethrough", "-b", "", "/a"],
    ),
    "rebase, everything": (
        img_argv.rebase(
            Q,
            "/a",
            backing="b",
            backing_format="raw",
            format="qcow2",
            unsafe=True,
            cache="writeback",
            source_cache="none",
            force_share=True,
            objects=[SECRET],
            progress=True,
        ),
        [
            *[Q, "rebase", "--object", SECRET, "-p", "-u", "-t", "writeback", "-T", "none", "-U"],
            *["-b", "b", "-F", "raw", "-f", "qcow2", "/a"],
        ],
    ),
    "resize": (img_argv.resize(Q, "/a", 1024, format="raw"), [Q, "resize", "-q", "-f", "raw", "/a", "1024"]),
    "resize, everything": (
        img_argv.resize(Q, "/a", 1024, format="qcow2", shrink=True, preallocation="falloc", objects=[SECRET]),
        [
            *[Q, "resize", "--object", SECRET, "-q", "--shrink", "--preallocation=falloc"],
            *["-f", "qcow2", "/a", "1024"],
        ],
    ),
    "compare": (img_argv.compare(Q, "/a", "/b"), [Q, "compare", "/a", "/b"]),
    "compare, everything": (
        img_argv.compare(
            Q,
            "/a",
            "/b",
            format="raw",
            other_format="qcow2",
            strict=True,
            source_cache="none",
            force_share=True,
            objects=[SECRET],
            progress=True,
        ),
        [
            *[Q, "compare", "--object", SECRET, "-p", "-s", "-T", "none", "-U"],
            *["-f", "raw", "-F", "qcow2", "/a", "/b"],
        ],
    ),
    "compare, one by its options": (
        img_argv.compare(Q, "/a,b", OPTS, format="raw"),
        [Q, "compare", "--image-opts", "driver=raw,file.filename=/a,,b", OPTS.text],
    ),
    "map": (img_argv.map(Q, "/a"), [Q, "map", "--output=json", "/a"]),
    "map, everything": (
        img_argv.map(Q, "/a", format="raw", start_offset=0, max_length=512, force_share=True, objects=[SECRET]),
        [
            *[Q, "map", "--output=json", "--object", SECRET, "--start-offset=0", "--max-length=512", "-U"],
            *["-f", "raw", "/a"],
        ],
    ),
    "measure, a size": (
        img_argv.measure(Q, size=1024, output_format="qcow2", options={"cluster_size": 4096}),
        [Q, "measure", "--output=json", "-O", "qcow2", "-o", "cluster_size=4096", "--size=1024"],
    ),
    "measure, an image": (
        img_argv.measure(
            Q,
            "/a",
            output_format="raw",
            format="qcow2",
            snapshot=SnapshotParam(id="1", name="a,b"),
            force_share=True,
        ),
        [
            *[Q, "measure", "--output=json", "-O", "raw", "-l", "snapshot.id=1,snapshot.name=a,,b", "-U"],
            *["-f", "qcow2", "/a"],
        ],
    ),
    "amend": (
        img_argv.amend(Q, "/a", {"compat": "0.10"}, format="qcow2"),
        [Q, "amend", "-o", "compat=0.10", "-f", "qcow2", "/a"],
    ),
    "amend, everything": (
        img_argv.amend(Q, OPTS, {"state": "inactive"}, cache="none", force=True, objects=[SECRET], progress=True),
        [
            *[Q, "amend", "--object", SECRET, "-p", "-t", "none", "--force", "-o", "state=inactive"],
            *["--image-opts", OPTS.text],
        ],
    ),
    "bitmap": (
        img_argv.bitmap(Q, "/a", "-b", ["add"], format="qcow2"),
        [Q, "bitmap", "--add", "-f", "qcow2", "--", "/a", "-b"],
    ),
    "bitmap, everything": (
        img_argv.bitmap(
            Q,
            "/a",
            "b",
            ["add", "disable", Merge("m"), "enable", "clear", "remove"],
            granularity=65536,
            merge_from="/c",
            merge_from_format="qcow2",
            objects=[SECRET],
        ),
        [
            *[
                Q,
                "bitmap",
                "--object",
                SECRET,
                "--add",
                "--disable",
                "--merge",
                "m",
                "--enable",
                "--clear",
                "--remove",
            ],
            *["-g", "65536", "-b", "/c", "-F", "qcow2", "--", "/a", "b"],
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_command_line_is(case: str) -> None:
    made, expected = CASES[case]
    assert made == expected


def test_sizes_are_numbers_to_qemu_img_however_they_are_written() -> None:
    def made(size: int | str) -> list[list[str]]:
        return [
            img_argv.create(Q, "/a", size, format="raw"),
            img_argv.resize(Q, "/a", size, format="raw"),
            img_argv.measure(Q, size=size, output_format="qcow2"),
            img_argv.convert(Q, ["/a"], "/b", output_format="raw", sparse_size=size, rate_limit=size),
            img_argv.commit(Q, "/a", rate_limit=size),
            img_argv.bitmap(Q, "/a", "b", ["add"], granularity=size),
            img_argv.map(Q, "/a", start_offset=size, max_length=size),
        ]

    assert made("1M") == made("1024k") == made(1 << 20)
    assert all("1048576" in " ".join(argv) for argv in made("1M"))


def test_a_relative_name_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.chdir(str(tmp_path))
    assert img_argv.info(Q, "nbd:x")[-1] == f"{tmp_path}/nbd:x"
    assert img_argv.info(Q, "--help")[-1] == f"{tmp_path}/--help"
    assert img_argv.info(Q, "d/../json:{}")[-1] == f"{tmp_path}/json:{{}}"


@pytest.mark.parametrize(
    "build",
    [
        lambda: img_argv.create(Q, "/a", format="qcow2", backing="b"),
        lambda: img_argv.create(Q, "/a", 1, format="qcow2", backing_format="raw"),
        lambda: img_argv.create(Q, "/a", format="qcow2", backing="", backing_format="raw"),
        lambda: img_argv.create(Q, "/a", 1, format="qcow2", options={"backing_file": "b"}),
        lambda: img_argv.convert(Q, ["/a"], "/b", output_format="qcow2", backing="c"),
        lambda: img_argv.convert(Q, [], "/b", output_format="qcow2"),
        lambda: img_argv.convert(Q, ["/a", OPTS], "/b", output_format="qcow2"),
        lambda: img_argv.rebase(Q, "/a", backing="b"),
        lambda: img_argv.compare(Q, "/a", OPTS),
        lambda: img_argv.measure(Q, output_format="raw"),
        lambda: img_argv.measure(Q, "/a", size=1, output_format="raw"),
        lambda: img_argv.amend(Q, "/a", {}),
        lambda: img_argv.amend(Q, "/a", {"backing_fmt": "raw"}),
        lambda: img_argv.bitmap(Q, "/a", "b", []),
        lambda: img_argv.snapshot(Q, "/a", "create", ""),
        lambda: img_argv.parse_options("a=b,,=c,=d"),
    ],
)
def test_a_request_that_makes_no_sense_is_a_usage_error(build: object) -> None:
    assert callable(build)
    with pytest.raises(UsageError) as caught:
        build()
    assert caught.value.message


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("a=b", {"a": "b"}),
        ("a=b,c", {"a": "b", "c": "on"}),
        ("a=x,,y,b=,c=,,,d=1", {"a": "x,y", "b": "", "c": ",", "d": "1"}),
        ("file.filename=/x=y", {"file.filename": "/x=y"}),
    ],
)
def test_option_lists_are_read_as_qemu_reads_them(text: str, options: dict[str, str]) -> None:
    assert img_argv.parse_options(text) == options


def test_option_lists_survive_the_way_there_and_back() -> None:
    options = {"a": ",", "b": "x,,y,", "c": "1=2"}
    assert img_argv.parse_options(img_argv.join_options(options)) == options
