# shellcheck shell=bash disable=SC2034 # some variables are for the caller
# Sourced by the scripts beside it. Leaves: the root as current folder, the environment's programs first on PATH, $python,
# and $activate (the line that activates an environment made here, else empty).
# Says something only when it does something. Kept to bash 3.2 and to what Linux and macOS share.
#
# FORGE_EXTRA  cpu, cuda12, cuda13 or empty: the backend of MLX to install instead of the one chosen here

set -euo pipefail

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd -- "$root"

say() { printf 'forge: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# Is $1 a Python that can run this? A shim or a Rosetta Python may exist and still not do.
suits() {
    "$1" -c 'import platform, sys; sys.exit(not ((3, 11) <= sys.version_info < (3, 14) and (sys.platform != "darwin" or platform.machine() == "arm64")))' >/dev/null 2>&1
}

find_environment() {
    local candidate
    activate=''
    env=${VIRTUAL_ENV:-}
    # conda's base is active in every shell of many machines: nobody wants it filled.
    if [ -z "$env" ] && [ "${CONDA_DEFAULT_ENV:-}" != base ]; then env=${CONDA_PREFIX:-}; fi
    if [ -n "$env" ]; then
        python=$env/bin/python
        suits "$python" || die "the active environment ($env) has no Python 3.11 to 3.13 (on a Mac: for arm64): deactivate it, and this script makes its own"
        return
    fi

    env=$root/.venv
    python=$env/bin/python
    activate='. .venv/bin/activate'
    # A copied or moved environment still points to its old place.
    if [ -f "$env/.forge-setup" ] && [ "$(sed -n 2p "$env/.forge-setup")" != "$env" ]; then
        say ".venv was made elsewhere: making it anew"
    elif suits "$python"; then
        return
    fi
    for candidate in python3.13 python3.12 python3.11 python3; do
        if suits "$candidate" && "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            say "making an environment in .venv with $("$candidate" --version)"
            "$candidate" -m venv --clear "$env"
            return
        fi
    done
    die "no Python 3.11, 3.12 or 3.13 with venv on PATH: install one (Debian: apt-get install python3-venv; macOS: brew install python@3.13) and run this again"
}

# Which backend MLX takes here.
choose_extra() {
    local driver
    note=''
    if [ -n "${FORGE_EXTRA+set}" ]; then
        extra=$FORGE_EXTRA
    elif [ "$(uname -s)" != Linux ]; then
        extra=''
    else
        extra=cpu
        driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | sed -n '1s/\..*//p') || driver=''
        case $driver in
            '' | *[!0-9]*) ;;
            *) if [ "$driver" -ge 580 ]; then extra=cuda13; elif [ "$driver" -ge 550 ]; then extra=cuda12; else note="the NVIDIA driver is $driver and MLX needs 550: taking the CPU"; fi ;;
        esac
    fi
    case $extra in
        '' | cpu | cuda12 | cuda13) ;;
        *) die "FORGE_EXTRA=$extra: it can be cpu, cuda12, cuda13 or empty" ;;
    esac
}

# What an install depends on, as one number.
checksum() {
    "$python" -c '
import hashlib, sys
parts = [sys.version.encode(), *map(str.encode, sys.argv[1:])]
parts += [open(name, "rb").read() for name in ("pyproject.toml", "constraints.txt")]
print(hashlib.sha256(b"\0".join(parts)).hexdigest())' "$root" "$extra"
}

pip() { "$python" -m pip --disable-pip-version-check --no-input "$@"; }

install() {
    local stamp sum log wanted
    stamp=$env/.forge-setup
    sum=$(checksum)
    if [ -f "$stamp" ] && [ "$(sed -n 1p "$stamp")" = "$sum" ]; then return; fi

    if [ -n "$note" ]; then say "$note"; fi
    say "installing into $env (the first time takes a minute or two)"
    rm -f "$stamp" "$env/.forge-no-blas"
    log=$env/.forge-install.log
    pip --version >/dev/null 2>&1 || "$python" -m ensurepip --upgrade >/dev/null # environments made by uv have no pip
    # MLX's backends put different files in the same places: only one may be there.
    case $extra in
        '') wanted='' ;;
        cpu) wanted=mlx-cpu ;;
        *) wanted=mlx-cuda-${extra#cuda} ;;
    esac
    if [ -n "$wanted" ] && [ -n "$(pip list --format=freeze 2>/dev/null | sed -n -e "/^$wanted==/d" -e '/^mlx-cpu==/p' -e '/^mlx-cuda-1[23]==/p')" ]; then
        pip uninstall --quiet --yes mlx-cpu mlx-cuda-12 mlx-cuda-13 >/dev/null 2>&1 || die "pip could not remove MLX's other backend from $env"
    fi
    if ! pip install --quiet -e ".[dev${extra:+,$extra}]" -c constraints.txt >"$log" 2>&1; then
        cat "$log" >&2
        die "pip could not install forge (its words are above). Check the network and the disk, then run this again; 'rm -rf .venv' starts from nothing"
    fi
    rm -f "$log"
    printf '%s\n' "$sum" "$env" >"$stamp"
}

has_fast_blas() {
    local name
    case "$(PATH=$PATH:/usr/sbin:/sbin ldconfig -p 2>/dev/null || true)" in
        *libopenblas.so.0* | *libmkl_rt.so.[23]*) return 0 ;;
    esac
    for name in libopenblas.so.0 libmkl_rt.so.2 libmkl_rt.so.3; do
        if [ -e "$env/lib/$name" ]; then return 0; fi
    done
    return 1
}

apt_install() { # as $1, which is empty or sudo
    local apt="env DEBIAN_FRONTEND=noninteractive apt-get -qq"
    if [ -n "$1" ]; then apt="sudo -n $apt"; fi
    $apt install -y "$2" >/dev/null 2>&1 || { $apt update >/dev/null 2>&1 && $apt install -y "$2" >/dev/null 2>&1; }
}

# mlx-cpu comes with a BLAS about 30 times slower than need be; forge.blas loads a better one where there is one.
fast_blas() {
    if [ "$(uname -s)" != Linux ] || [ "$extra" != cpu ] || [ -n "${FORGE_BLAS:-}" ]; then return; fi
    if [ -e "$env/.forge-no-blas" ] || has_fast_blas; then return; fi
    say "installing a fast BLAS"
    if command -v apt-get >/dev/null; then
        if [ "$(id -u)" = 0 ]; then
            if apt_install '' libopenblas0-pthread; then return; fi
        elif sudo -n true >/dev/null 2>&1; then
            if apt_install sudo libopenblas0-pthread; then return; fi
        fi
    fi
    if [ "$(uname -m)" = x86_64 ] && pip install --quiet mkl -c constraints.txt >/dev/null 2>&1 && has_fast_blas; then return; fi
    say "no fast BLAS could be installed, so the CPU is slow: have libopenblas0-pthread installed, or name a BLAS in FORGE_BLAS"
    : >"$env/.forge-no-blas" # tried once is enough: forge.blas says it at each start
}

find_environment
choose_extra
install
fast_blas
PATH=$env/bin:$PATH
export PATH
