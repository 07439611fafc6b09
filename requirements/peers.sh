#!/usr/bin/env bash
# The environment of requirements/peers.txt, and what those libraries answer, as tests/peers/references.json has it.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
if [ ! -x .venv-peers/bin/python ]; then
    "$python" -m venv .venv-peers
    .venv-peers/bin/python -m pip install --quiet -r requirements/peers.txt
fi
.venv-peers/bin/python tests/peers/references.py "$@"
