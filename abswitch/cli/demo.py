"""`abswitch demo`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from abswitch.cli.arguments import Failure
from abswitch.experiments.executing import NotExecuted, execute
from abswitch.experiments.exits import ExitStatus

NOTEBOOK = Path("notebooks/01_quickstart.ipynb")
CANDIDATES = ("better", "regressed", "identical")
_FEWEST_QUESTIONS = 40


def add(commands: Any) -> None:
    """Add the command to the parser."""
    demo = commands.add_parser(
        "demo",
        help="the whole story on two small models: switch, compare, verdict",
        description="Runs the quickstart notebook: trains two small models, serves both, compares them on live "
        "traffic, switches to the winner, and writes a report.",
    )
    demo.add_argument(
        "--output", type=Path, default=Path("reports/quickstart"), metavar="FOLDER", help="the report (%(default)s)"
    )
    demo.add_argument("--questions", type=_questions, default=600, metavar="N", help="requests to split (%(default)s)")
    demo.add_argument("--candidate", choices=CANDIDATES, default="better", help="what meets the baseline (%(default)s)")
    demo.add_argument(
        "--mlflow",
        default="sqlite:///mlflow/mlflow.db",
        metavar="URI",
        help="MLflow store or server to publish to, '' for none (%(default)s, in the repository)",
    )
    demo.set_defaults(work=_demo)


def _questions(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < _FEWEST_QUESTIONS:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a whole number of at least {_FEWEST_QUESTIONS}")
    return int(text)


def _demo(options: argparse.Namespace) -> ExitStatus:
    notebook = _find_notebook()
    folder: Path = options.output.expanduser().resolve()
    executed = folder / notebook.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"cannot write to {folder}: {error.strerror}", ExitStatus.CANNOT_WRITE) from error
    summary = folder / "summary.json"
    summary.unlink(missing_ok=True)  # what is printed at the end is of this run, never of an earlier one
    parameters = {
        "n_questions": options.questions,
        "candidate": options.candidate,
        "report_dir": str(folder),
        "mlflow_uri": options.mlflow,
        "project_dir": str(notebook.parent.parent),
    }
    print(f"Running {notebook.name}; the first run also trains the models, about half a minute.", file=sys.stderr)
    try:
        execute(notebook, executed, parameters, title="demo")
    except NotExecuted as error:
        raise Failure(str(error)) from error
    print(closing_words(json.loads(summary.read_text(encoding="utf-8")), folder, executed))
    return ExitStatus.SUCCESS


def _find_notebook() -> Path:
    places = (Path(__file__).resolve().parents[2], Path.cwd())
    for place in places:
        if (place / NOTEBOOK).is_file():
            return place / NOTEBOOK
    raise Failure(
        f"{NOTEBOOK} belongs to the repository, not to the installed package; it is not in "
        f"{' or '.join(map(str, dict.fromkeys(places)))}. Run this from a checkout."
    )


def closing_words(summary: dict[str, Any], folder: Path, executed: Path) -> str:
    """What the demo ends with: the verdict in words, the requests, the switch, and where to look next.

    Args:
        summary: the content of `summary.json`, see docs/summary.md.
    """
    requests = summary["requests"]
    lines = [
        "",
        f"Verdict   {summary['verdict']['headline']}",
        *(f"          {reason}" for reason in summary["verdict"]["reasons"]),
        f"Requests  {requests['sent']:,} sent, {requests['answered']:,} answered, "
        f"{requests['failed']:,} failed, {requests['lost']:,} lost",
        f"Switch    {_switch_words(summary['switch'])}",
        "",
        "Look next",
        f"  report    {folder / 'index.html'}",
        f"  notebook  {executed}",
    ]
    if summary["store"]:
        lines.append(f"  evidence  {summary['store']} (DuckDB)")
    lines.append(
        "  MLflow    make mlflow" + (f", then {summary['tracking']['compare']}" if summary["tracking"] else "")
    )
    lines.append("  notebooks make lab")
    return "\n".join(lines)


def _switch_words(switch: dict[str, float | None] | None) -> str:
    if switch is None:
        return "none; the version that was active before serves on"
    parts = (
        ("all new requests on the new version", switch["routed_s"]),
        ("its first token", switch["first_token_s"]),
        ("last request on the old one ended", switch["drained_s"]),
    )
    return ", ".join(f"{what} after {1000 * seconds:,.0f} ms" for what, seconds in parts if seconds is not None)
