"""The shell scripts that run on the other host.

An image is written into a part `.imgtool-sync-….part` beside it, which is only one run's own: who goes on with a part
takes it over when nobody holds its lock, and a copy of it otherwise. So what another run still writes, however late,
is never the file that has got the image's name. Where there is no `flock`, each run takes a copy.
"""

_TIDY = """
tidy() {
    for left in "$1"*; do
        [ -e "$left" ] || continue
        { ! command -v flock >/dev/null || flock -n 8; } 8<"$left" && rm -f -- "$left" || :
    done
}
"""
"""Removes the parts of an image (all begin with $1) but those that another run writes at the moment."""

LOOK = """
command -v sha256sum >/dev/null || { echo 'sha256sum is not installed there' >&2; exit 69; }
cd -- "$1" 2>/dev/null || exit 0
shift
while [ $# -gt 0 ]; do
    size=$(stat -L -c %s -- "./$1" 2>/dev/null) || size=-
    sum=- part=- most=0 left=0
    if [ "$size" = "$4" ]; then sum=$(sha256sum < "./$1") || exit 70; sum=${sum%% *}; fi
    for one in "./$2"*; do
        [ -e "$one" ] && left=1
    done
    for one in "./$2$3"*.part; do
        have=$(stat -c %s -- "$one" 2>/dev/null) || continue
        if [ "$have" -ge "$most" ]; then part=${one##*/} most=$have; fi
    done
    echo "$size $sum $part $most $left"
    shift 4
done
"""
"""(folder, then for each image: name, how its parts begin, how those of these bytes go on, size): a line for each of
size, digest where the size is right, the longest part of these bytes, its size, and whether (1) there are any parts;
nothing where there is no such folder. Changes nothing."""

TIDY = f"""
cd -- "$1"
shift
{_TIDY.strip()}
for one; do tidy "./$one"; done
"""
"""(folder, then how the parts of each image begin)"""

TAKE = f"""
set -e
mkdir -p -- "$1"
cd -- "$1"
name=./$2 mine=./$3 parts=./$4 from=$5 twin=$6 size=$7 sum=$8 mode=$9
shift 9
time=$1
shift
mkdir -p -- "$(dirname -- "$name")"
umask 077
{_TIDY.strip()}
there() {{ found=$({{ sha256sum < "$name"; }} 2>/dev/null) && [ "${{found%% *}}" = "$sum" ]; }}
if [ -z "$twin" ] && [ -n "$from" ] && command exec 9<"./$from" && flock -n 9 2>/dev/null; then
    mv -T -- "./$from" "$mine"
else
    # not a part for others before it is locked
    if [ -n "$twin" ]; then from=$twin; fi
    if [ -n "$from" ]; then
        cp --reflink=auto --sparse=always -- "./$from" "$mine.new" || {{ rm -f -- "$mine.new"; exit 1; }}
    fi
    exec 9<>"$mine.new"
    flock -n 9 2>/dev/null || :
    mv -T -- "$mine.new" "$mine"
fi
while [ $# -gt 0 ]; do
    dd of="$mine" bs=1048576 iflag=fullblock,count_bytes oflag=seek_bytes conv=notrunc status=none \
        seek="$1" count="$2"
    # the connection may have ended: what came so far stays for the next time
    [ "$(stat -c %s -- "$mine")" -ge $(($1 + $2)) ] || exit 73
    shift 2
done
[ "$(stat -c %s -- "$mine")" = "$size" ] || truncate -s "$size" -- "$mine"
found=$(sha256sum < "$mine")
if [ "${{found%% *}}" = "$sum" ]; then
    chmod "$mode" -- "$mine"
    touch -d "$time" -- "$mine"
    sync -- "$mine"
    if ! ln -T -- "$mine" "$name" 2>/dev/null; then
        if [ -e "$name" ] || [ -L "$name" ]; then
            there || {{ rm -f -- "$mine"; exit 71; }}
        else
            mv -T -- "$mine" "$name"
        fi
    fi
else
    rm -f -- "$mine"
    there || exit 72
fi
rm -f -- "$mine"
tidy "$parts"
sync -- "$(dirname -- "$name")"
"""
"""(folder, name, its part, how all its parts begin, the part to go on with or nothing, the image with the same bytes
or nothing, size, digest, mode, time, then offset and length of each stretch of data), that on stdin. 71: another file
got the name meanwhile, 72: other bytes came, 73: fewer."""
