"""How a parent on a server is given to QEMU: as the image that names it has it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from imgtool.chain.remote import opened
from imgtool.chain.scan import scan

if TYPE_CHECKING:
    from tests.conftest import Images

SSH = "driver=qcow2,file.driver=ssh,file.server.host=h,file.server.port=2222,file.path=/a,,b,file.user=u"
TREE = '{"driver":"qcow2","file":{"driver":"https","url":"https://h/a,b","sslverify":false}'


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        (
            "nbd+unix:///x?socket=/s,1",
            "driver=qcow2,file.driver=nbd,file.server.type=unix,file.server.path=/s,,1,file.export=x,backing=",
        ),
        ("https://h/a?b=c", "driver=qcow2,file.driver=https,file.url=https://h/a?b=c,backing="),
        ("ssh://u@h:2222/a,b", f"{SSH},file.host-key-check.mode=known_hosts,backing="),
        ("ssh://u@h:2222/a,b?host_key_check=no", f"{SSH},file.host-key-check.mode=none,backing="),
        (
            "ssh://u@h:2222/a,b?host_key_check=sha256:12:ab",
            f"{SSH},file.host-key-check.mode=hash,file.host-key-check.type=sha256,file.host-key-check.hash=12:ab,backing=",
        ),
        (
            f"json:{TREE}}}",
            "driver=qcow2,file.driver=https,file.url=https://h/a,,b,file.sslverify=off,backing=",
        ),
        (
            f'json:{TREE},"backing":null}}',
            "driver=qcow2,file.driver=https,file.url=https://h/a,,b,file.sslverify=off,backing=",
        ),
        (
            f'json:{TREE},"backing.driver":"nbd","backing.host":"h"}}',
            "driver=qcow2,file.driver=https,file.url=https://h/a,,b,file.sslverify=off,backing.driver=nbd,backing.host=h",
        ),
        (f'json:{TREE},"x,backing=/etc/shadow,y":1}}', None),
        (f'json:{TREE},"x":null}}', None),
        ("rbd:pool/disk", None),
    ],
)
def test_options_are_those_of_the_reference(reference: str, text: str | None, images: Images) -> None:
    top = images.overlay("top.qcow2", reference, size="1M")
    found = opened(scan([top]).by_path()[os.fspath(top)])
    assert (None if found is None else found.text) == text
