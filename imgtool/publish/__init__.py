"""Images that leave this machine: to registries, as containerDisks, to KubeVirt."""
