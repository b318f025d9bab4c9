"""Building: from the last layer that is still right to the finished image, in one VM.

The VM is started when the first layer has to be built and stays up across layers. At the end of a layer its guest is
synced (frozen, where its executor can), and QEMU writes to a new overlay from then on; the closed one is checked,
digested and moved into the store while the guest goes on. The last layer is closed by shutting the guest down.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from imgtool.build.base import base_path, parents, refuse_unknown
from imgtool.build.built import Built, LayerResult, OutputResult
from imgtool.build.current import is_current, is_thin, made_of
from imgtool.build.keys import KeyDocument, inert, plain
from imgtool.build.memory import Memory
from imgtool.build.plan import BuildPlan, Choice, Inputs, gather, is_fresh, make_plan, why_missed
from imgtool.build.recipe import Loaded, Output
from imgtool.build.records import BuiltLayer, Record, read_record, touch_record, write_record
from imgtool.build.session import Decide, OnError, Session, Tools
from imgtool.build.store import Layer, Store
from imgtool.build.target import check_output, refuse_replacing
from imgtool.build.watcher import Watcher
from imgtool.errors import ConfigError, ImgtoolError
from imgtool.image.manifest import SUFFIX
from imgtool.image.names import printable
from imgtool.image.policy import current, in_force
from imgtool.qemu.qemu_img import QemuImg

if TYPE_CHECKING:
    from imgtool.build.guest import Starter
    from imgtool.build.layers import Ground
    from imgtool.build.sharing import Cache


class Builder:
    """Builds recipes. What starts VMs is passed in, so that a test can put something else in their place."""

    def __init__(
        self,
        store: Store,
        qemu_img: QemuImg,
        start: Starter,
        *,
        memory: Memory | None = None,
        watcher: Watcher | None = None,
        secrets: Mapping[str, str] | None = None,
        on_error: OnError = "clean",
        decide: Decide = lambda _: "give-up",
        force: bool = False,
        cache_from: Cache | None = None,
        cache_to: Cache | None = None,
    ) -> None:
        """`secrets` are values by name. `force` replaces an output although images stand on it. Layers that are not
        in the store are looked for in `cache_from`, and all that the image has go to `cache_to`."""
        self.tools = Tools(
            store=store,
            qemu_img=qemu_img,
            start=start,
            memory=memory or Memory(),
            watcher=watcher or Watcher(),
            secrets=dict(secrets or {}),
            on_error=on_error,
            decide=decide,
            force=force,
            cache_from=cache_from,
            cache_to=cache_to,
        )

    def plan(self, loaded: Loaded, choice: Choice = Choice()) -> BuildPlan:  # noqa: B008 - it is frozen
        with trusting(self.tools.store, loaded):
            refuse_unknown(loaded)
            plan = make_plan(loaded, self.tools.store, self.tools.memory, self.tools.qemu_img, choice)
            if plan.output == "make":
                _refuse_replacing(self.tools, loaded)
        return plan

    def build(self, loaded: Loaded, choice: Choice = Choice()) -> Built:  # noqa: B008
        """Brings the recipe's image up to date, those of the recipes that it starts from first.

        ConfigError for a recipe or an input that is wrong, StepFailed for a step that fails, and whatever image,
        chain and machine raise. However it ends, every layer in the store is whole, and what was sealed is there for
        the next build.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self.tools.watcher.end)
            stack.enter_context(self.tools.store.using())
            refuse_unknown(loaded)
            self.tools.store.clear_stale()
            builds = []
            for below in parents(loaded):
                self.tools.watcher.note(f"{printable(below.path)} first")
                with trusting(self.tools.store, below):
                    builds.append(_Build(self.tools, below, Choice()).run())
            with trusting(self.tools.store, loaded):
                builds.append(_Build(self.tools, loaded, choice).run())
            self._share([layer.folder for built in builds for layer in built.layers])
            return builds[-1]

    def _share(self, folders: list[str]) -> None:
        """Pushes the layers in these folders to the cache that other machines look into."""
        cache, store = self.tools.cache_to, self.tools.store
        if cache is None:
            return
        from imgtool.build.sharing import push_layers

        watcher = self.tools.watcher
        watcher.note(f"layers go to {cache.name}")
        found = [layer for folder in folders if (layer := store.layer(folder))]
        pushed = push_layers(store, found, cache, watcher.task)
        count = sum(layer.state == "pushed" for layer in pushed)
        watcher.note(f"{count} of {len(pushed)} layers were not there yet")


def _refuse_replacing(tools: Tools, loaded: Loaded) -> None:
    for output in loaded.recipe.outputs:
        refuse_replacing(output.path, layers=tools.store.root, force=tools.force)


@contextlib.contextmanager
def trusting(store: Store, loaded: Loaded) -> Iterator[None]:
    """Inside the `with` block, images may refer to what the recipe's author and imgtool itself named: its base, and
    sealed layers."""
    with in_force(current().naming(base_path(loaded), store.root)):
        yield


class _Build:
    """One build of one recipe."""

    def __init__(self, tools: Tools, loaded: Loaded, choice: Choice) -> None:
        self.tools = tools
        self.store = tools.store
        self.watcher = tools.watcher
        self.loaded = loaded
        self.choice = choice
        self.recipe = loaded.recipe
        self.inputs: Inputs = gather(loaded, tools.store, tools.memory, tools.qemu_img)
        self.record: Record = self.inputs.record
        self.last = choice.last(loaded)
        self.session = Session(tools, loaded, self.inputs, last=self.last)
        self.begun = time.monotonic()
        self.looked_ahead = False

    def run(self) -> Built:
        check_output(self.loaded, self.inputs.base, self.tools.qemu_img)
        try:
            layers, top = self._layers()
            touch_record(self.store, self.record)
            outputs = [] if self.choice.to_layer is not None else self._outputs(layers, top)
        finally:
            self.session.close()
        first = outputs[0] if outputs else None
        return Built(
            recipe=self.loaded.path,
            image=self.recipe.image.name,
            layers=tuple(result for result, _ in layers),
            boots=self.session.boots,
            output=None if first is None else first.path,
            output_made=first is not None and first.made,
            manifest=None if first is None else first.manifest,
            outputs=tuple(outputs),
            seconds=round(time.monotonic() - self.begun, 3),
        )

    def _layers(self) -> tuple[list[tuple[LayerResult, Layer]], str]:
        """Every layer, found or built, and the content of the last one."""
        results: list[tuple[LayerResult, Layer]] = []
        below: Layer | None = None
        content = self.inputs.base.content
        for number in range(self.last + 1):
            document = self.inputs.document(number, content, self.tools.memory)
            key = document.key()
            with self._claimed(key, number):
                layer, how = self._layer(number, document, below)
            manifest = layer.manifest
            results.append(
                (
                    LayerResult(
                        name=self.recipe.layers[number].name,
                        key=key,
                        cached=how != "built",
                        pulled=how == "pulled",
                        folder=layer.folder,
                        content=manifest.content,
                        seconds=manifest.seconds,
                        size=manifest.size,
                    ),
                    layer,
                )
            )
            below, content = layer, manifest.content
        return results, content

    def _claimed(self, key: str, number: int) -> contextlib.AbstractContextManager[None]:
        name = self.recipe.layers[number].name
        return self.store.claim(
            key, lambda: self.watcher.note(f"another build is making the layer {name}: waiting for it")
        )

    def _layer(
        self, number: int, document: KeyDocument, below: Layer | None
    ) -> tuple[Layer, Literal["found", "pulled", "built"]]:
        """The layer of this key, and where it comes from. Called with the key held."""
        wanted = self.recipe.layers[number]
        key = document.key()
        total = self.last + 1
        forced = self.choice.forces(self.loaded, number)
        found = None if forced else self.store.find(key)
        stale = found is not None
        pulled = None if forced or stale else self._pulled(number, document, below)
        found = found or pulled
        if found is not None and is_fresh(found, inert(wanted)):
            # What the guest wrote meanwhile, if it runs, stands on another copy of the layer beneath.
            self.session.end_guest()
            self.store.note_use(found)
            self.watcher.hit(number, total, wanted.name, key)
            self._deliver(number, found)
            self._note(number, document, found)
            return found, "found" if pulled is None else "pulled"
        why = why_missed(self.inputs, number, document, forced=forced, stale=stale)
        if not self.looked_ahead:
            self._look_ahead(number)
        self.watcher.start(number, total, wanted.name, key, "; ".join(why))
        from imgtool.build.making import make_layer

        layer = make_layer(self.session, number, document, below)
        self._deliver(number, layer)
        self._note(number, document, layer)
        self.watcher.done(wanted.name, layer.manifest.seconds, layer.manifest.size)
        return layer, "built"

    def _pulled(self, number: int, document: KeyDocument, below: Layer | None) -> Layer | None:
        """The layer from the cache that machines share. What is wrong with that stops no build."""
        cache = self.tools.cache_from
        if cache is None or self.looked_ahead:  # nobody else stands on what was just built
            return None
        from imgtool.build.sharing import bring

        name = self.recipe.layers[number].name
        try:
            item = cache.find(document.key())
            if item is None:
                return None
            self.watcher.note(f"the layer {name} comes from {cache.name}")
            return bring(
                cache, item, self.store, self.inputs, number, document, below, self.tools.qemu_img, self.watcher.task
            )
        except ImgtoolError as error:
            self.watcher.note(f"the layer {name} is not taken from {cache.name}: {error.message}")
            return None

    def _deliver(self, number: int, layer: Layer) -> None:
        wanted = self.recipe.layers[number]
        if wanted.fetch:
            from imgtool.build.steps import deliver

            deliver(wanted, layer.path)

    def _note(self, number: int, document: KeyDocument, layer: Layer) -> None:
        """Writes down what became of the layer, unless that is known."""
        built = BuiltLayer(
            name=self.recipe.layers[number].name,
            key=layer.manifest.key,
            folder=layer.folder,
            document=plain(document),
            seconds=layer.manifest.seconds,
            size=layer.manifest.size,
        )
        changed = self.record.with_layer(number, built)
        if number == len(self.recipe.layers) - 1:
            changed = msgspec.structs.replace(changed, layers=changed.layers[: number + 1])
        if changed != self.record:
            # Another build of the recipe may have made the output meanwhile.
            known = read_record(self.store, self.loaded)
            self.record = changed if known is None else msgspec.structs.replace(changed, outputs=known.outputs)
            write_record(self.store, self.record)

    def _look_ahead(self, number: int) -> None:
        """Raises before any work is done: ConfigError for an input that this layer or one after it needs and that
        cannot be read, and for a secret that nobody gave; RefusedError for an output that must not be replaced."""
        self.looked_ahead = True
        if self.choice.to_layer is None:
            _refuse_replacing(self.tools, self.loaded)
        for at in range(number, self.last + 1):
            self.inputs.document(at, "", self.tools.memory)
            for name in self.recipe.layers[at].secrets:
                if name not in self.tools.secrets:
                    line = self.loaded.line("layer", at, "secrets")
                    raise ConfigError(
                        f"{printable(self.loaded.path)}:{line}: the secret {name} is not there",
                        hint=f"set {name} in the environment, or give --secret {name}=FILE",
                        path=self.loaded.path,
                    )

    def _outputs(self, layers: list[tuple[LayerResult, Layer]], content: str) -> list[OutputResult]:
        """Makes what is not up to date of the outputs."""
        found = []
        for number, output in enumerate(self.recipe.outputs):
            wanted = made_of(self.loaded, output, self.inputs.base, content)
            made = not self._is_current(self.record, output, wanted)
            if made:
                self.session.end_guest()
                with self._making(output):
                    record = read_record(self.store, self.loaded)
                    if record is not None and self._is_current(record, output, wanted):
                        self.record = msgspec.structs.replace(self.record, outputs=record.outputs)
                        made = False
                    else:
                        self._make_output(number, layers)
            found.append(
                OutputResult(
                    path=output.path,
                    format=output.format,
                    made=made,
                    manifest=output.path + SUFFIX,
                    size=os.path.getsize(output.path),
                )
            )
        return found

    def _is_current(self, record: Record, output: Output, wanted: Mapping[str, Any]) -> bool:
        return not self.choice.no_cache and is_current(record, output.path, wanted)

    def _making(self, output: Output) -> contextlib.AbstractContextManager[None]:
        name = "output-" + hashlib.sha256(os.fsencode(os.path.realpath(output.path))).hexdigest()[:32]
        return self.store.claim(name, lambda: self.watcher.note("another build is making the output: waiting for it"))

    def _make_output(self, number: int, layers: list[tuple[LayerResult, Layer]]) -> None:
        from imgtool.build.result import Making, ManifestLayer, make_result

        output = self.recipe.outputs[number]
        refuse_replacing(output.path, layers=self.tools.store.root, force=self.tools.force)
        named = [(result.name, layer.manifest) for result, layer in layers]
        making = Making(
            loaded=self.loaded,
            output=output,
            # The others hold the same disk as the first, which they are made after.
            trial=number == 0,
            base=self.inputs.base,
            ground=self._ground(output, [layer for _, layer in layers]),
            layers=tuple(
                ManifestLayer(
                    name=name,
                    key=manifest.key,
                    content=manifest.content,
                    created=manifest.created,
                    seconds=manifest.seconds,
                    by_hand=manifest.by_hand,
                )
                for name, manifest in named
            ),
            qemu_img=self.tools.qemu_img,
            start=self.tools.start,
            scratch=self.session.scratch(),
            seconds=sum(result.seconds for result, _ in layers if not result.cached),
            watcher=self.watcher,
            secrets=self.tools.secrets,
        )
        built = make_result(making)
        self.session.boots += making.trial and bool(self.recipe.checks)
        self.record = self.record.with_output(built)
        write_record(self.store, self.record)

    def _ground(self, output: Output, layers: list[Layer]) -> Ground:
        """What `output` is made from."""
        from imgtool.build.layers import Ground, stand_on, untouched

        if layers:
            stand_on(self.store, layers[-1], self.inputs.base)
            return Ground.of_layer(layers[-1])
        size = self.inputs.disk.size
        if is_thin(output) or size != self.inputs.base.virtual_size:
            return untouched(self.tools.qemu_img, self.session.scratch(), self.inputs.base, size)
        return Ground.of_base(self.inputs.base)
