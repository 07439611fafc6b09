"""Keeps the notebooks free of outputs: `notebooks.py check|strip FILE...`.

Outputs make every change unreadable and go stale. Only a cell marked `# NBVAL_CHECK_OUTPUT` keeps its own: there the
output is the expectation that nbval compares with.
"""

import json
import sys
from pathlib import Path
from typing import Any

KEPT = "# NBVAL_CHECK_OUTPUT"


def stripped(cell: dict[str, Any]) -> dict[str, Any]:
    """The cell without its outputs and execution count, unless it is marked; other cells as they are.

    A marked cell counts as executed once: nbval refuses expectations in a cell that never ran.
    """
    if cell["cell_type"] != "code":
        return cell
    outputs = cell["outputs"] if KEPT in "".join(cell["source"]) else []
    return cell | {"execution_count": 1 if outputs else None, "outputs": [_uncounted(output) for output in outputs]}


def _uncounted(output: dict[str, Any]) -> dict[str, Any]:
    return output | {"execution_count": None} if "execution_count" in output else output


def main(mode: str, paths: list[str]) -> str | None:
    """Check or rewrite the notebooks; what is wrong in words, or None."""
    left = []
    for path in map(Path, paths):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        clean = notebook | {"cells": [stripped(cell) for cell in notebook["cells"]]}
        if clean == notebook:
            continue
        left.append(str(path))
        if mode == "strip":
            path.write_text(json.dumps(clean, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return f"outputs left in {', '.join(left)}: run 'make format'" if left and mode == "check" else None


if __name__ == "__main__":
    if sys.argv[1:2] not in (["check"], ["strip"]):
        sys.exit("usage: notebooks.py check|strip FILE...")
    sys.exit(main(sys.argv[1], sys.argv[2:]))
