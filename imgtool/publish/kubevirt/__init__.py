"""A machine as KubeVirt's manifests: a VirtualMachine, and a DataVolume for each disk.

Every setting of the machine is either in the manifests or in the list of what KubeVirt has no words for
(`LeftOut`): each part of the machine is taken by one function, which notes all settings that it does not know.
Source: the CRDs' OpenAPI schemas of kubevirt.io/v1 and cdi.kubevirt.io/v1beta1, and KubeVirt's user guide.
"""
