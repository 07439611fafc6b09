"""Which arm a unit belongs to: a pure function of (salt, unit), the same in every process and Python version.

One hash, one threshold: raising the candidate's share keeps every unit that already was there.
"""

from __future__ import annotations

from hashlib import blake2b

_SCALE = 2.0**-64


def salted(salt: str) -> blake2b:
    """The hash state of a salt, to be copied for each unit.

    The salt is hashed into the key, so that similar salts (`exp-1`, `exp-2`) give unrelated assignments.
    """
    return blake2b(digest_size=8, key=blake2b(salt.encode(), digest_size=32).digest())


def unit_fraction(state: blake2b, unit_id: str) -> float:
    """Where a unit falls in [0, 1), uniformly over units; `state` comes from `salted`."""
    hashed = state.copy()
    hashed.update(unit_id.encode())
    return int.from_bytes(hashed.digest(), "big") * _SCALE
