# Shared by the scripts beside it; sourced, never run.

say() { printf '%s\n' "$*"; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# apt_install PACKAGE...: true when apt installed them; false where that is not possible (not root, no apt, no network).
apt_install() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    {
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
    } </dev/null >"${TMPDIR:-/tmp}/abswitch-apt.log" 2>&1
}

# find_links PYTHON: the folders or pages that pip is configured to look in besides an index; empty when none.
find_links() {
    if [ -n "${PIP_FIND_LINKS:-}" ]; then
        printf '%s\n' "$PIP_FIND_LINKS"
    else
        "$1" -m pip config get global.find-links 2>/dev/null || "$1" -m pip config get install.find-links 2>/dev/null || true
    fi
}

# holds_torch_wheel LINKS VERSION TAG: true when a folder among LINKS has PyTorch's CPU wheel for that Python tag (cp312;
# a pattern is allowed).
holds_torch_wheel() {
    local folder wheel
    for folder in $1; do
        for wheel in "${folder#file://}/torch-$2+cpu-"$3-*.whl; do
            [ -e "$wheel" ] && return 0
        done
    done
    return 1
}
