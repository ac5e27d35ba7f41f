#!/bin/sh
# Makes a virtual environment with the newest Python that crossgap runs on,
# unless there is a working one. Root on Debian gets the packages it lacks.
#   usage: make_venv.sh FOLDER
set -eu
venv=$1

if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0
fi

# Makes the environment and ends the script, or leaves in $package what is missing.
make_venv() {
    package=
    for python in python3.13 python3.12 python3.11 python3; do
        "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || continue
        if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            "$python" -m venv --clear "$venv"
            exit 0
        fi
        package=${package:-$python-venv}
    done
    package=${package:-python3-venv}
}

make_venv
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing the Debian package $package"
    apt-get -qq -o DPkg::Lock::Timeout=300 update
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 install \
        --yes --no-install-recommends "$package" >/dev/null
    make_venv
fi

echo "crossgap needs Python 3.11, 3.12 or 3.13 with its venv module. Run as root:" >&2
echo "  apt-get update && apt-get install --yes $package" >&2
exit 1
