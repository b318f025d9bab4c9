"""`imgtool boot web.toml@packages`: a layer where an image is wanted."""

from __future__ import annotations

from typing import Any

import click


def open_layer(image: str, words: dict[str, Any], *, throwaway: bool) -> tuple[str, dict[str, Any]]:
    """The image that `image` names, and the machine's settings. Where it is `RECIPE.toml@LAYER`: that layer's
    overlay, in the recipe's machine with `words` on top, its writes thrown away."""
    from imgtool.build.reference import is_reference, resolve

    if not is_reference(image):
        return image, words
    from imgtool.build.store import Store
    from imgtool.image.policy import current, in_force
    from imgtool.machine.options.words import merge

    found = resolve(image, Store())
    click.get_current_context().with_resource(in_force(current().naming(*found.trusted)))
    merged = merge(found.settings, words)
    if throwaway:
        merged["ephemeral"] = True
    return found.image, merged
