"""The magic numbers by which a format is known; at the beginning of the file unless it says otherwise.

They stand apart from the readers of the formats: most files of most directories are none of these, and to see that
takes no reader.
"""

from __future__ import annotations

QCOW2 = b"QFI\xfb"
"""qcow's, too; the version behind it tells them apart."""
QED = b"QED\0"
VMDK = b"KDMV"
VMDK_OLD = b"COWD"
VDI = b"\x7f\x10\xda\xbe"
VDI_AT = 64
VHDX = b"vhdxfile"
VPC = b"conectix"
LUKS = b"LUKS\xba\xbe"
PARALLELS_OLD = b"WithoutFreeSpace"
PARALLELS_EXTENDED = b"WithouFreSpacExt"
BOCHS = b"Bochs Virtual HD Image\0"
CLOOP = b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"
