"""`Preflight`: before a switch begins, whether its versions fit together, what it will take, and the ways out."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from abswitch.domain import ModelVersion, Residency, SwitchPath, VersionKey
from abswitch.errors import BadModelSource, SwitchRefused
from abswitch.rollout.strategies import ImmediateStrategy, Strategy
from abswitch.serving.arrivals import load_path
from abswitch.serving.cache import ModelCache
from abswitch.serving.policy import GIB, Footprint, Room, Step, make_room, usage
from abswitch.serving.registry import DynamicModelRegistry
from abswitch.serving.tables import named
from abswitch.serving.timings import Expectation

DRAIN = "drain"
PINNED = "it is pinned"  # as `ModelCache.why_needed` says it
_WAYS = {
    SwitchPath.LOAD: "loading it",
    SwitchPath.ADAPTER: "loading its adapter",
    SwitchPath.JOIN: "joining an engine that runs already",
    SwitchPath.WAKE: "waking it",
    SwitchPath.IN_PLACE: "putting its weights in place",
}


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
        paths: candidate → how it comes to serve; of one that is resident, how it did.
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
        return "\n".join(f"{name}: {words}" if name else words for name, words in self.lines())

    def _repr_html_(self) -> str:
        return named(self.lines())

    def lines(self) -> list[tuple[str, str]]:
        """What it says, as pairs of a name and words."""
        way = f"{self.stable or 'nothing'} → {', '.join(self.candidates)}"
        lines = [(f"{self.model_id}, {self.strategy} {way}", self.refusal or "can begin")]
        for version in self.candidates:
            need = self.needs[version]
            needs = "needs no more memory" if need == Footprint() else f"needs {need} more"
            lines.append((version, f"{self.tiers[version]} now, {self._readiness(version)}; {needs}"))
        if self.stable is not None and self.stable not in self.candidates:
            lines.append((self.stable, f"{self.tiers[self.stable]} now, {self.during[self.stable]} during the switch"))
        lines.append(("held now", str(self.held)))
        lines += [("leaves", f"{step.key[0]}:{step.key[1]} → {step.to}") for step in self.leaving]
        if self.stable is not None:
            lines.append(("drain", str(self.drain)))
        return lines + [("way out", words) for words in self.ways_out]

    def _readiness(self, version: str) -> str:
        way, expected = self.paths[version], self.expected[version]
        if self.tiers[version] is Residency.RESIDENT:
            return "ready at once"
        took = f", which was {expected}" if expected.seconds is None else f" in {expected}"
        return f"ready by {_WAYS[way]}{took}"


class Preflight:
    """Lives on the engine's loop; reads the cache and the registry, changes nothing.

    Args:
        serves: whether a version is routed, or part of a switch under way: it stays whether or not it is pinned.
    """

    def __init__(
        self, registry: DynamicModelRegistry, cache: ModelCache, *, serves: Callable[[VersionKey], bool]
    ) -> None:
        self._registry = registry
        self._cache = cache
        self._serves = serves

    async def plan(self, model_id: str, target: str, strategy: Strategy, stable: str | None) -> SwitchPlan:
        """What the switch would take now, from the stable version, or from nothing.

        Raises:
            UnknownVersion: there is none of that name.
            InvalidInput: no backend here can serve a version, e.g. one that an earlier process had a backend for.
        """
        candidates = [self._registry.get(model_id, name) for name, _ in strategy.candidates(target)]
        together = [] if stable is None or strategy.drains_first else [self._registry.get(model_id, stable)]
        for version in (*candidates, *together):
            self._cache.check_backend(version)
        needs = {v.version: await self._cache.needs(v) for v in (*candidates, *together)}
        room = self._room(model_id, stable, needs, drains_first=strategy.drains_first)
        refusal = await self._refusal(model_id, stable, candidates, strategy, room)
        leaving = {step.key for step in room.steps}
        if stable is not None and strategy.drains_first:
            leaving.add((model_id, stable))
        paths = {v.version: await self._path(v, strategy, stable, leaving) for v in candidates}
        tiers = {name: self._cache.tier((model_id, name)) for name in (*needs, *([stable] if stable else []))}
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
            drain=Expectation() if stable is None else self._cache.timings.expect(model_id, stable, DRAIN),
            refusal=refusal,
            ways_out=() if refusal is None else self._ways_out(model_id, stable, strategy, needs, room),
        )

    async def check(self, model_id: str, target: str, strategy: Strategy, stable: str | None) -> None:
        """Refuse a switch that cannot be carried out.

        Raises:
            SwitchRefused: with the numbers and the ways out.
        """
        plan = await self.plan(model_id, target, strategy, stable)
        if plan.refusal is not None:
            raise SwitchRefused("; ".join((plan.refusal, *(f"or {way}" for way in plan.ways_out))))

    async def way(self, model_id: str, target: str, stable: str | None) -> ImmediateStrategy:
        """The immediate switch that memory allows: beside the version that serves, or once that has left.

        Where neither is possible, the first of them, which `check` refuses with the numbers.

        Raises:
            UnknownVersion, InvalidInput: as `plan`; `check` says what is wrong with the target's files.
        """
        beside, in_turn = ImmediateStrategy(), ImmediateStrategy(drain_first=True)
        for way in (beside, in_turn) if stable is not None else ():
            with suppress(BadModelSource):  # of the version that serves, it may be: what is broken need not stay
                if (await self.plan(model_id, target, way, stable)).refusal is None:
                    return way
        return beside

    def _room(
        self,
        model_id: str,
        stable: str | None,
        needs: Mapping[str, Footprint],
        *,
        drains_first: bool,
        unpinned: Container[VersionKey] = (),
    ) -> Room:
        """What has to leave for the versions of a switch; they are not to leave for each other.

        Args:
            unpinned: versions that may leave although they are pinned.
        """
        held, own = self._cache.held, {(model_id, name) for name in needs}
        need = sum(needs.values(), Footprint())
        if stable is not None and drains_first:
            need = _minus(need, usage(one for one in held if one.key == (model_id, stable)))
        new = sum(self._cache.tier(key) is Residency.COLD for key in own)
        marked = [replace(one, protected=one.key in own or (one.protected and one.key not in unpinned)) for one in held]
        return make_room(marked, need, self._cache.budget, models=new)

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
        pinned = self._pinned(model_id, (stable, *(v.version for v in candidates)))
        kept = f", but for {_named(pinned)}, which {'is' if len(pinned) == 1 else 'are'} pinned" if pinned else ""
        return (
            f"{names} does not fit{beside}: {room.lacking} are missing of the budget, "
            f"with {usage(self._cache.held)} held and everything that is not in use unloaded{kept}"
        )

    def _pinned(self, model_id: str, own: Container[str | None]) -> tuple[VersionKey, ...]:
        """Versions that only `pin` keeps, besides those of the switch itself."""
        others = (one.key for one in self._cache.held if one.key[0] != model_id or one.key[1] not in own)
        return tuple(key for key in others if self._cache.why_needed(key) == PINNED and not self._serves(key))

    def _ways_out(
        self, model_id: str, stable: str | None, strategy: Strategy, needs: Mapping[str, Footprint], room: Room
    ) -> tuple[str, ...]:
        ways: list[str] = []
        if not room.fits:
            ways += self._unpinning(model_id, stable, strategy, needs)
            short = max(room.lacking.device_bytes, room.lacking.host_bytes)
            smaller = f"{short / GIB:.2f} GiB smaller (engine_args kv_cache_memory_bytes)"
            ways.append(f"a KV cache that is {smaller}, or a larger budget")
            adapter = "" if stable is None else ", or a LoRA adapter on the stable version's engine"
            ways.append(f"a quantised candidate{adapter}")
        if stable is None or not self._fit_in_turn(model_id, stable, needs):
            return tuple(ways)
        if strategy.needs_stable and not room.fits:
            ways.append("a test in time slices: each version alone in turn (switchback)")
        if not strategy.drains_first or strategy.swaps:
            ways.append("an immediate switch with drain_first=True: requests wait while one leaves and the other loads")
        return tuple(ways)

    def _unpinning(
        self, model_id: str, stable: str | None, strategy: Strategy, needs: Mapping[str, Footprint]
    ) -> list[str]:
        pinned = self._pinned(model_id, (stable, *needs))
        freed = self._room(model_id, stable, needs, drains_first=strategy.drains_first, unpinned=pinned)
        return [f"engine.unpin for {_named(pinned)}"] if pinned and freed.fits else []

    def _fit_in_turn(self, model_id: str, stable: str, needs: Mapping[str, Footprint]) -> bool:
        """Whether each candidate fits once the stable version has left."""
        alone = ({name: need} for name, need in needs.items() if name != stable)
        return all(self._room(model_id, stable, one, drains_first=True).fits for one in alone)

    async def _path(
        self, version: ModelVersion, strategy: Strategy, stable: str | None, leaving: Container[VersionKey]
    ) -> SwitchPath:
        if strategy.swaps and stable is not None:
            return SwitchPath.IN_PLACE
        if (resident := self._cache.loaded.get(version.key)) is not None:
            return resident.path
        if self._cache.tier(version.key) is not Residency.COLD:
            return SwitchPath.WAKE
        return load_path(version, joins=await self._joins(version, leaving))

    async def _joins(self, version: ModelVersion, leaving: Container[VersionKey]) -> bool:
        """Whether an engine that can serve the version runs, and still does once others have left for the switch."""
        engine = await self._cache.engine_to_join(version)
        return any(one.engine == engine and one.key not in leaving for one in self._cache.held)

    def _expected(self, model_id: str, version: str, path: SwitchPath) -> Expectation:
        if self._cache.tier((model_id, version)) is Residency.RESIDENT:
            return Expectation(0.0, 1)
        return self._cache.timings.expect(model_id, version, path)


def _minus(need: Footprint, given_back: Footprint) -> Footprint:
    return Footprint(
        max(0, need.device_bytes - given_back.device_bytes), max(0, need.host_bytes - given_back.host_bytes)
    )


def _named(keys: tuple[VersionKey, ...]) -> str:
    return ", ".join(repr(f"{model_id}:{version}") for model_id, version in keys)
