"""`imgtool completion SHELL`, and what its scripts ask imgtool: which words may stand at the cursor.

The scripts hand over the line up to the cursor as the shell has it (`COMP_WORDS`), and get one candidate a line, its
parts divided by tabs: `plain`, the whole word, its help; or `file`, what stands before the name in the same word
(`file=`, `--backing=`), and the part of the name that is typed.
"""

from __future__ import annotations

import contextlib
import os
from typing import NoReturn

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    split_arg_string,
)

from imgtool.errors import ImgtoolError

_BASH = r"""
_imgtool_completion() {
    local type value rest
    COMPREPLY=()
    while IFS=$'\t' read -r type value rest; do
        if [[ $type == plain ]]; then
            COMPREPLY+=("$value")
            [[ $value == *= ]] && compopt -o nospace
        elif [[ $type == file ]]; then
            compopt -o default
        fi
    done < <(env COMP_WORDS="${COMP_LINE:0:COMP_POINT}" _IMGTOOL_BREAKS="$COMP_WORDBREAKS" \
        _IMGTOOL_COMPLETE=bash_complete "${1/#\~\//$HOME/}")
}

complete -o nosort -F _imgtool_completion imgtool
"""

_ZSH = r"""
#compdef imgtool

_imgtool_completion() {
    local line
    local -a part plain described open
    for line in ${(f)"$(env COMP_WORDS="${(j: :)words[1,CURRENT-1]} $QIPREFIX$PREFIX" \
        _IMGTOOL_COMPLETE=zsh_complete ${~words[1]})"}; do
        part=("${(@ps:\t:)line}")
        if [[ $part[1] == file ]]; then
            [[ -n $part[2] ]] && compset -P "${(b)part[2]}"
            _path_files -f
        elif [[ $part[2] == *= ]]; then
            open+=("$part[2]")
        elif [[ -n $part[3] ]]; then
            described+=("${part[2]//:/\\:}:$part[3]")
        else
            plain+=("$part[2]")
        fi
    done
    (( $#described )) && _describe -V unsorted described -U
    (( $#plain )) && compadd -U -V unsorted -a plain
    (( $#open )) && compadd -U -S '' -V unsorted -a open
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _imgtool_completion "$@"
else
    compdef _imgtool_completion imgtool
fi
"""

_FISH = r"""
function _imgtool_completion
    for line in (env COMP_WORDS=(commandline -cp | string collect) _IMGTOOL_COMPLETE=fish_complete imgtool)
        set -l part (string split \t -- $line)
        if test "$part[1]" = file
            for path in (__fish_complete_path "$part[3]")
                printf '%%s%%s\n' "$part[2]" $path
            end
        else
            printf '%%s\t%%s\n' "$part[2]" "$part[3]"
        end
    end
end

complete --no-files --command imgtool --arguments "(_imgtool_completion)"
"""


class _Whole(ShellComplete):
    """Completes whole words: the option of `--output=js` and the keys of `file=x,form` are part of the candidates."""

    _word = ""

    def get_completion_args(self) -> tuple[list[str], str]:
        mark = "\0"  # tells a word that is begun from the space behind one
        words = split_arg_string(os.environ["COMP_WORDS"] + mark)
        self._word = words[-1].removesuffix(mark)
        return words[1:-1], self._word

    def format_completion(self, item: CompletionItem) -> str:
        option, equals, _ = self._word.partition("=")
        prefix = option + equals if equals and option.startswith("--") else ""
        if item.type == "plain":
            return "\t".join(("plain", self.shown(prefix + str(item.value)), _line(item.help or "")))
        return "\t".join(("file", prefix + (item.prefix or ""), str(item.value)))

    def shown(self, value: str) -> str:
        """The candidate `value` as the shell takes it."""
        return value


class _Bash(_Whole, BashComplete):
    source_template = _BASH

    def shown(self, value: str) -> str:
        """Without what stands before the last character at which bash divides words."""
        if _in_quotes(os.environ["COMP_WORDS"]):
            return value
        breaks = os.environ.get("_IMGTOOL_BREAKS", "")
        at = max((self._word.rfind(char) for char in breaks), default=-1)
        return value.removeprefix(self._word[: at + 1])


class _Zsh(_Whole, ZshComplete):
    source_template = _ZSH


class _Fish(_Whole, FishComplete):
    source_template = _FISH


def _line(text: str) -> str:
    return " ".join(text.split())


def _in_quotes(line: str) -> bool:
    import shlex

    try:
        shlex.split(line + " x")
    except ValueError:
        return True
    return False


def answer() -> NoReturn:
    """Writes what may stand at the cursor, and exits. Nothing where the line makes no sense, or something cannot be
    read: a person who presses Tab has asked for no error."""
    from imgtool.cli.main import cli, leave

    for kind in (_Bash, _Zsh, _Fish):
        add_completion_class(kind)
    with contextlib.suppress(ImgtoolError, click.ClickException, click.exceptions.Exit, SystemExit, OSError):
        cli.main(prog_name="imgtool", standalone_mode=False)
    leave(0)


@click.command(epilog='\b\nExamples:\n  eval "$(imgtool completion bash)"\n  imgtool completion fish | source')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes imgtool's commands and options in a shell."""
    from imgtool.cli.main import cli

    kind: type[ShellComplete] = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}[shell]
    click.echo(kind(cli, {}, "imgtool", "_IMGTOOL_COMPLETE").source().strip())
