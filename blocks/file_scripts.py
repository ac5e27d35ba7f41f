"""The shell that files travel by: POSIX sh and coreutils, as every host has them.

Each script is given to `sh -c` with its arguments behind it. Paths are absolute.
"""

from __future__ import annotations

# openssl is three times as fast as sha256sum where the processor knows SHA. What it
# says is checked, as a broken one must not stand in the way of the others.
_SUM = """\
digest_of() {
    for tool in "openssl dgst -sha256 -r" sha256sum "shasum -a 256"; do
        command -v "${tool%% *}" >/dev/null || continue
        digest=$($tool <"$1") || continue
        digest=${digest%% *}
        [ ${#digest} -ne 64 ] || { echo "$digest"; return; }
    done
    return 1
}
"""

# A connection that was cut may have left its writer behind, which would go on writing.
_END_OLD_WRITER = """\
old=$(cat "$part.writer" 2>/dev/null)
if [ -n "$old" ] && tr '\\0' '\\n' <"/proc/$old/cmdline" 2>/dev/null | grep -qxF -e "$part"; then
    kill -TERM "-$old" 2>/dev/null || kill "$old" 2>/dev/null
    while kill -0 "$old" 2>/dev/null; do sleep 1; done
fi
"""

# mv would put the file into a folder of that name.
_DELIVER = """\
deliver() {
    [ ! -d "$2" ] || { echo "$2 is a folder" >&2; return 1; }
    mv -f "$1" "$2" && rm -f "$1.writer"
}
"""

# Exit codes of RECEIVE that are no failure to write.
UNREADABLE, UNDELIVERED = 17, 18

# Arguments: part, target, size, SHA-256 or nothing, whether to look at the target
# ("look"), up to which size that is hashed at once, and from which size on a whole part
# is left to a job to hash.
# First it says what is there, in two lines:
#   "there SUM" and an empty one: a file of that size; SUM is - where it is large
#   "whole SIZE" and the room: all of a large part is there
#   "part SIZE" and the room: it now reads the rest
# then the part's size every second, so that progress is what arrived, not what was
# sent; then, once all is there, "hashing", "sum SUM", and "delivered" when the sum is
# the one that was asked for.
RECEIVE = (
    _SUM
    + _DELIVER
    + """\
part=$1; target=$2; size=$3
umask 077
if [ "$5" = look ] && [ -f "$target" ] && [ -r "$target" ] &&
    [ "$(wc -c <"$target")" -eq "$size" ]; then
    sum=-
    [ "$size" -gt "$6" ] || sum=$(digest_of "$target") || sum=-
    echo "there $sum"; echo
    exit
fi
mkdir -p "${part%/*}/" || exit 3
[ ! -L "$part" ] || { echo "Permission denied: $part is a link" >&2; exit 5; }
"""
    + _END_OLD_WRITER
    + f"""\
[ -f "$part" ] || : >"$part" || exit 4
count=$(wc -c <"$part")
[ "$count" -le "$size" ] || {{ : >"$part"; count=0; }}
state=part
[ "$count" -lt "$size" ] || [ "$size" -lt "$7" ] || state=whole
echo "$state" $count
df -Pk "${{part%/*}}/" | tail -n 1
[ $state = part ] || exit 0
echo $$ >"$part.writer" || exit 4
( while sleep 1 </dev/null >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
    wc -c <"$part"
done ) &
reporter=$!
cat >>"$part"
code=$?
kill $reporter
[ $code -eq 0 ] || exit $code
count=$(wc -c <"$part")
echo $count
[ "$count" -eq "$size" ] || exit 0
echo hashing
sum=$(digest_of "$part") || exit {UNREADABLE}
echo "sum $sum"
[ "$sum" = "$4" ] || exit 0
deliver "$part" "$target" || exit {UNDELIVERED}
echo delivered"""
)

# Argument: the file.
HASH = _SUM + 'digest_of "$1"'

# Arguments: the part, the target.
FINISH = _DELIVER + 'deliver "$1" "$2"'

# Arguments: the file, bytes of a block, blocks to leave out.
READ = 'exec dd if="$1" bs="$2" skip="$3" 2>/dev/null'

# Argument: the file. Exits with 3 where there is none, with 4 where it may not be read.
STAT = '[ -f "$1" ] || exit 3; [ -r "$1" ] || exit 4; wc -c <"$1"'

# 128 + SIGHUP, SIGKILL, SIGTERM, and what we say where sshd reports a signal.
ENDED_BY_SIGNAL = (129, 137, 143, 255)


def sh(script: str, *arguments: str) -> list[str]:
    """Return the command that runs a script with its arguments."""
    return ["sh", "-c", script, "sh", *arguments]
