"""`imgtool completion SHELL`"""

from __future__ import annotations

import click


@click.command(epilog='\b\nExamples:\n  eval "$(imgtool completion bash)"\n  imgtool completion fish | source')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes imgtool's commands and options in a shell."""
    from click.shell_completion import get_completion_class

    from imgtool.cli.main import cli

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "imgtool", "_IMGTOOL_COMPLETE").source())
