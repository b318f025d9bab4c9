"""`imgtool schema NAME`"""

from __future__ import annotations

import importlib

import click

from imgtool.cli.context import Context, pass_context
from imgtool.cli.output import to_json

DOCUMENTS = {
    "chain": "imgtool.chain.graph:Graph",
    "check": "imgtool.image.qapi:ImageCheck",
    "info": "imgtool.image.qapi:ImageInfo",
    "measure": "imgtool.image.qapi:BlockMeasureInfo",
    "machine": "imgtool.machine.config:Machine",
}
"""Document name → `module:Type` of the struct that is its shape."""


@click.command(epilog="\b\nExample:\n  imgtool schema chain > chain.schema.json")
@click.argument("name", type=click.Choice(sorted(DOCUMENTS)))
@pass_context
def schema(_: Context, name: str) -> None:
    """Print the JSON Schema of the document NAME."""
    import msgspec

    module, _sep, attribute = DOCUMENTS[name].partition(":")
    click.echo(to_json(msgspec.json.schema(getattr(importlib.import_module(module), attribute))))
