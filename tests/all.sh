#!/usr/bin/env bash
# Every test, and the notebooks. Engines wait more than they compute, so what only computes runs beside them, at a lower
# priority, so that it takes little from whatever measures time. From the root of the project; PYTHON and NOTEBOOKS as
# the Makefile sets them.
set -uo pipefail
computing=(
    tests/mutations tests/rollout tests/serving/test_stateful.py tests/stats tests/test_recovery.py
    tests/test_registry_engine.py
)

said=$(mktemp)
nice -n 5 "$PYTHON" -m pytest "${computing[@]}" >"$said" 2>&1 &
beside=$!
trap 'kill "$beside" 2>/dev/null; rm -f "$said"' EXIT

status=0
"$PYTHON" -m pytest tests "${computing[@]/#/--ignore=}" || status=1
if [ -n "${NOTEBOOKS:-}" ]; then
    # shellcheck disable=SC2086  # a list
    "$PYTHON" -m pytest --nbval-lax --nbval-current-env $NOTEBOOKS || status=1
fi
wait "$beside" || status=1
echo "=== beside them: ${computing[*]}"
cat "$said"
exit "$status"
