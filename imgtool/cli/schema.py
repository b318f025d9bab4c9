"""`imgtool schema NAME`"""

from __future__ import annotations

import importlib

import click

from imgtool.cli.context import Context, pass_context
from imgtool.cli.output import to_json

DOCUMENTS = {
    "amend": "imgtool.qemu.results:Changed",
    "bitmap": "imgtool.qemu.results:Changed",
    "build": "imgtool.build.engine:Built",
    "build-plan": "imgtool.build.plan:BuildPlan",
    "chain": "imgtool.chain.graph:Graph",
    "chain-anchor": "imgtool.operations.anchor:Answers",
    "chain-flatten": "imgtool.operations.flatten:Flattened",
    "chain-collect": "imgtool.operations.collect:Collected",
    "chain-collect-list": "imgtool.operations.quarantine:Batches",
    "chain-diff": "imgtool.chain.diff:Diff",
    "chain-layers": "imgtool.chain.layers:Layers",
    "chain-move": "imgtool.operations.move:Moved",
    "chain-repair": "imgtool.operations.repair:Repaired",
    "chain-shorten": "imgtool.operations.shorten:Shortened",
    "chain-verify": "imgtool.chain.verify:Verification",
    "check": "imgtool.image.qapi:ImageCheck",
    "commit": "imgtool.operations.commit:Commit",
    "compare": "imgtool.qemu.results:CompareResult",
    "containerdisk": "imgtool.publish.containerdisk:Exported",
    "convert": "imgtool.qemu.results:Created",
    "create": "imgtool.qemu.results:Created",
    "error": "imgtool.cli.error_document:ErrorDocument",
    "info": "imgtool.image.qapi:ImageInfo",
    "inspect": "imgtool.image.inspect:Inspection",
    "libvirt": "imgtool.publish.libvirt.define:Defined",
    "libvirt-import": "imgtool.publish.libvirt.reading:Imported",
    "kubevirt": "imgtool.publish.kubevirt.manifests:Manifests",
    "layer": "imgtool.build.store:Manifest",
    "layers-prune": "imgtool.build.prune:Pruned",
    "lint": "imgtool.build.lint:Lint",
    "machine": "imgtool.machine.config:Machine",
    "profile": "imgtool.machine.config:Machine",
    "boot-plan": "imgtool.machine.plan:PlanDocument",
    "doctor-check": "imgtool.machine.doctor:Check",
    "vm": "imgtool.machine.control:Status",
    "vm-kill": "imgtool.machine.ending:Ended",
    "vm-pause": "imgtool.machine.control:Steered",
    "vm-reset": "imgtool.machine.control:Steered",
    "vm-resume": "imgtool.machine.control:Steered",
    "vm-screenshot": "imgtool.machine.control:Screenshot",
    "vm-set-cpus": "imgtool.machine.control:CpusSet",
    "vm-stop": "imgtool.machine.ending:Ended",
    "vm-wait": "imgtool.machine.readiness:Reached",
    "manifest": "imgtool.build.result:ImageManifest",
    "map": "imgtool.cli.map:Map",
    "measure": "imgtool.image.qapi:BlockMeasureInfo",
    "net": "imgtool.machine.nets.values:Network",
    "net-plan": "imgtool.machine.nets.values:Plan",
    "overlay-new": "imgtool.chain.graph:Image",
    "overlay-list": "imgtool.operations.overlay:Overlays",
    "overlay-delete": "imgtool.operations.delete:Deleted",
    "overlay-reset": "imgtool.operations.reset:Reset",
    "plan": "imgtool.operations.plan:Plan",
    "pull": "imgtool.publish.oci.pull:Pulled",
    "push": "imgtool.publish.oci.push:Pushed",
    "push-config": "imgtool.publish.oci.values:Config",
    "rebase": "imgtool.operations.rebase:Rebase",
    "recipe": "imgtool.build.recipe:Recipe",
    "resize": "imgtool.qemu.results:Changed",
    "serve": "imgtool.publish.serve:Export",
    "mount": "imgtool.publish.mount:Mount",
    "sync": "imgtool.publish.sync.request:Synced",
    "snapshot": "imgtool.qemu.results:Changed",
    "snapshots": "imgtool.cli.snapshot:Snapshots",
}
"""Document name → `module:Type` of the struct that is its shape."""


@click.command(epilog="\b\nExample:\n  imgtool schema chain > chain.schema.json")
@click.argument("name", type=click.Choice(sorted(DOCUMENTS)), metavar="NAME")
@pass_context
def schema(_: Context, name: str) -> None:
    """Print the JSON Schema of the document NAME: what a command writes with --output json, under the command's name
    (`chain` for chain show, `error` for what it writes to stderr when it fails), or what imgtool reads (`profile`,
    also called `machine`, and `recipe`)."""
    import msgspec

    module, _sep, attribute = DOCUMENTS[name].partition(":")
    found = msgspec.json.schema(getattr(importlib.import_module(module), attribute))
    for struct in found.get("$defs", {}).values():
        # what QAPI's structs keep of a newer QEMU stands beside their other fields in the document
        if struct.get("properties", {}).pop("*", None) is not None:
            struct["additionalProperties"] = True
    click.echo(to_json(found))
