"""`Preflight`: before a switch begins, whether its versions fit together, what it will take, and the ways out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape

from abswitch.domain import ModelVersion, Residency, SwitchPath
from abswitch.errors import SwitchRefused
from abswitch.rollout.strategies import Strategy
from abswitch.serving.cache import ModelCache
from abswitch.serving.policy import GIB, Footprint, Room, Step, usage
from abswitch.serving.registry import DynamicModelRegistry
from abswitch.serving.timings import Expectation

DRAIN = "drain"


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchPlan:
    """What a switch would take; `str()` and notebooks show it for people.

    Attributes:
        fits: whether every version of the switch can be held at once (of a switch that drains first: one by one).
        needs: memory beyond what is held now, by version; estimated where the version was never loaded.
        held: memory taken now by everything.
        lacking: what does not fit after everything that may leave has left.
        leaving: versions, of any model, that are put to sleep or unloaded for it.
        tiers: version → the tier it is in now.
        during: version → the tier it is in while the switch runs.
        paths: candidate → how it comes to serve.
        expected: candidate → seconds from the start of the switch until it is ready, from measured history.
        drain: seconds until the requests of the version that leaves have ended.
        refusal: why the switch would be refused, in one sentence; None when it would not be.
        ways_out: what can be done about it.
    """

    model_id: str
    strategy: str
    stable: str | None
    candidates: tuple[str, ...]
    fits: bool
    needs: Mapping[str, Footprint]
    held: Footprint
    lacking: Footprint
    leaving: tuple[Step, ...]
    tiers: Mapping[str, Residency]
    during: Mapping[str, Residency]
    paths: Mapping[str, SwitchPath]
    expected: Mapping[str, Expectation]
    drain: Expectation
    refusal: str | None = None
    ways_out: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        return "\n".join(f"{name}: {words}" if name else words for name, words in self._lines())

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td style="text-align:left;opacity:.75;padding-right:1em">{escape(name)}</td>'
            f'<td style="text-align:left">{escape(words)}</td></tr>'
            for name, words in self._lines()
        )
        return f'<table style="font:13px/1.5 system-ui,sans-serif">{rows}</table>'

    def _lines(self) -> list[tuple[str, str]]:
        way = f"{self.stable or 'nothing'} → {', '.join(self.candidates)}"
        lines = [(f"{self.model_id}, {self.strategy} {way}", self.refusal or "can begin")]
        for version in self.candidates:
            lines.append(
                (
                    version,
                    f"{self.tiers[version]} now, ready by {self.paths[version]} in {self.expected[version]}; "
                    f"needs {self.needs[version]} more",
                )
            )
        if self.stable is not None:
            lines.append((self.stable, f"{self.tiers[self.stable]} now, {self.during[self.stable]} during the switch"))
        lines.append(("held now", str(self.held)))
        lines += [("leaves", f"{step.key[0]}:{step.key[1]} → {step.to}") for step in self.leaving]
        lines.append(("drain", str(self.drain)))
        return lines + [("way out", words) for words in self.ways_out]


class Preflight:
    """Lives on the engine's loop; reads the cache and the registry, changes nothing."""

    def __init__(self, registry: DynamicModelRegistry, cache: ModelCache) -> None:
        self._registry = registry
        self._cache = cache

    async def plan(self, model_id: str, target: str, strategy: Strategy) -> SwitchPlan:
        """What the switch would take now."""
        stable = self._registry.active_version(model_id)
        candidates = [self._registry.get(model_id, name) for name, _ in strategy.candidates(target)]
        together = [] if stable is None or strategy.drains_first else [self._registry.get(model_id, stable)]
        needs = {v.version: await self._cache.needs(v) for v in (*candidates, *together)}
        room = self._room(model_id, stable, strategy, needs)
        refusal = await self._refusal(model_id, stable, candidates, strategy, room)
        tiers = {name: self._cache.tier((model_id, name)) for name in (*needs, *([stable] if stable else []))}
        paths = {v.version: await self._path(model_id, v, strategy) for v in candidates}
        return SwitchPlan(
            model_id=model_id,
            strategy=strategy.type.value,
            stable=stable,
            candidates=tuple(v.version for v in candidates),
            fits=room.fits,
            needs=needs,
            held=usage(self._cache.held),
            lacking=room.lacking,
            leaving=room.steps,
            tiers=tiers,
            during={n: Residency.COLD if n == stable and strategy.drains_first else Residency.RESIDENT for n in tiers},
            paths=paths,
            expected={v.version: self._expected(model_id, v.version, paths[v.version]) for v in candidates},
            drain=self._cache.timings.expect(model_id, stable or "", DRAIN),
            refusal=refusal,
            ways_out=() if refusal is None else self._ways_out(strategy, room),
        )

    async def check(self, model_id: str, target: str, strategy: Strategy) -> None:
        """Refuse a switch that cannot be carried out.

        Raises:
            SwitchRefused: with the numbers and the ways out.
        """
        plan = await self.plan(model_id, target, strategy)
        if plan.refusal is not None:
            raise SwitchRefused("; ".join((plan.refusal, *(f"or {way}" for way in plan.ways_out))))

    def _room(self, model_id: str, stable: str | None, strategy: Strategy, needs: Mapping[str, Footprint]) -> Room:
        need = sum(needs.values(), Footprint())
        if stable is not None and strategy.drains_first:
            need = _minus(need, usage(one for one in self._cache.held if one.key == (model_id, stable)))
        new = sum(self._cache.tier((model_id, name)) is Residency.COLD for name in needs)
        kept = {(model_id, name) for name in needs}
        for key in kept:
            self._cache.pin(key)  # for the length of the calculation: they are not to leave for each other
        try:
            return self._cache.plan_room(need, models=new)
        finally:
            for key in kept:
                self._cache.unpin(key)

    async def _refusal(
        self, model_id: str, stable: str | None, candidates: list[ModelVersion], strategy: Strategy, room: Room
    ) -> str | None:
        if strategy.swaps and stable is not None:
            cached = self._cache.loaded.get((model_id, stable))
            reason = "it is not loaded" if cached is None else await cached.instance.why_not_in_place(candidates[0])
            if reason is not None:
                return f"{candidates[0].version!r} cannot take the place of {stable!r}: {reason}"
        if room.fits:
            return None
        names = ", ".join(repr(v.version) for v in candidates)
        beside = f" beside {stable!r}" if stable and not strategy.drains_first else ""
        return (
            f"{names} does not fit{beside}: {room.lacking} are missing of the budget, "
            f"with {usage(self._cache.held)} held and everything that is not in use unloaded"
        )

    def _ways_out(self, strategy: Strategy, room: Room) -> tuple[str, ...]:
        ways: list[str] = []
        if not room.fits:
            short = max(room.lacking.device_bytes, room.lacking.host_bytes)
            smaller = f"{short / GIB:.2f} GiB smaller (engine_args kv_cache_memory_bytes)"
            ways.append(f"a KV cache that is {smaller}, or a larger budget")
            ways.append("a quantised candidate, or a LoRA adapter on the stable version's engine")
            if strategy.needs_stable:
                ways.append("a test in time slices: each version alone in turn (switchback)")
        if not strategy.drains_first or strategy.swaps:
            ways.append("an immediate switch with drain_first=True: requests wait while one leaves and the other loads")
        return tuple(ways)

    async def _path(self, model_id: str, version: ModelVersion, strategy: Strategy) -> SwitchPath:
        tier = self._cache.tier((model_id, version.version))
        if strategy.swaps:
            return SwitchPath.IN_PLACE
        if tier in (Residency.SLEEPING, Residency.DISCARDED):
            return SwitchPath.WAKE
        return SwitchPath.ADAPTER if version.config.adapter is not None else SwitchPath.LOAD

    def _expected(self, model_id: str, version: str, path: SwitchPath) -> Expectation:
        if self._cache.tier((model_id, version)) is Residency.RESIDENT:
            return Expectation(0.0, 1)
        return self._cache.timings.expect(model_id, version, path)


def _minus(need: Footprint, given_back: Footprint) -> Footprint:
    return Footprint(
        max(0, need.device_bytes - given_back.device_bytes), max(0, need.host_bytes - given_back.host_bytes)
    )
