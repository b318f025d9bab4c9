"""`imgtool build RECIPE`, and `imgtool build lint IMAGE`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import click

from imgtool.cli.context import Context, output_option, pass_context, progress_option, quiet_option
from imgtool.cli.lazy import add_help
from imgtool.cli.options import FILE_NAME, Word, file_argument, force_option, format_option
from imgtool.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from imgtool.build.built import Built
    from imgtool.build.lint import Lint
    from imgtool.build.plan import BuildPlan
    from imgtool.build.session import Decide, Failure
    from imgtool.publish.buildcache import LayerCache

layers_option = click.option(
    "--layers",
    "layers_",
    type=FILE_NAME,
    metavar="DIR",
    help="Where layers are kept.  [env: IMGTOOL_LAYERS; default: the user's data folder]",
)


arg_option = click.option(
    "--arg",
    "args_",
    type=Word("recipe_arguments"),
    multiple=True,
    metavar="NAME[=VALUE]",
    help="Give an argument of the recipe this value or, without VALUE, that of the environment variable NAME.",
)


ELSEWHERE = {
    "--build-arg": "--arg NAME=VALUE",
    "--var": "--arg NAME=VALUE",
    "--target": "--to-layer NAME",
    "--pull": "a `from` is pinned by its digest",
    "-t": "`[output] path` in the recipe names the image, `imgtool push` sends it to a registry",
    "--tag": "`[output] path` in the recipe names the image, `imgtool push` sends it to a registry",
    "-f": "the recipe is the argument: `imgtool build RECIPE`",
    "--file": "the recipe is the argument: `imgtool build RECIPE`",
}
"""What docker and Packer call it."""


class BuildCommand(click.Command):
    """`build lint` is a command of its own; a recipe of that name is `./lint`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if error.option_name in ELSEWHERE:
                raise UsageError(
                    f"there is no option {error.option_name}", hint=ELSEWHERE[error.option_name]
                ) from error
            raise

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args and args[0] == "lint":
            add_help(lint)
            return lint.make_context("build lint", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command(
    cls=BuildCommand,
    epilog="\b\nA recipe:\n"
    "  [image]\n"
    '  name = "web"\n'
    '  from = "debian-12.qcow2"\n'
    "  [[layer]]\n"
    '  name = "packages"\n'
    '  run = ["apt-get update", "apt-get install -y nginx"]\n'
    "  [[layer]]\n"
    '  name = "sealed"\n'
    '  seal = ["machine-id", "ssh-host-keys", "cloud-init", "package-cache"]\n'
    "  [output]\n"
    '  path = "web.qcow2"\n'
    "\n\b\nExamples:\n"
    "  imgtool build web.toml\n"
    "  imgtool build web.toml --plan\n"
    "  imgtool build web.toml --on-error shell\n"
    "  APT_TOKEN=… imgtool build web.toml --from-layer packages\n"
    "  imgtool build web.toml --arg VERSION=1.5\n"
    "  imgtool build web.toml --cache-from registry.example.org/cache --cache-to registry.example.org/cache\n"
    "  imgtool build web.toml --secret APT_TOKEN=token.txt\n"
    "  imgtool build lint web.qcow2\n"
    "\n"
    "`imgtool schema recipe --toml` shows all that a recipe may hold; `imgtool layers` lists and prunes what was\n"
    "built. "
    "`imgtool build lint IMAGE` looks for what must not be in an image that will be cloned.",
)
@file_argument("recipe", metavar="RECIPE")
@click.option(
    "--plan",
    is_flag=True,
    help="Show what would be built, how long it would take and how large it would be, without changing anything.",
)
@click.option("--explain", is_flag=True, help="Like --plan, naming the exact inputs that changed.")
@click.option("--dry-run", is_flag=True, help="The same as --plan.")
@arg_option
@click.option("--no-cache", is_flag=True, help="Rebuild every layer.")
@click.option(
    "--from-layer", type=Word("recipe_layers"), metavar="NAME", help="Rebuild this layer and those after it."
)
@click.option("--to-layer", type=Word("recipe_layers"), metavar="NAME", help="Stop after this layer; make no output.")
@click.option(
    "--on-error",
    type=click.Choice(["clean", "keep", "shell"]),
    default="clean",
    help="If a step fails: leave nothing, keep the failed overlay, or open the guest's console.  [default: clean]",
)
@click.option(
    "--secret",
    "secrets",
    type=Word("secret"),
    multiple=True,
    metavar="NAME[=FILE]",
    help="Read a secret from FILE or, without FILE, from the environment, where the recipe's secrets are "
    "looked up by default.",
)
@click.option(
    "--cache-from",
    metavar="REPOSITORY",
    help="Take layers that are not here from this repository of a registry.",
)
@click.option(
    "--cache-to", metavar="REPOSITORY", help="Push the image's layers to this repository, for other machines."
)
@layers_option
@force_option("Replace the output even if images stand on it.")
@progress_option
@quiet_option
@output_option()
@pass_context
def build(
    context: Context,
    /,
    recipe: str,
    plan: bool,
    explain: bool,
    dry_run: bool,
    args_: tuple[str, ...],
    no_cache: bool,
    from_layer: str | None,
    to_layer: str | None,
    on_error: str,
    secrets: tuple[str, ...],
    cache_from: str | None,
    cache_to: str | None,
    layers_: str | None,
    force: bool,
) -> None:
    """Build the golden image that RECIPE describes, layer by layer; unchanged layers come from the cache.

    Each layer is stored under a key made of everything that goes into it. A single VM is started for the layers that
    have to be built. A build killed at any moment resumes after its last finished layer.
    """
    from imgtool.build.recipe import load_recipe
    from imgtool.build.run import build_image, plan_build
    from imgtool.cli.build_watch import watcher_for
    from imgtool.cli.fetching import fetcher
    from imgtool.cli.output import emit

    loaded = load_recipe(recipe, arguments_of(args_))
    wanted = [name for layer in loaded.recipe.layers for name in layer.secrets]
    values = _secrets(wanted, secrets)
    fetch = fetcher(context)
    if plan or explain or dry_run:
        found = plan_build(
            loaded,
            layers=layers_,
            no_cache=no_cache,
            from_layer=from_layer,
            to_layer=to_layer,
            force=force,
            fetch=fetch,
            qemu_img=context.qemu_img,
        )
        emit(context, found, _plan_lines(found, explain=explain))
        return
    built = build_image(
        loaded,
        layers=layers_,
        no_cache=no_cache,
        from_layer=from_layer,
        to_layer=to_layer,
        secrets=values,
        on_error=on_error,  # type: ignore[arg-type]
        decide=_console(context),
        force=force,
        cache_from=_cache(cache_from),
        cache_to=_cache(cache_to),
        watcher=watcher_for(context),
        fetch=fetch,
        qemu_img=context.qemu_img,
    )
    emit(context, built, _built_lines(built))


def _cache(repository: str | None) -> LayerCache | None:
    if repository is None:
        return None
    from imgtool.publish.buildcache import LayerCache

    return LayerCache(repository)


def arguments_of(words: Sequence[str]) -> dict[str, str]:
    """The arguments that --arg gives. UsageError for a variable that is not set."""
    from imgtool.image.names import printable

    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals and name not in os.environ:
            shown = printable(name)
            raise UsageError(f"{shown} is not set", hint=f"write --arg {shown}=VALUE, or set it in the environment")
        found[name] = value if equals else os.environ[name]
    return found


def _secrets(wanted: Sequence[str], given: Sequence[str]) -> dict[str, str]:
    """The values of secrets. They leave our environment, which every program we start would inherit. ConfigError for
    a file that cannot be read, UsageError for a variable that is not set."""
    from imgtool.image.names import printable

    found: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not name:
            raise UsageError(f"--secret {printable(text)} has no name", hint="write --secret NAME=FILE")
        if equals:
            found[name] = _secret_file(name, path)
        elif name in os.environ:
            found[name] = os.environ[name]
        else:
            shown = printable(name)
            raise UsageError(f"{shown} is not set", hint=f"set it in the environment, or give --secret {shown}=FILE")
    for name in wanted:
        if name not in found and name in os.environ:
            found[name] = os.environ[name]
    for name in {*found, *wanted}:
        os.environ.pop(name, None)
    return found


def _secret_file(name: str, path: str) -> str:
    from imgtool.image.names import printable

    try:
        with open(path, "rb") as file:
            content = file.read(1 << 20)
    except OSError as error:
        raise ConfigError(
            f"the secret {name} cannot be read from {printable(path)}: {error.strerror}", path=path
        ) from error
    if b"\0" in content:
        raise ConfigError(f"the secret {name} holds a NUL byte, which no variable can", path=path)
    return os.fsdecode(content.removesuffix(b"\n").removesuffix(b"\r"))


def _console(context: Context) -> Decide:
    """With --on-error shell: the guest's console, then the question."""

    def decide(failure: Failure) -> Literal["retry", "give-up"]:
        import sys

        from imgtool.cli.output import remark, report
        from imgtool.machine.console import attach
        from imgtool.machine.runtime import find

        if not sys.stdin.isatty():
            if not context.json:
                remark(context, "stdin is not a terminal: the guest's console is not opened")
            return "give-up"
        report(context, failure.error)
        vm, _ = find(failure.guest.name)
        remark(context, f"at the console of {failure.guest.name}; Ctrl-A X leaves it, then you decide")
        if attach(vm.file("serial0.sock")) == "ended":
            return "give-up"
        click.echo(err=True)  # the guest's prompt stands there
        again = click.confirm(f"Try the layer {failure.layer} again? (It will be marked as made by hand)", err=True)
        return "retry" if again else "give-up"

    return decide


def _plan_lines(plan: BuildPlan, *, explain: bool) -> Iterator[str]:
    from imgtool.cli.render import counted, short_size
    from imgtool.image.names import printable

    yield f"base    {printable(plan.base)}"
    words = {"hit": "cached", "miss": "build", "unknown": "build?"}
    for layer in plan.layers:
        about = ""
        if layer.state != "hit" and layer.seconds is not None and layer.size is not None:
            about = f"  about {layer.seconds:.0f} s, {short_size(layer.size)}"
        key = f"  {layer.key[:12]}" if layer.key else ""
        yield f"{words[layer.state]:<7} {layer.name}{key}{about}"
        if explain:
            yield from (f"          {change}" for change in layer.changes)
    yield f"output  {({'current': 'up to date', 'make': 'to be made', 'none': 'none'})[plan.output]}"
    known = [layer.seconds for layer in plan.layers if layer.state != "hit" and layer.seconds is not None]
    total = f", about {sum(known):.0f} s of steps" if known else ""
    yield f"boots   {counted(plan.boots, 'VM')}{total}"


def _built_lines(built: Built) -> Iterator[str]:
    from imgtool.cli.render import counted, short_size
    from imgtool.image.names import printable

    for layer in built.layers:
        how = "pulled" if layer.pulled else "cached" if layer.cached else f"{layer.seconds:.1f} s"
        yield f"{layer.name:<20} {layer.key[:12]}  {how:>9}  {short_size(layer.size)}"
    for output in built.outputs:
        how = "made" if output.made else "up to date"
        yield f"{printable(output.path)}: {how}, {short_size(output.size)}"
    yield f"{built.seconds:.2f} s, {counted(built.boots, 'VM')} started"


@click.command(
    epilog="\b\nExample:\n  imgtool build lint web.qcow2 --output json\n\n"
    "The exit status is 3 when there is something that must not be in a clone.",
)
@file_argument(metavar="IMAGE")
@format_option()
@quiet_option
@output_option()
@pass_context
def lint(context: Context, /, image: str, format_: str | None) -> int:
    """Look into IMAGE, without booting it, for what two clones must not share: machine-id, SSH host keys, DHCP
    leases, cloud-init's state, seeds of randomness, and what a sealed image does not need."""
    from imgtool.build.lint import lint_image
    from imgtool.cli.output import emit

    found = lint_image(image, format=format_, qemu_img=context.qemu_img)
    emit(context, found, _lint_lines(found))
    return 3 if any(hazard.severity == "error" for hazard in found.hazards) else 0


def _lint_lines(found: Lint) -> Iterator[str]:
    from imgtool.cli.render import counted
    from imgtool.image.names import printable

    for hazard in found.hazards:
        yield f"{hazard.severity}: {printable(hazard.path)}: {hazard.message}; seal with {hazard.action}"
    for system in found.systems:
        if not system.looked_at and system.type not in ("swap", "fat"):
            yield f"note: partition {system.partition} ({system.type}) was not looked at"
    if not found.hazards:
        looked = sum(system.looked_at for system in found.systems)
        yield f"nothing that clones must not share; {counted(looked, 'file system')} looked at"
