"""How QEMU reads the names of images: plain file names, protocols, and `json:` trees. `imgtool.image.reference` is
the door."""
