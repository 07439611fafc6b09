#!/usr/bin/env bash
# Every test, and the notebooks. Engines wait more than they compute, so all that starts none runs beside them, at a lower
# priority, so that it takes little from whatever measures time. From the root of the project; PYTHON and NOTEBOOKS as
# the Makefile sets them.
set -uo pipefail
with_engines=(tests/benchmarks tests/browser tests/integration)

said=$(mktemp)
nice -n 5 "$PYTHON" -m pytest tests "${with_engines[@]/#/--ignore=}" >"$said" 2>&1 &
beside=$!
trap 'kill "$beside" 2>/dev/null; rm -f "$said"' EXIT

status=0
"$PYTHON" -m pytest "${with_engines[@]}" || status=1
if [ -n "${NOTEBOOKS:-}" ]; then
    # shellcheck disable=SC2086  # a list
    "$PYTHON" -m pytest --nbval-lax --nbval-current-env $NOTEBOOKS || status=1
fi
wait "$beside" || status=1
echo "=== beside them: all other tests"
cat "$said"
exit "$status"
