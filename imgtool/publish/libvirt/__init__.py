"""Machines as libvirt's domain XML, and domains as machines.

As with KubeVirt, every setting of a machine is either in the XML or in the list of what libvirt has no words for.
What has no element but means the same on QEMU's command line stands in `<qemu:commandline>`.
Source: libvirt's formatdomain.html and its RELAX NG schema, by which `virt-xml-validate` judges.
"""
