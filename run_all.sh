#!/usr/bin/env bash
# Answers every question again with one command; `./run_all.sh --help` says how.
# Kept to bash 3.2, which macOS ships, and to what a bare Debian has.
set -euo pipefail
export PYTHONUTF8=1 # the files are UTF-8, whatever the locale is

# fail STATUS SENTENCE
fail() {
    echo "run_all.sh: $2" >&2
    exit "$1"
}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
from=$PWD
cd "$here"

# --- Which Python.

version_of() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }

suitable() { # VERSION, such as 3.11.2; the pinned packages have builds for 3.11 to 3.14
    local minor=${1#*.}
    minor=${minor%%.*}
    [ "${1%%.*}" -eq 3 ] && [ "$minor" -ge 11 ] && [ "$minor" -le 14 ]
}

stamp=.venv/installed.txt # written last: a finished install of these pins, at this place

active_environment_is_ours() {
    [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] || return 1
    # One that this script made is looked at below, so that new pins reach it even while it is active.
    [ ! -e "${VIRTUAL_ENV:-/nowhere}/${stamp#.venv/}" ] || return 1
    # From /, where the working directory cannot stand in for an installed package.
    [ "$(cd / && python -c 'import panning_core; print(panning_core.ROOT)' 2>/dev/null)" = "$here" ]
}

find_python() { # sets base
    local candidate version found=""
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        version=$(version_of "$candidate") || continue
        if suitable "$version"; then
            base=$candidate
            return
        fi
        found="$found${found:+, }$version ($candidate)"
    done
    fail 1 "Python 3.11 or newer is needed (up to 3.14, which the pinned packages are built for), found ${found:-none}"
}

pip_install() {
    .venv/bin/python -m pip install --quiet --progress-bar off --disable-pip-version-check --log .venv/install.log "$@" && return
    rm "$stamp" # pip gave up in good order, so the next start may go on from here
    fail 1 "pip could not install what is named above (details in .venv/install.log); the next start tries again"
}

install() { # STAMP
    local version
    [ -w . ] || fail 1 "$here can not be written to, so nothing is installed there; activate an environment with requirements.txt in it and set PYTHONPATH to this folder"
    version=$(version_of .venv/bin/python) || version=0.0
    if [ "$(cat "$stamp" 2>/dev/null)" = unfinished ] || ! suitable "$version" || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        echo "Creating .venv with $base ..."
        "$base" -m venv --clear .venv || {
            rm -rf .venv # half an environment would let the system's pip pass for its own
            fail 1 "$base could not create .venv; on Debian and Ubuntu 'apt install python3-venv' adds what it needs"
        }
    fi
    # Who is stopped while pip writes leaves this word, and the next start begins from nothing.
    echo unfinished >"$stamp"
    trap 'exit 130' INT
    echo "Installing requirements.txt into .venv (about 4 minutes and 6 GB the first time) ..."
    pip_install -r requirements.txt
    # Built with the setuptools of requirements.txt: an isolated build would download another one.
    pip_install --no-deps --no-build-isolation -e .
    echo "$1" >"$stamp"
    echo "Installed."
}

# --- What is asked for: looked at before anything is installed, since that takes minutes.

look() { # WORDS
    local status=0
    (cd "$from" && "$base" "$here/panning_core/commands.py" "$@") || status=$?
    case $status in
        0) ;;
        10) exit 0 ;; # it was asked for help
        *) exit "$status" ;;
    esac
}

if active_environment_is_ours; then
    python=python
else
    python=$here/.venv/bin/python
    wanted="$here $(cat requirements.txt pyproject.toml | cksum)"
    if [ ! -x "$python" ] || [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        find_python
        look "$@"
        install "$wanted"
    fi
fi

# --- Go.

cd "$from" # where a path in the words begins
exec "$python" -m panning_core "$@"
