#!/bin/sh
# Checks this bundle and loads its images into Docker, on a machine without crossgap.
#
#   sh load.sh          check every file, then load what is not there yet
#   sh load.sh check    only check
#
# It needs sh, sha256sum and docker; DOCKER="sudo docker" says how to call the last.
# Nothing is written, so the disk may be mounted read-only, and running it again does no harm.
set -u
LC_ALL=C
export LC_ALL
CDPATH=
cd -- "$(dirname -- "$0")" || exit 1
DOCKER=${DOCKER:-docker}

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

check() {
    command -v sha256sum >/dev/null || fail "sha256sum is not installed: it is part of coreutils."
    echo "Checking every file ..."
    sha256sum -c SHA256SUMS || fail "" \
        "THE BUNDLE IS NOT COMPLETE: the files that say FAILED above are missing or damaged." \
        "Copy these files again from where the bundle was made. Nothing was loaded."
    echo "Every file is right."
}

check_docker() {
    answer=$($DOCKER version --format '{{.Server.Version}}' 2>&1) || fail \
        "Docker cannot be used: $answer" \
        "Start it (systemctl start docker), or run this as a user who may use it:" \
        "DOCKER=\"sudo docker\" sh load.sh"
}

# Prints the archive of an image: $1 its number, $2 which layers, "own" for those that no image
# before it brought, "own shared" for all of them.
archive() {
    while read -r which kind first second; do
        case " $2 " in *" $which "*) ;; *) continue ;; esac
        case $kind in
        glue) dd "if=load/$1.glue" bs=512 "skip=$first" "count=$second" 2>/dev/null ;;
        file) cat -- "$first" ;;
        zeros) dd if=/dev/zero "bs=$first" count=1 2>/dev/null ;;
        esac || return 1
    done <"load/$1.list"
}

# From 27.2 on, docker load ends well even where it could not unpack an image.
load() {
    said=$(archive "$1" "$2" | $DOCKER load 2>&1) || return 1
    case $said in *"Error unpacking"* | *"rror response"*) return 1 ;; esac
}

# Engines call an image by its configuration, or (containerd) by its manifest.
id_of() {
    $DOCKER image inspect --format '{{.Id}}' "$1" 2>/dev/null
}

explain() {
    case $said in
    *"no such file"* | *"not found"* | *"failed to get layer"* | *"does not exist"*)
        if [ -f load/base ]; then
            echo "  This Docker lacks layers that are not on this disk, because the disk only"
            echo "  carries what is new since:"
            sed 's/^/    /' load/base
            echo "  Bring that and load it first, or ask for a bundle that was packed without since."
            return
        fi ;;
    *"no space left"*)
        echo "  Docker's disk is full: docker system df shows what takes room." ;;
    esac
    printf '%s\n' "$said" | tail -n 3 | sed 's/^/  docker: /'
}

load_image() {
    number=$1 config=$2 manifest=$3 name=$4
    if [ "$(id_of "$name")" = "$config" ]; then
        echo "$name: already there"
        there=$((there + 1))
        return
    fi
    echo "$name: loading ..."
    if load "$number" own || load "$number" "own shared"; then
        case $(id_of "$name") in
        "$config" | "$manifest")
            echo "$name: loaded"
            loaded=$((loaded + 1))
            return ;;
        esac
    fi
    echo "$name: NOT LOADED"
    explain
    failed=$((failed + 1))
}

[ -f load/images ] || fail "load/images is missing: this is not the whole bundle."
case ${1:-} in
"" | check) ;;
*) fail "usage: sh load.sh [check]" ;;
esac
check
[ "${1:-}" != check ] || exit 0
check_docker
there=0 loaded=0 failed=0
while read -r number config manifest name <&3; do
    load_image "$number" "$config" "$manifest" "$name"
done 3<load/images
echo "$loaded loaded, $there were there already, $failed failed."
[ "$failed" -eq 0 ]
