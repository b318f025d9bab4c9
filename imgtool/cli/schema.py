"""`imgtool schema NAME`"""

from __future__ import annotations

import importlib
from typing import Any

import click

from imgtool.cli.context import Context, pass_context
from imgtool.cli.output import to_json
from imgtool.cli.schema_input import widen
from imgtool.cli.schema_words import describe
from imgtool.errors import UsageError
from imgtool.image.names import printable

DOCUMENTS = {
    "amend": "imgtool.qemu.results:Changed",
    "bitmap": "imgtool.qemu.results:Changed",
    "boot": "imgtool.cli.documents:Launched",
    "boot-cpus": "imgtool.cli.documents:CpuModels",
    "boot-machines": "imgtool.cli.documents:MachineTypes",
    "boot-nic-models": "imgtool.cli.documents:NicModels",
    "boot-plan": "imgtool.machine.plan:PlanDocument",
    "build": "imgtool.build.built:Built",
    "build-lint": "imgtool.build.lint:Lint",
    "build-plan": "imgtool.build.plan:BuildPlan",
    "chain": "imgtool.chain.graph:Graph",
    "chain-anchor": "imgtool.operations.anchor:Answers",
    "chain-collect": "imgtool.operations.collect:Collected",
    "chain-collect-list": "imgtool.operations.quarantine:Batches",
    "chain-collect-purge": "imgtool.operations.quarantine:Batches",
    "chain-collect-undo": "imgtool.operations.quarantine:Quarantined",
    "chain-diff": "imgtool.chain.diff:Diff",
    "chain-flatten": "imgtool.operations.flatten:Flattened",
    "chain-layers": "imgtool.chain.layers:Layers",
    "chain-move": "imgtool.operations.moving:Moved",
    "chain-repair": "imgtool.operations.repair:Repaired",
    "chain-shorten": "imgtool.operations.shorten:Shortened",
    "chain-show": "imgtool.chain.graph:Graph",
    "chain-verify": "imgtool.chain.verify:Verification",
    "check": "imgtool.image.qapi:ImageCheck",
    "commit": "imgtool.operations.commit:Commit",
    "compare": "imgtool.qemu.results:CompareResult",
    "containerdisk": "imgtool.publish.containerdisk:Exported",
    "convert": "imgtool.qemu.results:Created",
    "create": "imgtool.qemu.results:Created",
    "doctor": "imgtool.cli.documents:Checks",
    "doctor-check": "imgtool.machine.doctor:Check",
    "error": "imgtool.cli.error_document:ErrorDocument",
    "export-containerdisk": "imgtool.publish.containerdisk:Exported",
    "export-kubevirt": "imgtool.publish.kubevirt.manifests:Manifests",
    "export-libvirt": "imgtool.publish.libvirt.define:Defined",
    "import-libvirt": "imgtool.publish.libvirt.reading:Imported",
    "info": "imgtool.image.qapi:ImageInfo",
    "inspect": "imgtool.image.inspect:Inspection",
    "kubevirt": "imgtool.publish.kubevirt.manifests:Manifests",
    "layer": "imgtool.build.store:Manifest",
    "layers-list": "imgtool.cli.documents:KeptLayers",
    "layers-prune": "imgtool.build.prune:Pruned",
    "layers-pull": "imgtool.cli.documents:SharedLayers",
    "layers-push": "imgtool.cli.documents:SharedLayers",
    "layers-show": "imgtool.cli.documents:LayerShown",
    "layers-tree": "imgtool.cli.documents:Layers",
    "layers-verify": "imgtool.cli.documents:VerifiedLayers",
    "libvirt": "imgtool.publish.libvirt.define:Defined",
    "libvirt-import": "imgtool.publish.libvirt.reading:Imported",
    "lint": "imgtool.build.lint:Lint",
    "machine": "imgtool.machine.config:Machine",
    "manifest": "imgtool.build.result:ImageManifest",
    "map": "imgtool.cli.map:Map",
    "measure": "imgtool.image.qapi:BlockMeasureInfo",
    "mount": "imgtool.publish.mount:Mount",
    "net": "imgtool.machine.nets.values:Network",
    "net-create": "imgtool.machine.nets.values:Network",
    "net-delete": "imgtool.cli.documents:NetworkDeleted",
    "net-list": "imgtool.cli.documents:Networks",
    "net-plan": "imgtool.machine.nets.values:Plan",
    "net-show": "imgtool.machine.nets.values:Network",
    "overlay-commit": "imgtool.operations.commit:Commit",
    "overlay-delete": "imgtool.operations.delete:Deleted",
    "overlay-list": "imgtool.operations.overlay:Overlays",
    "overlay-new": "imgtool.chain.graph:Image",
    "overlay-reset": "imgtool.operations.reset:Reset",
    "plan": "imgtool.operations.plan:Plan",
    "profile": "imgtool.machine.config:Machine",
    "pull": "imgtool.publish.oci.pull:Pulled",
    "push": "imgtool.publish.oci.push:Pushed",
    "push-config": "imgtool.publish.oci.values:Config",
    "rebase": "imgtool.operations.rebase:Rebase",
    "recipe": "imgtool.build.recipe:Recipe",
    "resize": "imgtool.qemu.results:Changed",
    "serve": "imgtool.publish.serve:Export",
    "snapshot": "imgtool.qemu.results:Changed",
    "snapshots": "imgtool.cli.snapshot:Snapshots",
    "sync": "imgtool.publish.sync.request:Synced",
    "unmount": "imgtool.publish.mount:Mount",
    "vm": "imgtool.machine.control:Status",
    "vm-exec": "imgtool.cli.documents:Executed",
    "vm-kill": "imgtool.machine.ending:Ended",
    "vm-list": "imgtool.cli.documents:Vms",
    "vm-monitor": "imgtool.machine.control:Said",
    "vm-pause": "imgtool.machine.control:Steered",
    "vm-qmp": "imgtool.machine.control:Answered",
    "vm-reset": "imgtool.machine.control:Steered",
    "vm-resume": "imgtool.machine.control:Steered",
    "vm-screenshot": "imgtool.machine.control:Screenshot",
    "vm-set-cpus": "imgtool.machine.plugging:CpusSet",
    "vm-change": "imgtool.machine.media:MediumChanged",
    "vm-eject": "imgtool.machine.media:MediumChanged",
    "vm-set-memory": "imgtool.machine.plugging:MemorySet",
    "vm-show": "imgtool.machine.control:Status",
    "vm-stop": "imgtool.machine.ending:Ended",
    "vm-wait": "imgtool.machine.readiness:Reached",
}
"""Document name → `module:Type` of the struct that is its shape."""


FILES = {
    "machine": {},
    "profile": {},
    "recipe": {"machine": "Whatever a profile holds, and:"},
}
"""The documents that people write, and the tables in them of which another document tells."""


class _DocumentName(click.Choice[str]):
    """Completed as a choice is; its many values are not listed in an error."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value in DOCUMENTS:
            return str(value)
        import difflib

        near = [name for name in DOCUMENTS if value in name.split("-")]
        near = near or difflib.get_close_matches(str(value), DOCUMENTS, n=1)
        meant = f"did you mean {' or '.join(map(repr, near[:3]))}? " if near else ""
        raise UsageError(
            f"there is no document '{printable(str(value))}'", hint=f"{meant}`imgtool schema` lists them"
        )


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool schema                            # the names of the documents\n"
    "  imgtool schema chain > chain.schema.json\n"
    "  imgtool schema recipe --toml              # all that a recipe may hold, for people"
)
@click.argument("name", type=_DocumentName(sorted(DOCUMENTS)), metavar="[NAME]", required=False)
@click.option("--toml", is_flag=True, help="Print what a file of that kind may hold, for people, as TOML has it.")
@pass_context
def schema(_: Context, name: str | None, toml: bool) -> None:
    """Print the JSON Schema of the document NAME: what a command writes with --output json, under the command's name
    (`chain-show`), `plan` for what it writes with --dry-run, `error` for what it writes to stderr when it fails; or
    what imgtool reads (`profile`, also called `machine`, and `recipe`). Without NAME, list the documents.

    The schema of `info`, `inspect` and `overlay-new` is that of one image: of several, they write an array.
    """
    if toml and name not in FILES:
        raise UsageError("--toml is for files that people write", hint=f"these are: {', '.join(sorted(FILES))}")
    if name is None:
        for document in sorted(DOCUMENTS):
            click.echo(document)
    elif toml:
        from imgtool.cli.schema_toml import lines_of

        for line in lines_of(schema_of(name), elsewhere=FILES[name]):
            click.echo(line)
    else:
        click.echo(to_json(schema_of(name)))


def schema_of(name: str) -> dict[str, Any]:
    """The JSON Schema of the document `name`, with the words that the code has for its types and their fields."""
    import msgspec

    from imgtool.image.qapi import FORMAT_SPECIFIC

    module, _sep, attribute = DOCUMENTS[name].partition(":")
    shape = getattr(importlib.import_module(module), attribute)
    found = msgspec.json.schema(shape)
    structs = found.setdefault("$defs", {})
    specifics = FORMAT_SPECIFIC.values() if "FormatSpecific" in structs else ()
    if specifics:
        references, more = msgspec.json.schema_components(specifics, ref_template="#/$defs/{name}")
        structs |= more
        structs["FormatSpecific"]["properties"]["data"]["anyOf"] = [*references, {"type": "object"}]
    for struct in structs.values():
        # what QAPI's structs keep of a newer QEMU stands beside their other fields in the document
        if struct.get("properties", {}).pop("*", None) is not None:
            struct["additionalProperties"] = True
    describe(found, shape, *specifics)
    widen(found, read=name in FILES)
    return found
