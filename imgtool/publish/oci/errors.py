"""What goes wrong between this machine and a registry."""

from __future__ import annotations

from imgtool.errors import ImgtoolError


class RegistryError(ImgtoolError):
    """A registry could not be reached, or said no."""

    code = "registry"


class RegistryAuthError(RegistryError):
    """It wants to know who we are, or does not let us."""

    code = "registry-auth"


class RegistryNotFoundError(RegistryError):
    """It does not have what was asked for."""

    code = "registry-not-found"


class DigestError(RegistryError):
    """Bytes are not those that their digest names."""

    code = "digest-mismatch"
