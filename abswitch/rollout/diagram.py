"""The state machine as a Mermaid diagram, drawn from the table the machine runs on."""

from __future__ import annotations

from abswitch.rollout.machine import TABLE
from abswitch.rollout.operation import Phase


def mermaid() -> str:
    """The diagram's text; `docs/state-machine.md` holds it, and a test keeps the two together."""
    lines = ["stateDiagram-v2", f"    [*] --> {_node(Phase.PENDING)}"]
    for phase, row in TABLE.items():
        labels: dict[Phase, list[str]] = {}
        for event, targets in row.items():
            for target in sorted(targets, key=list(Phase).index):
                labels.setdefault(target, []).append(event.__name__)
        for target in sorted(labels, key=list(Phase).index):
            lines.append(f"    {_node(phase)} --> {_node(target)}: {', '.join(sorted(labels[target]))}")
        if phase.is_final:
            lines.append(f"    {_node(phase)} --> [*]")
    return "\n".join(lines)


def _node(phase: Phase) -> str:
    return phase.value.replace(" ", "_")


if __name__ == "__main__":
    import sys

    sys.stdout.write(mermaid() + "\n")
