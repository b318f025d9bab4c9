"""Chains to another host, over ssh.

The other side needs a POSIX shell, coreutils and nothing of imgtool's or QEMU's. An image is sent into
`.imgtool-sync-….part` beside where it goes, which stays when the connection breaks, so that the next run goes on
there; it gets its name once sha256sum there says what it is, the base first, so that each image there is whole
and stands on what it stands on here.
"""
