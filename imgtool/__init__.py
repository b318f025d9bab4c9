"""imgtool: git and docker-build for virtual machine disks, over stock QEMU."""
