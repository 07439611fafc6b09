#!/usr/bin/env bash
# Every test, and the notebooks. Engines wait more than they compute, so all that starts none runs beside them, and then
# the notebooks, at a lower priority, so that it takes little from whatever measures time. What fails then, a few tests
# at most, is run once more when nothing runs beside it, and decides by that; the end of the output names it. From the
# root of the project; PYTHON and NOTEBOOKS as the Makefile sets them. `tests/all.sh beside` leaves the engines out.
set -uo pipefail
with_engines=(tests/benchmarks tests/browser tests/integration)
most_again=5
given=${2:-}  # with `beside`: the folder of whoever settles what failed
folder=${given:-$(mktemp -d)}
child=
trap '[ -z "$child" ] || kill "$child" 2>/dev/null; [ -n "$given" ] || rm -rf "$folder"' EXIT
trap 'exit 1' TERM

# part NAME ARGUMENTS…: a run of pytest; its failures and its status are kept under its name.
part() {
    local name=$1 status=0
    shift
    "$PYTHON" -m pytest -o "cache_dir=$folder/$name" "$@" & child=$!
    wait "$child" || status=$?
    child=
    echo "$status" >"$folder/$name.status"
}
engines() { part engines "$@" "${with_engines[@]}"; }
others() { part others "$@" tests "${with_engines[@]/#/--ignore=}"; }
# shellcheck disable=SC2086  # a list
notebooks() { part notebooks --nbval-lax --nbval-current-env $NOTEBOOKS; }

beside() {
    others
    [ -z "${NOTEBOOKS:-}" ] || notebooks
}

# settle NAME ARGUMENTS…: whether a part passed, now or when it is run again with these arguments and nothing beside it.
settle() {
    local name=$1 failed=()
    shift
    [ -e "$folder/$name.status" ] || return 0  # was not asked for
    case $(cat "$folder/$name.status") in
        0) return 0 ;;
        1) ;;
        *) return 1 ;;  # no test failed: it was ended, or found nothing to run
    esac
    mapfile -t failed < <(sed -n 's/^ *"\(.*\)": true,\{0,1\}$/\1/p' "$folder/$name/v/cache/lastfailed")
    [ "${#failed[@]}" -gt 0 ] && [ "${#failed[@]}" -le "$most_again" ] || return 1
    printf '=== once more, with nothing beside it: %s\n' "${failed[@]}"
    "$name" "$@"
    [ "$(cat "$folder/$name.status")" = 0 ] || return 1
    again+=("${failed[@]}")
}

if [ "${1:-}" = beside ]; then
    beside
    [ -z "$given" ] || exit 0
else
    nice -n 5 "$0" beside "$folder" >"$folder/said" 2>&1 & other=$!
    trap 'kill "$other" ${child:+"$child"} 2>/dev/null; rm -rf "$folder"' EXIT
    engines
    wait "$other"
    echo "=== beside them: all other tests, and the notebooks"
    cat "$folder/said"
    [ -e "$folder/others.status" ] || exit 1  # it was ended
fi

again=()
failed=0
settle engines --last-failed --last-failed-no-failures none || failed=1
settle others --last-failed --last-failed-no-failures none || failed=1
settle notebooks || failed=1
[ "${#again[@]}" = 0 ] || printf 'passed only with nothing beside it: %s\n' "${again[@]}"
exit "$failed"
