#!/usr/bin/env bash
# Makes sure that a Chromium is there for the browser tests. Never fails: without one they skip and say why.
set -euo pipefail
cd "$(dirname "$0")/.."
. requirements/common.sh

has_chromium() {
    local name
    for name in chromium chromium-browser google-chrome; do
        command -v "$name" >/dev/null && return 0
    done
    .venv/bin/python - <<'PY' 2>/dev/null
import pathlib
import sys

from playwright.sync_api import sync_playwright

with sync_playwright() as playwright:
    sys.exit(not pathlib.Path(playwright.chromium.executable_path).exists())
PY
}

has_chromium && exit 0
say "no Chromium found: installing one for the browser tests"
if apt_install chromium && has_chromium; then exit 0; fi
if timeout 300 .venv/bin/python -m playwright install chromium </dev/null >>.venv/setup.log 2>&1 && has_chromium; then exit 0; fi
say "no Chromium: neither apt (as root) nor 'playwright install chromium' could bring one, so browser tests will be skipped"
