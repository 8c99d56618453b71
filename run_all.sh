#!/usr/bin/env bash
# Answers every question again with one command; `./run_all.sh --help` says how.
# Kept to bash 3.2, which macOS ships, and to what a bare Debian has.
set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: ./run_all.sh [quick|paper|PROFILE] [--only STUDY] [--jobs N] [--device cpu|cuda]
       ./run_all.sh verify [quick|paper|PROFILE] [--sample N] [--seed N]
       ./run_all.sh bench [--quick] [--only PART]
       ./run_all.sh test [pytest arguments]
       ./run_all.sh lab
       and --plugin FILE with a profile, verify or lab

  quick   every study on small embedded data, minutes on two cores (the default)
  paper   every study on the published networks and data; finished runs are kept
  PROFILE one of your own: notebooks/profiles/PROFILE.yaml names notebooks of notebooks/ and their runs
  verify  every table, verdict and figure of a profile made again from its ledgers, and a random
          sample of its runs done again: are they those of results/? Changes nothing (paper: 5 minutes)
  bench   how fast it is against plain PyTorch and a straightforward implementation, into
          results/benchmarks (about 20 minutes on one core)
  test    the tests
  lab     the notebooks in JupyterLab, the playground first

  --only STUDY        this study alone; for bench this part: training, memory, agreement, scoring, selection, agent, fixes or grid
  --quick             for bench: the headline ratios in under three minutes, the last line JSON; writes nothing
  --jobs N            N runs at a time
  --device cpu|cuda   where to compute
  --sample N          for verify: so many runs, of those that took a minute at most (5)
  --seed N            for verify: draws the sample (random, and told)
  --plugin FILE       a Python file that adds your own networks, data sets, metrics or methods; may be there several times
  --help              this text

The first start installs the packages of requirements.txt into .venv (about 4 minutes
and 6 GB). If the active environment already holds this checkout, as after
`pip install -e .` or `conda env create -f environment.yml`, it is used as it is.
USAGE
}

# fail STATUS SENTENCE
fail() {
    echo "run_all.sh: $2" >&2
    exit "$1"
}
misused() { fail 2 "$1; see ./run_all.sh --help"; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)

# --- What is asked for: settled before anything is installed, since that takes minutes.
# (`${options[@]+...}`: bash 3.2 calls an empty list unset.)

mode=""
profile=""
plugged=""
options=()
is_profile() {
    case $1 in
        quick | paper) ;;
        "" | */*) return 1 ;;
        *) [ -f "$here/notebooks/profiles/$1.yaml" ] ;;
    esac
}
own_profiles() {
    local file name
    for file in "$here"/notebooks/profiles/*.yaml; do
        name=${file##*/}
        case ${name%.yaml} in
            quick | paper | "*") ;;
            *) printf ' %s,' "${name%.yaml}" ;;
        esac
    done
}
while [ $# -gt 0 ]; do
    case $1 in
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    esac
    case $1 in
        -h | --help)
            usage
            exit 0
            ;;
        --only | --jobs | --device | --sample | --seed | --plugin)
            case ${2-} in
                "" | -*) misused "option $1 needs a value" ;;
            esac
            case $1=$2 in
                --jobs=*[!0-9]* | --jobs=0*) misused "--jobs is a whole number from 1, not '$2'" ;;
                --sample=*[!0-9]* | --seed=*[!0-9]*) misused "$1 is a whole number from 0, not '$2'" ;;
                --device=cpu | --device=cuda) ;;
                --device=*) misused "--device is cpu or cuda, not '$2'" ;;
                --plugin=/*) plugin=$2 ;;
                --plugin=*) plugin=$PWD/$2 ;;
            esac
            if [ "$1" = --plugin ]; then
                [ -f "$plugin" ] || misused "--plugin is a Python file, and there is no '$2'"
                export PANNING_PLUGIN="${PANNING_PLUGIN:+$PANNING_PLUGIN:}$plugin" # for this command and all that it starts
                plugged=--plugin
            else
                options+=("$1" "$2")
            fi
            shift 2
            ;;
        --quick)
            options+=("$1")
            shift
            ;;
        -*) misused "unknown option '$1', it can be --only, --jobs, --device, --quick, --sample, --seed, --plugin or --help" ;;
        verify | bench | test | lab)
            [ -z "$mode$profile" ] || misused "unexpected argument '$1' after '${profile:-$mode}', give one of quick, paper,$(own_profiles) verify, bench, test or lab"
            mode=$1
            shift
            [ "$mode" != test ] || break # the rest is for pytest
            ;;
        *)
            is_profile "$1" || misused "unknown argument '$1', it can be quick, paper,$(own_profiles) verify, bench, test or lab"
            case $mode$profile in
                "" | verify) profile=$1 ;;
                *) misused "unexpected argument '$1' after '${profile:-$mode}', give one of quick, paper,$(own_profiles) verify, bench, test or lab" ;;
            esac
            shift
            ;;
    esac
done
mode=${mode:-reproduce}
profile=${profile:-quick}
for option in ${options[@]+"${options[@]}"} $plugged; do
    case $mode$option in
        reproduce--only | reproduce--jobs | reproduce--device | verify--sample | verify--seed | bench--only | bench--quick) ;;
        reproduce--plugin | verify--plugin | lab--plugin) ;;
        reproduce--*) misused "option $option is not for '$profile'" ;;
        "$mode"--*) misused "option $option is not for '$mode'" ;;
    esac
done

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
    version=$(version_of .venv/bin/python) || version=0.0
    if [ "$(cat "$stamp" 2>/dev/null)" = unfinished ] || ! suitable "$version" || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        find_python
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

if active_environment_is_ours; then
    python=python
else
    python=$here/.venv/bin/python
    wanted="$here $(cat requirements.txt pyproject.toml | cksum)"
    if [ ! -x "$python" ] || [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        install "$wanted"
    fi
fi

# --- Go.

case $mode in
    reproduce) exec "$python" -m panning_core.reporting.notebooks "$profile" ${options[@]+"${options[@]}"} ;;
    verify) exec "$python" -m panning_core.reporting.verify "$profile" ${options[@]+"${options[@]}"} ;;
    bench) exec "$python" -m benchmarks ${options[@]+"${options[@]}"} ;;
    test) exec "$python" -m pytest "$@" ;;
    lab) exec "$python" -m jupyterlab --ServerApp.root_dir="$here" --LabApp.default_url=/lab/tree/notebooks/playground.ipynb ;;
esac
