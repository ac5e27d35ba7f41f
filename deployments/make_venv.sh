#!/bin/sh
# Makes a virtual environment with the newest Python that crossgap runs on,
# unless there is a working one.
#   usage: make_venv.sh FOLDER
set -eu
venv=$1

if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0
fi

without_venv=
for python in python3.13 python3.12 python3.11 python3; do
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || continue
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        exec "$python" -m venv --clear "$venv"
    fi
    without_venv=$python
done

if [ -n "$without_venv" ]; then
    echo "$without_venv has no venv module. Install it:  apt-get update && apt-get install $without_venv-venv" >&2
else
    echo "crossgap needs Python 3.11, 3.12 or 3.13. Install it:  apt-get update && apt-get install python3 python3-venv" >&2
fi
exit 1
