#!/usr/bin/env bash
# Every test, and the notebooks. Engines wait more than they compute, so all that starts none runs beside them, and then
# the notebooks, at a lower priority, so that it takes little from whatever measures time. From the root of the project;
# PYTHON and NOTEBOOKS as the Makefile sets them.
set -uo pipefail
with_engines=(tests/benchmarks tests/browser tests/integration)
child=
trap '[ -z "$child" ] || kill "$child" 2>/dev/null' EXIT
trap 'exit 1' TERM
status=0

if [ "${1:-}" = beside ]; then
    "$PYTHON" -m pytest tests "${with_engines[@]/#/--ignore=}" & child=$!
    wait "$child" || status=1
    if [ -n "${NOTEBOOKS:-}" ]; then
        # shellcheck disable=SC2086  # a list
        "$PYTHON" -m pytest --nbval-lax --nbval-current-env $NOTEBOOKS & child=$!
        wait "$child" || status=1
    fi
    exit "$status"
fi

said=$(mktemp)
nice -n 5 "$0" beside >"$said" 2>&1 & child=$!
"$PYTHON" -m pytest "${with_engines[@]}" || status=1
wait "$child" || status=1
echo "=== beside them: all other tests, and the notebooks"
cat "$said"
rm -f "$said"
exit "$status"
