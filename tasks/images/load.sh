#!/bin/sh
# Checks this bundle, loads its images into Docker and writes its models into a folder, on a
# machine without crossgap.
#
#   sh load.sh                  check every file, then load the images that are not there yet
#   sh load.sh models FOLDER    check every file, then write the models into FOLDER
#   sh load.sh check            only check
#
# It needs sh and sha256sum, and docker for images; DOCKER="sudo docker" says how to call that.
# Nothing is written here, so the disk may be mounted read-only, and running it again does no
# harm. A model comes to lie in FOLDER/organisation/name/commit, with its SHA256SUMS.
set -u
LC_ALL=C
export LC_ALL
CDPATH=
start=$PWD
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

# Prints a file of a model out of the parts that it lies in: $1 its hash.
content() {
    if [ -f "models/sha256/$1" ]; then
        cat "models/sha256/$1"
        return
    fi
    count=1
    while part=models/sha256/$1.$(printf %03d "$count") && [ -f "$part" ]; do
        cat "$part" || return 1
        count=$((count + 1))
    done
}

is_right() {
    [ -f "$2" ] && [ "$(sha256sum <"$2")" = "$1  -" ]
}

# Finds a file that is not on this disk among the other revisions, and names it in $found:
# $1 its hash, $2 the model's folder.
find_base() {
    for list in "$2"/*/SHA256SUMS; do
        [ -f "$list" ] || continue
        found=$(sed -n "s/^$1 [ *]//p" "$list" | head -n 1)
        found=${list%/*}/$found
        ! is_right "$1" "$found" || return 0
    done
    return 1
}

# Writes one file: $1 its hash, $2 where to, $3 the model's folder.
write_file() {
    ! is_right "$1" "$2" || return 0
    rm -f "$2"
    mkdir -p "${2%/*}" || return 1
    if [ -f "models/sha256/$1" ] || [ -f "models/sha256/$1.001" ]; then
        content "$1" >"$2"
        return
    fi
    if find_base "$1" "$3"; then
        ln "$found" "$2" 2>/dev/null || cp "$found" "$2"
        return
    fi
    echo "  ${2##*/} is neither in $3 nor on this disk."
    if [ -f load/base ]; then
        echo "  The disk only carries what is new since:"
        sed 's/^/    /' load/base
        echo "  Bring that and write it first, or ask for a bundle that was packed without since."
    fi
    return 1
}

# Writes all files of a model: $1 its number, $2 where to, $3 the model's folder.
write_files() {
    while IFS= read -r line <&4; do
        write_file "${line%% *}" "$2/${line#*  }" "$3" || return 1
    done 4<"load/model-$1.sums"
    cat "load/model-$1.sums" >"$2/SHA256SUMS" || return 1
    said=$(cd -- "$2" && sha256sum -c SHA256SUMS 2>&1) && return
    printf '%s\n' "$said" | grep -v ': OK$' | sed 's/^/  /'
    return 1
}

write_model() {
    number=$1 commit=$2 name=$3 target=$folder/$3/$2
    if [ -e "$target" ]; then
        sums=$PWD/load/model-$number.sums
        if (cd -- "$target" && sha256sum -c "$sums" >/dev/null 2>&1); then
            echo "$name: already there, and right"
            there=$((there + 1))
        else
            echo "$name: NOT WRITTEN"
            echo "  $target is there, and not what it should be: move it away."
            failed=$((failed + 1))
            return
        fi
    else
        echo "$name: writing ..."
        if ! write_files "$number" "$target.unfinished" "$folder/$name" ||
            ! mv "$target.unfinished" "$target"; then
            echo "$name: NOT WRITTEN; run this again to go on with it."
            failed=$((failed + 1))
            return
        fi
        echo "$name: written to $target"
        loaded=$((loaded + 1))
    fi
    if [ -L "$folder/$name/current" ] || [ ! -e "$folder/$name/current" ]; then
        ln -sfn "$commit" "$folder/$name/current" 2>/dev/null ||
            echo "  $folder/$name/current could not be made: the disk there may know no links."
    fi
}

write_models() {
    case $1 in
    /*) folder=$1 ;;
    *) folder=$start/$1 ;;
    esac
    while IFS= read -r line <&3; do
        rest=${line#* }
        write_model "${line%% *}" "${rest%% *}" "${rest#* }"
    done 3<load/models
    echo "$loaded written, $there were there already, $failed failed."
}

load_images() {
    if [ -f load/models ]; then
        echo "This disk has models, which are written by: sh load.sh models FOLDER"
        [ -f load/images ] || return
    fi
    check_docker
    while read -r number config manifest name <&3; do
        load_image "$number" "$config" "$manifest" "$name"
    done 3<load/images
    echo "$loaded loaded, $there were there already, $failed failed."
}

[ -f load/images ] || [ -f load/models ] ||
    fail "load/images is missing: this is not the whole bundle."
case ${1:-} in
"" | check) ;;
models)
    [ -f load/models ] || fail "There are no models on this disk."
    [ -n "${2:-}" ] || fail "Say where the models are to go: sh load.sh models FOLDER" ;;
*) fail "usage: sh load.sh [check | models FOLDER]" ;;
esac
check
there=0 loaded=0 failed=0
case ${1:-} in
"") load_images ;;
models) write_models "$2" ;;
esac
[ "$failed" -eq 0 ]
