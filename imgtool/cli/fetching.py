"""What brings the images in registries that recipes start from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgtool.cli.context import Context

if TYPE_CHECKING:
    from imgtool.build.base import Fetch
    from imgtool.publish.oci.connection import Connection


def fetcher(context: Context, connection: Connection | None = None) -> Fetch:
    """For `imgtool.build.base.fetching`; what talks to registries is loaded when a recipe needs it."""

    def bring(reference: str, digest: str) -> str:
        from imgtool.cli.progress import progress
        from imgtool.publish.oci.connection import DEFAULT
        from imgtool.publish.oci.fetch import fetch

        with progress(context, f"fetch {reference}") as show:
            return fetch(
                reference, digest, connection=connection or DEFAULT, qemu_img=context.qemu_img, progress=show
            )

    return bring
