"""What the guest's own shell is given to do: POSIX sh as dash, bash and busybox's ash understand it, made of bytes,
because names in a guest need not be UTF-8.

A command line, which others in the guest could read, holds nothing but the constant scripts of this module: values go
into the shell by its stdin.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Final

from imgtool.build.executor import ExecutorError
from imgtool.image.names import printable

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

PLAIN: Final = ("env", "-i", f"PATH={PATH}", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb")
"""The environment of every command in a guest, as an argv to put before it."""

PROGRAM: Final = (*PLAIN, "/bin/sh", "-c", 'eval "$(cat)"')
"""Runs the shell program on its stdin, and leaves no stdin to it."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

RUN: Final = """
d=$1 t=$2; shift 2; exec 3<&0 2>/dev/null; echo $$ >"$d/run"
s=; command -v setsid >/dev/null && s=setsid
$s /bin/sh -c 'eval "$(cat <&3)" || exit; exec 3<&- </dev/null 2>&1; cd /; unset OLDPWD; exec "$@"' \\
imgtool "$@" "$d/script" &
p=$!; exec 3<&-; echo $p >"$d/pid"
wait $p; printf '\\036%s:end:%d:\\036%s\\036' "$t" $? "$t"
"""
"""Runs a step. Arguments: its staging folder, the token of its frames, the interpreter's argv; on stdin the exports.
Prints what the step prints, and at last the frame `end` with its exit status. The step has a session of its own, so
that all of it can be ended at once, and a daemon that it leaves behind cannot hold up the end."""

SPOOL: Final = """
n=0; while dd bs=64k count=64 of="$d/out.$n" 2>/dev/null; [ -s "$d/out.$n" ]; do
n=$((n+1)); while [ -s "$d/out.$((n-4))" ]; do sleep 1; done; done
"""
"""Keeps what comes on stdin in files of at most 4 MiB, as it comes, in the folder $d: out.0, out.1…. It goes on only
when the reader has emptied the fourth last, so that no output fills the guest's memory. An empty one is the end."""

STAGE: Final = """
for r in /run /dev/shm /tmp /dev; do
[ -d $r ] && [ -w $r ] && case "$(stat -f -c %T $r 2>/dev/null)" in *tmpfs|*ramfs) break;; esac
done || r=/tmp
d=$r/$1; umask 077; mkdir -p "$r" && mkdir "$d" && cd "$d" && printf %s "$2" >script && pwd
"""
"""Makes a folder for what a step needs ($1 is its name), in memory where the guest has such a place, and in it the
file `script` with the text $2. Prints its path."""

END: Final = """
p=$(cat "$1/pid") || exit 0
for s in TERM KILL; do
kill -$s -$p 2>/dev/null || kill -$s $p 2>/dev/null || break
n=0; while [ $n -lt 20 ] && kill -0 $p 2>/dev/null; do n=$((n+1)); sleep 0.1 || sleep 1; done
done
"""
"""Ends the step whose staging folder is $1, with everything it started: SIGTERM, two seconds, SIGKILL."""

PUT_BEGIN: Final = """
if [ -d "$1" ]; then echo "$1: is a directory" >&2; exit 1; fi
mkdir -p -- "${1%/*}/" && : >"$2" && chmod 600 -- "$2"
"""
"""Makes the folders above the file $1, and the draft $2 beside it."""

PUT_END: Final = """
[ "$(($(wc -c <"$2")))" = "$3" ] || { echo "$1: it came incomplete" >&2; rm -f -- "$2"; exit 1; }
chown -- "$4" "$2" && chmod -- "$5" "$2" && mv -f -- "$2" "$1" || { rm -f -- "$2"; exit 1; }
"""
"""The draft $2, if it has $3 bytes, becomes the file $1, with the owner $4 and the mode $5."""

GET: Final = """
if [ -d "$1" ]; then echo "$1: is a directory" >&2; exit 1; fi
[ -f "$1" ] || [ ! -e "$1" ] || { echo "$1: is no regular file" >&2; exit 1; }
[ -r "$1" ] || { cat -- "$1" >/dev/null; exit 1; }
"""
"""Whether the file $1 can be read; says why not."""

BOOT_ID: Final = """
f=sys/kernel/random/boot_id; cat /proc/$f 2>/dev/null && exit
d=/tmp/imgtool-proc-$$; mkdir "$d" && mount -t proc proc "$d" && { cat "$d/$f"; umount "$d"; }; rmdir "$d"
"""
"""What is another at each boot, on a system that has mounted nothing, too."""

LEAVE: Final = """
sync
i=$(tr '\\0' '\\n' </proc/1/cmdline | head -n 1) 2>/dev/null; [ -d /run/systemd/system ] && i=systemd
(sleep "$2" || sleep 1
case "${i:-sh}" in
systemd) exec systemctl "$1" ;;
*sh) ;;
*) "$1"; sleep 60 ;;
esac
sync; mount -o remount,ro /; exec "$1" -f) >/dev/null 2>&1 </dev/null &
"""
"""Has the guest `reboot` or `poweroff` ($1) $2 seconds later, or a second where its `sleep` knows whole ones only.
Where the first process is a shell (or an initramfs's script) there is no init that would do it properly, and some
init may not listen: then the disk is synced and let go of here."""


def quote(value: bytes | str) -> bytes:
    """`value` as one word of a shell program."""
    data = os.fsencode(value) if isinstance(value, str) else value
    if b"\0" in data:
        raise ExecutorError("a NUL byte cannot be given to a command in the guest")
    return b"'" + data.replace(b"'", b"'\\''") + b"'"


def join(words: Sequence[bytes | str]) -> bytes:
    """A command of `words`, as one line of a shell program."""
    return b" ".join(quote(word) for word in words)


def program(script: str, *arguments: bytes | str) -> bytes:
    """`script` with its arguments as $1, $2…"""
    given = b"set -- " + join(arguments) + b"\n" if arguments else b""
    return given + script.encode()


def exports(env: Mapping[str, str], secrets: Mapping[str, str]) -> bytes:
    """The program that puts these into the environment. ExecutorError for names that a shell does not take."""
    lines = []
    for name, value in [*env.items(), *secrets.items()]:
        if not _NAME.fullmatch(name):
            raise ExecutorError(f"{printable(name)!r} cannot be the name of an environment variable")
        lines.append(b"export " + name.encode() + b"=" + quote(value) + b"\n")
    return b"".join(lines)


def draft_of(target: str, name: str) -> str:
    """Where the guest's file `target` is written before it takes its place."""
    return os.path.join(os.path.dirname(target), f".{name}")


def words_of(output: bytes) -> str:
    """What a command in the guest said, for an error."""
    lines = output.decode(errors="surrogateescape").strip().splitlines()
    return "; ".join(printable(line.strip()) for line in lines[-4:]) or "it does not say why"
