"""The shell by which models come to be on hosts: POSIX sh and coreutils, or busybox.

Pure: each function returns a command. Folders are absolute, names of files come on
standard input, one per line, as `tasks.models.files` lets no name have a line break.

Beside a model's revisions lies a folder of ours (`OWN_FOLDER`):

* `incoming/<commit>/` has what has arrived of a revision that is not in view yet;
* `proofs/<commit>` has a line for each file that was hashed there: its SHA-256, size,
  time of change, inode and path. A line counts as long as `stat` says the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from blocks.file_scripts import sh
from tasks.models.files import MANIFEST, OWN_FOLDER

# Exit codes of scripts that are no failure to write.
MISSING, OCCUPIED = 8, 9

MARKER = ".crossgap-marker-"
"""How the files begin by which hosts find out that they see one folder."""

# Times of change are told as text, which must not depend on where a host is.
_STAT = "TZ=UTC0; export TZ; form='%s %y %i'\n"

# Run in a folder, with names in "$list": what stat says, the hashes, and stat again, as
# a file may change meanwhile. openssl is the fastest, and may be broken: it is tried.
_CHECK = (
    _STAT
    + """\
each() { printf '%s\\n' "$list" | sed 's|^|./|' | tr '\\n' '\\0' | xargs -0 "$@"; }
sums() {
    for tool in "openssl dgst -sha256 -r" sha256sum "shasum -a 256"; do
        command -v "${tool%% *}" >/dev/null || continue
        case $($tool </dev/null 2>/dev/null) in
            e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855*) ;;
            *) continue ;;
        esac
        each $tool  # a file that cannot be read is not proven
        return 0
    done
    echo "it has neither openssl nor sha256sum" >&2
    return 1
}
each stat -c "$form %n" 2>/dev/null
echo --
[ "$how" != hash ] || sums || exit 1
echo --
each stat -c "$form %n" 2>/dev/null
exit 0"""
)

_READ = (
    _STAT
    + """\
case $1 in "~"|"~/"*) root=$HOME${1#"~"} ;; *) root=$1 ;; esac
base=$root/$2; own=$3
nl='
'
blocked() {
    kind=file
    [ ! -d "$1" ] || kind=folder
    [ ! -L "$1" ] || kind=link
    printf 'blocked %s %s\\n' $kind "$1"
}
files() {
    ( cd "$1" && find . -path "*$nl*" -prune -o -type f -exec stat -c "$form %n" {} + ) 2>/dev/null
}
printf 'root %s\\n' "$root"
path=$base
while [ ! -e "$path" ] && [ ! -L "$path" ] && [ "$path" != / ] && [ "$path" != . ]; do
    path=$(dirname "$path")
done
if [ ! -d "$path" ]; then blocked "$path"; path=$(dirname "$path"); fi
printf 'disk %s\\n' "$(df -Pk "$path" | tail -n 1)"
[ -d "$base" ] || exit 0
cd "$base" || exit 1
if [ -L current ]; then printf 'current %s\\n' "$(readlink current)"
elif [ -e current ]; then blocked "$base/current"; fi
for name in *; do
    [ ${#name} -eq 40 ] || continue
    if [ -d "$name" ] && [ ! -L "$name" ]; then
        printf 'revision %s\\n' "$name"
        files "$name"
    else
        blocked "$base/$name"
    fi
done
[ -e "$own" ] || exit 0
[ -d "$own" ] || { blocked "$base/$own"; exit 0; }
for path in "$own/incoming"/*; do
    [ -d "$path" ] || continue
    printf 'incoming %s\\n' "${path##*/}"
    files "$path"
done
for path in "$own/proofs"/*; do
    [ -f "$path" ] || continue
    printf 'proof %s\\n' "${path##*/}"
    sed 's/^/= /' "$path" || exit 1
done
exit 0"""
)

# What others may read of a model is for the user's umask to say, what has not arrived
# is for nobody to read. That the proof is there marks the revision as ours.
_PREPARE = """\
own=$1
mkdir -p "$own/proofs" "$own/incoming" || exit 3
( umask 077; mkdir -p "$own/incoming/$2" ) || exit 3
: >>"$own/proofs/$2" || exit 4
cd "$own/incoming/$2" || exit 3
while IFS= read -r name; do rm -f "./$name" || exit 4; done"""

# The pack is a file, of which dd reads whole blocks; of a pipe it would not. A file in
# the way may be a link to one of another revision, so it goes first.
_SPLIT = (
    """\
cd "$1" || exit 3
umask 077
how=hash
exec 3<"$2" || exit 3
table=$(cat)
cut_off() {
    [ $1 -eq 0 ] || dd bs=65536 count=$1 <&3 || return
    [ $2 -eq 0 ] || dd bs=$2 count=1 <&3
}
printf '%s\\n' "$table" | while IFS= read -r line; do
    size=${line%% *}; name=${line#* }
    case $name in */*) [ -d "./${name%/*}" ] || mkdir -p "./${name%/*}" || exit 3 ;; esac
    rm -f "./$name" || exit 4
    said=$(cut_off $((size / 65536)) $((size % 65536)) 2>&1 >"./$name") ||
        { printf '%s\\n' "$said" >&2; exit 4; }
done || exit
list=$(printf '%s\\n' "$table" | cut -d ' ' -f 2-)
"""
    + _CHECK
)

_LINK = (
    _STAT
    + """\
cd "$1" || exit 3
umask 077
tab=$(printf '\\t')
while IFS=$tab read -r source name; do
    case $name in */*) mkdir -p "$2/${name%/*}" || exit 3 ;; esac
    rm -f "$2/$name" || exit 4
    ln "./$source" "$2/$name" || continue
    facts=$(stat -c "$form" "$2/$name") && printf '%s ./%s\\n' "$facts" "$name"
done
exit 0"""
)

# A line that a full disk or a kill has torn must not spoil the next one. It is cat that
# writes, as dash itself does not say that a disk is full.
_MEND = """\
[ ! -s "$proof" ] || [ -z "$(tail -c 1 "$proof")" ] || echo >>"$proof" || exit 4
"""

_RECORD = (
    "proof=$1\n"
    + _MEND
    + """\
cat >>"$proof" || exit 4
[ -z "$2" ] || rm -f "$2\""""
)

_NOTE = (
    _STAT
    + "proof=$1\n"
    + _MEND
    + """\
cd "$2" || exit 3
facts=$(stat -c "$form" "./$4") || exit 8
printf '%s %s %s\\n' "$3" "$facts" "$4" | cat >>"$proof" || exit 4"""
)

# The folder comes into view whole; where it is in view already, file by file. It is
# done again where an answer was lost, so all of it may have been done before. Of what
# else lies with the arrivals (parts, files of an earlier choice) nobody has need.
_FINISH = (
    _STAT
    + """\
folder=$1; commit=$2; own=$3; manifest=$4; sum=$5; new=$6
incoming=$folder/$own/incoming/$commit; target=$folder/$commit; proof=$folder/$own/proofs/$commit
refuse() { printf '%s\\n' "$1" >&2; exit 9; }
if [ -L "$target" ] || { [ -e "$target" ] && [ ! -d "$target" ]; } ||
    { [ "$new" = new ] && [ -d "$target" ] && [ ! -f "$target/$manifest" ]; }; then
    refuse "$target"
fi
[ -L "$folder/current" ] || [ ! -e "$folder/current" ] || refuse "$folder/current"
mkdir -p "$incoming" && cd "$incoming" || exit 3
rm -f "$manifest"
cat >"$manifest" || exit 4
list=$incoming.list
{ cut -c 67- "$manifest" | sed 's|^|./|'; printf './%s\\n' "$manifest"; } >"$list" || exit 4
while IFS= read -r name; do
    [ ! -d "$target/$name" ] || refuse "$target/${name#./}"
    [ -f "$name" ] || [ -f "$target/$name" ] || { printf '%s\\n' "${name#./}" >&2; exit 8; }
done <"$list"
find . ! -type d | grep -vxF -f "$list" | while IFS= read -r name; do rm -f "$name"; done
find . -depth -type d ! -name . -exec rmdir {} + 2>/dev/null
chmod -R +rX . || exit 4
"""
    + _MEND
    + """\
facts=$(stat -c "$form" "$manifest") || exit 4
printf '%s %s %s\\n' "$sum" "$facts" "$manifest" | cat >>"$proof" || exit 4
if [ -d "$target" ]; then
    while IFS= read -r name; do
        [ -f "$name" ] || continue
        [ -d "$target/${name%/*}" ] || mkdir -p "$target/${name%/*}" || exit 3
        mv -f "$name" "$target/$name" || exit 4
    done <"$list"
    cd "$folder" && rm -rf "$incoming" || exit 4
else
    cd "$folder" && mv "$incoming" "$target" || exit 4
fi
rm -f "$list"
cd "$folder" || exit 3
[ "$(readlink current)" != "$commit" ] || exit 0
link=$own/current.new
rm -f "$link"
ln -s "$commit" "$link" || exit 4
# Where mv knows no -T it would move the link into the old revision's folder.
[ -L current ] || { mv "$link" current; exit; }
mv -fT "$link" current 2>/dev/null && exit 0
perl -e 'rename($ARGV[0], $ARGV[1]) or exit 1' "$link" current 2>/dev/null && exit 0
rm -f "$link"
ln -sfn "$commit" current || exit 4
echo in two steps"""
)

_REMOVE = """\
own=$2
cd "$1" || exit 3
shift 2
rm -rf "$own"/removed-*
for commit do
    [ "$(readlink current)" != "$commit" ] && [ -f "$own/proofs/$commit" ] || continue
    if [ -d "$commit" ] && [ ! -L "$commit" ]; then
        mv "$commit" "$own/removed-$commit" || exit 4
    fi
    rm -rf "$own/removed-$commit" "$own/incoming/$commit" "$own/incoming/$commit.list" || exit 4
    rm -f "$own/proofs/$commit" || exit 4
    printf '%s\\n' "$commit"
done"""

_ROOT = """\
case $1 in "~"|"~/"*) root=$HOME${1#"~"} ;; *) root=$1 ;; esac
"""

# What a killed run left is taken away a day later.
_LEAVE_MARKER = (
    _ROOT
    + """\
mkdir -p "$root" || exit 3
find "$root/." ! -name . -prune -name "$2*" -mtime +1 -exec rm -f {} + 2>/dev/null
: >"$root/$3\""""
)

# By name: of a name that nobody has asked for yet, NFS keeps no old answer.
_SEE_MARKERS = _ROOT + 'shift; for name do [ ! -f "$root/$name" ] || echo "$name"; done'

_REMOVE_MARKER = _ROOT + 'rm -f "$root/$2"'


def read_model(root: str, model: str) -> list[str]:
    """Tell all that a host has of a model, and the room on its disk; changes nothing.

    Args:
        root: The folder of models, which may begin with `~`.
        model: `organisation/name`.

    Returns:
        The command; `tasks.models.remote_facts` reads what it prints.
    """
    return sh(_READ, root, model, OWN_FOLDER)


def prepare(folder: str, commit: str) -> list[str]:
    """Make the folders that a revision arrives in, and remove what must not come into view.

    Reads the names of such files among what has arrived.

    Args:
        folder: The model's.
        commit: The revision.
    """
    return sh(_PREPARE, f"{folder}/{OWN_FOLDER}", commit)


def check(folder: str, *, hashed: bool = True) -> list[str]:
    """Tell what stat says of files before and after they are hashed, and their hashes.

    Reads their names.

    Args:
        folder: Where they lie.
        hashed: Whether to hash them at all.
    """
    how = "hash" if hashed else "-"
    return sh(f'how=$2\ncd "$1" || exit 3\nlist=$(cat)\n{_CHECK}', folder, how)


def split(folder: str, pack: str) -> list[str]:
    """Cut a file that holds several, one behind the other, and tell of them as `check` does.

    Reads a line for each: its size, a space, and its name.

    Args:
        folder: Where they are to lie.
        pack: The file's name there; it stays.
    """
    return sh(_SPLIT, folder, pack)


def link(folder: str, to: str) -> list[str]:
    """Link files, and tell what stat says of those that could be.

    Reads a line for each: the old name in the model's folder, a tab, and the new one.

    Args:
        folder: The model's.
        to: The folder that the new names are in.
    """
    return sh(_LINK, folder, to)


def record(proof: str, done_with: str = "") -> list[str]:
    """Append the lines that it reads to a proof.

    Args:
        proof: The file.
        done_with: A file that is removed then.
    """
    return sh(_RECORD, proof, done_with)


def note(proof: str, folder: str, sha256: str, name: str) -> list[str]:
    """Append one file, whose hash has just been taken, to a proof.

    Args:
        proof: The file that the line goes to.
        folder: Where the other one lies.
        sha256: Its hash.
        name: Its name there.
    """
    return sh(_NOTE, proof, folder, sha256, name)


def finish(folder: str, commit: str, sha256: str, *, new: bool) -> list[str]:
    """Bring a revision into view, and let `current` point to it.

    Reads the manifest. Prints a line when `current` could not be switched at once.
    Exits with `MISSING` when a file of the manifest is not there, and with `OCCUPIED`
    when something else is where the revision or the link should be; both are named.

    Args:
        folder: The model's.
        commit: The revision.
        sha256: The manifest's own.
        new: Whether nothing was in view of this revision before.
    """
    mode = "new" if new else "-"
    return sh(_FINISH, folder, commit, OWN_FOLDER, MANIFEST, sha256, mode)


def remove(folder: str, commits: Sequence[str]) -> list[str]:
    """Remove revisions that have a proof and are not the current one; prints which.

    Args:
        folder: The model's.
        commits: The revisions.
    """
    return sh(_REMOVE, folder, OWN_FOLDER, *commits)


def leave_marker(root: str, name: str) -> list[str]:
    """Leave an empty file in a folder, which is made where it is missing.

    Args:
        root: The folder, which may begin with `~`.
        name: The file's name, which begins with `MARKER`.
    """
    return sh(_LEAVE_MARKER, root, MARKER, name)


def see_markers(root: str, names: Sequence[str]) -> list[str]:
    """Print which of some names there are in a folder that may begin with `~`."""
    return sh(_SEE_MARKERS, root, *names)


def remove_marker(root: str, name: str) -> list[str]:
    """Remove a marker from a folder that may begin with `~`."""
    return sh(_REMOVE_MARKER, root, name)
