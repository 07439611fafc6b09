"""A metric's conditions and segments as SQL. Identifiers are this package's own; what a user wrote is a parameter."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from abswitch.stats.selection import NO_SEGMENT, OTHERS, Segments, Where

_COMPARES = {"above": ">", "at_least": ">=", "below": "<", "at_most": "<=", "equals": "=", "differs": "<>"}
Source = Callable[[str], str]
"""The SQL of a column's value, by the column's name."""


def condition_sql(where: Sequence[Where], source: Source) -> tuple[str, dict[str, object]]:
    """What a row must fulfil, as ` AND …` (nothing without conditions), and its parameters."""
    sql, params = "", dict[str, object]()
    for i, one in enumerate(where):
        column = source(one.column)
        for name, bound in one.conditions.items():
            several = bound if name == "one_of" else (bound,)
            keys = [f"where_{i}_{name}_{j}" for j in range(len(several))]
            params |= dict(zip(keys, several, strict=True))
            sql += " AND " + _condition(name, column, [f"${key}" for key in keys])
    return sql, params


def _condition(name: str, column: str, bounds: Sequence[str]) -> str:
    if name == "one_of":
        return f"{column} IN ({', '.join(bounds)})"
    if name == "starts_with":
        return f"starts_with({column}, {bounds[0]})"
    return f"{column} {_COMPARES[name]} {bounds[0]}"


def segment_sql(segments: Segments, source: Source, largest: Sequence[str] = ()) -> tuple[str, dict[str, object]]:
    """The name of a row's segment, and its parameters.

    Args:
        largest: segments that keep their names; all others are `OTHERS`. Without any, all do.
    """
    sql, params = _label(segments, source(segments.column))
    if not largest:
        return sql, params
    keys = {f"segment_{i}": name for i, name in enumerate(largest)}
    return f"CASE WHEN {sql} IN ({', '.join('$' + key for key in keys)}) THEN {sql} ELSE '{OTHERS}' END", params | keys


def _label(segments: Segments, column: str) -> tuple[str, dict[str, object]]:
    if segments.separator:
        cut = f"split_part({column}, $separator, 1)"
        params: dict[str, object] = {"separator": segments.separator}
        return f"CASE WHEN contains({column}, $separator) THEN {cut} ELSE '{NO_SEGMENT}' END", params
    nothing = f"CASE WHEN {column} IS NULL THEN '{NO_SEGMENT}'"
    if not segments.edges:
        return f"{nothing} ELSE format('{{:g}}', {column}) END", {}
    ends = zip(segments.edges, segments.labels, strict=False)
    cases = " ".join(f"WHEN {column} <= {edge!r}::DOUBLE THEN '{label}'" for edge, label in ends)
    return f"{nothing} {cases} ELSE '{segments.labels[-1]}' END", {}
