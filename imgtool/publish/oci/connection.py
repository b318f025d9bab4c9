"""How registries are spoken to."""

from __future__ import annotations

import msgspec

from imgtool.publish.oci.reference import Reference
from imgtool.publish.oci.registry import Registry
from imgtool.publish.oci.transport import RETRIES, Transport

JOBS = 4
"""Transfers at once."""


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach registries. Without any setting, as docker does: over HTTPS, with docker's own certificates."""

    plain_http: bool = False
    """HTTP without TLS, to any host; to this machine it is spoken anyway where there is no TLS."""
    certificates: tuple[str, ...] = ()
    """Folders with CA and client certificates, besides docker's own."""
    retries: int = RETRIES
    """How often a request that failed is sent again."""
    jobs: int = JOBS
    """Transfers at once."""

    def open(self, reference: Reference) -> Registry:
        """The registry and repository of `reference`; nothing is sent yet."""
        return Registry(
            Transport(reference, plain_http=self.plain_http, certificates=self.certificates, retries=self.retries)
        )


DEFAULT = Connection()
