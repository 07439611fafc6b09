#!/usr/bin/env bash
# Writes requirements/cpu.txt and requirements/gpu.txt anew from pyproject.toml. Versions already locked stay unless
# pyproject.toml excludes them; UPGRADE=1 takes the newest of everything. uv comes from PATH, or into a scratch folder.
set -euo pipefail
cd "$(dirname "$0")/.."
. requirements/common.sh

readonly TORCH=2.13.0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

find_uv() {
    uv=$(command -v uv || true)
    [ -z "$uv" ] || return 0
    local python=${PYTHON:-python3}
    say "fetching uv"
    "$python" -m venv "$scratch/uv" && "$scratch/uv/bin/python" -m pip install -q uv >"$scratch/uv.log" 2>&1 ||
        die "no uv on PATH, and pip could not fetch it: $(grep -m 1 '^ERROR' "$scratch/uv.log" || echo "$python -m venv failed")"
    uv=$scratch/uv/bin/uv
}

# PyTorch's CPU build for the resolver: from a find-links folder that holds it, otherwise from PyTorch's CPU index.
torch_source() {
    local links folder
    links=$(find_links "${PYTHON:-python3}")
    for folder in $links; do
        if holds_torch_wheel "$folder" "$TORCH" "cp3*"; then source_options="--find-links $folder"; return 0; fi
    done
    source_options="--torch-backend cpu"
}

# compile ACCELERATOR [uv option...]: only names, versions and markers go into the lock; no address, no path.
compile() {
    local accelerator=$1 target=requirements/$1.txt
    shift
    [ -n "${UPGRADE:-}" ] || { [ ! -e "$target" ] || sed "s/^torch==$TORCH\$/torch==$TORCH$local_version/" "$target" >"$scratch/$accelerator.txt"; }
    "$uv" pip compile pyproject.toml --quiet --extra "$accelerator" --extra dev --universal --python-version 3.11 \
        --no-header --no-annotate --no-emit-index-url --no-emit-find-links "$@" \
        -o "$scratch/$accelerator.txt" >"$scratch/uv.out" || die "uv could not resolve the $accelerator environment (its reasons are above)"
    {
        say "# The $accelerator environment, written by 'make lock' from pyproject.toml (extras $accelerator and dev). Do not edit."
        sed "s/^torch==$TORCH+cpu\$/torch==$TORCH/" "$scratch/$accelerator.txt"
    } >"$scratch/out"
    mv "$scratch/out" "$target"
    say "$target: $(grep -c == "$target") lines"
}

find_uv
torch_source
say "torch==$TORCH+cpu" >"$scratch/torch.txt"
local_version=+cpu
# shellcheck disable=SC2086  # two words on purpose
compile cpu --override requirements/overrides.txt --constraint "$scratch/torch.txt" $source_options
local_version=
compile gpu
