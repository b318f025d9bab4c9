"""The options of image formats (`-o`), and the values of those that have a few: what shells complete, where asking
qemu-img would take too long. What this qemu-img really has is in `imgtool.qemu.img_help`.

Left out are those that imgtool has options of its own for (size, backing file), and `encryption`, today `encrypt.*`.
"""

from __future__ import annotations

Options = dict[str, tuple[str, ...]]
"""Option → its values; empty where there are too many to list."""

LEFT_OUT = ("backing_file", "backing_fmt", "encryption", "size")

_SWITCH = ("on", "off")
_FILE: Options = {"preallocation": ("off", "falloc", "full"), "nocow": _SWITCH, "extent_size_hint": ()}
_LUKS: Options = {
    "cipher-alg": (),
    "cipher-mode": (),
    "hash-alg": (),
    "iter-time": (),
    "ivgen-alg": (),
    "ivgen-hash-alg": (),
    "key-secret": (),
}
_LUKS_AMENDED: Options = {
    "iter-time": (),
    "keyslot": (),
    "new-secret": (),
    "old-secret": (),
    "state": ("active", "inactive"),
}


def _encrypt(options: Options) -> Options:
    return {f"encrypt.{name}": values for name, values in options.items()}


CREATED: dict[str, Options] = {
    "qcow2": {
        "cluster_size": (),
        "compat": ("0.10", "1.1"),
        "compression_type": ("zlib", "zstd"),
        "data_file": (),
        "data_file_raw": _SWITCH,
        "encrypt.format": ("luks", "aes"),
        **_encrypt(_LUKS),
        "extended_l2": _SWITCH,
        "keep_data_file": _SWITCH,
        "lazy_refcounts": _SWITCH,
        "refcount_bits": ("1", "2", "4", "8", "16", "32", "64"),
        **_FILE,
        "preallocation": ("off", "metadata", "falloc", "full"),
    },
    "raw": _FILE,
    "vmdk": {
        "adapter_type": ("ide", "lsilogic", "buslogic", "legacyESX"),
        "compat6": _SWITCH,
        "hwversion": (),
        "subformat": (
            "monolithicSparse",
            "monolithicFlat",
            "twoGbMaxExtentSparse",
            "twoGbMaxExtentFlat",
            "streamOptimized",
        ),
        "toolsversion": (),
        "zeroed_grain": _SWITCH,
        **_FILE,
    },
    "vdi": {"static": _SWITCH, **_FILE},
    "vhdx": {
        "block_size": (),
        "block_state_zero": _SWITCH,
        "log_size": (),
        "subformat": ("dynamic", "fixed"),
        **_FILE,
    },
    "vpc": {"force_size": _SWITCH, "subformat": ("dynamic", "fixed"), **_FILE},
    "qed": {"cluster_size": (), "table_size": (), **_FILE},
    "qcow": {"encrypt.format": ("aes",), "encrypt.key-secret": (), **_FILE},
    "luks": {**_LUKS, "detached-header": _SWITCH, **_FILE},
    "parallels": {"cluster_size": (), **_FILE},
}
"""Format → its options for `create` and `convert`, those of files included."""

AMENDED: dict[str, Options] = {
    "qcow2": {
        "compat": ("0.10", "1.1"),
        "data_file": (),
        "data_file_raw": _SWITCH,
        **_encrypt(_LUKS_AMENDED),
        "lazy_refcounts": _SWITCH,
        "refcount_bits": ("1", "2", "4", "8", "16", "32", "64"),
    },
    "luks": _LUKS_AMENDED,
}
"""Format → its options for `amend`."""
