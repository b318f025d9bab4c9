"""A boot sector that proves an accelerator: it enters 64-bit mode with paging, works a little, and reports through
QEMU's isa-debug-exit device. Assembled by hand; the mnemonics stand beside the bytes.

The work, a million turns of a loop, takes real hardware half a millisecond and TCG a few; where every instruction
is emulated behind the accelerator's back it takes seconds, which is what the proof is there to notice.
"""

from __future__ import annotations

REPORT_PORT = 0xF4
_REPORT = 0x31

EXIT_STATUS = (_REPORT << 1) | 1
"""isa-debug-exit ends QEMU with twice the reported value plus one."""

_ORIGIN = 0x7C00
"""Where a BIOS loads and enters a boot sector, in 16-bit real mode."""

_TABLES = 0x1000
"""Three pages: PML4, PDPT and page directory, each with one entry; the last maps the first 2 MiB onto themselves."""

_GDT = bytes.fromhex(
    "0000000000000000"  # the null descriptor
    "ffff0000009aaf00"  # selector 8: 64-bit code, ring 0
)

_LONG_MODE = bytes.fromhex(
    "b900001000"  # mov  ecx, 0x100000
    "ffc9"  # turn: dec ecx
    "75fc"  # jnz  turn
    "48b80000000000310000"  # mov  rax, 0x31 << 40      only a 64-bit register holds it
    "48c1e828"  # shr  rax, 40
    "e7f4"  # out  0xf4, eax
    "f4"  # stop: hlt
    "ebfd"  # jmp  stop
)


def _real_mode(gdtr: int, long_mode: int) -> bytes:
    return b"".join(
        (
            bytes.fromhex(
                "fa"  # cli
                "31c0"  # xor  ax, ax
                "8ed8"  # mov  ds, ax
                "8ec0"  # mov  es, ax
                "bf0010"  # mov  di, TABLES
                "b90018"  # mov  cx, 3 * 4096 / 2
                "fc"  # cld
                "f3ab"  # rep stosw
                "c70600100320"  # mov  word [TABLES], 0x2003         PML4[0]: the PDPT, present, writable
                "c70600200330"  # mov  word [TABLES + 0x1000], 0x3003  PDPT[0]: the directory
                "c70600308300"  # mov  word [TABLES + 0x2000], 0x0083  PD[0]: a 2 MiB page at 0
                "66b820000000"  # mov  eax, 0x20       PAE
                "0f22e0"  # mov  cr4, eax
                "66b800100000"  # mov  eax, TABLES
                "0f22d8"  # mov  cr3, eax
                "66b9800000c0"  # mov  ecx, 0xc0000080  IA32_EFER
                "0f32"  # rdmsr
                "660d00010000"  # or   eax, 0x100      LME
                "0f30"  # wrmsr
            ),
            bytes.fromhex("0f0116") + gdtr.to_bytes(2, "little"),  # lgdt [gdtr]
            bytes.fromhex(
                "0f20c0"  # mov  eax, cr0
                "660d01000080"  # or   eax, 0x80000001  paging and protection
                "0f22c0"  # mov  cr0, eax
            ),
            b"\xea" + long_mode.to_bytes(2, "little") + b"\x08\x00",  # jmp  8:long_mode
        )
    )


def boot_sector() -> bytes:
    """The 512 bytes."""
    long_mode = _ORIGIN + len(_real_mode(0, 0))
    gdt = long_mode + len(_LONG_MODE)
    gdtr = gdt + len(_GDT)
    code = _real_mode(gdtr, long_mode) + _LONG_MODE + _GDT
    code += (len(_GDT) - 1).to_bytes(2, "little") + gdt.to_bytes(4, "little")
    return code.ljust(510, b"\0") + b"\x55\xaa"
