"""`GoldenPrompts`: does a version that came back still answer as it did at first?

A wake or a reload that returns garbage, stale weights, another version's cached prefixes: all show in a few greedy
tokens. The reference is what the version answered after its first load from its files; it is kept with the digest of
those files, so that other weights are never held against it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import aclosing
from itertools import count

from abswitch.domain import GenerationRequest, ModelVersion, Sampling, SwitchPath, VersionKey
from abswitch.errors import LoadFailed
from abswitch.serving.cache import CachedVersion
from abswitch.serving.instance import ModelInstance

log = logging.getLogger(__name__)

PROMPTS = ("1", "A", "0,", "If", "The", "def", "9+", "(x")
"""So short that reading all of them takes about one step of an engine, whatever the tokenizer makes of them; and
different, so that a cached prefix of one is none of another."""
TOKENS = 2
"""Traffic waits for every step. The first token shows that a prompt is read, the second that what was read is
remembered; a third says little, as after a difference all tokens differ. Many prompts cost less than many tokens."""
ASKED = {"prompts": list(PROMPTS), "max_tokens": TOKENS}
"""What a reference answers; one that answers something else is none."""
_SAMPLING = Sampling(temperature=0.0, max_tokens=TOKENS, ignore_eos=True)
MIN_AGREEMENT = 0.5
"""Share of the greedy answers' text, up to the first difference, below which answers count as another model's.

Batches of another size round differently, so that a near-tie may fall the other way and the rest of that answer with
it; garbage agrees in next to nothing.
"""

Answers = tuple[tuple[str, ...], ...]
"""For each prompt the pieces of text as they came."""
ReferenceKey = tuple[str, str, str]
"""(model_id, version, weights digest or an empty text)."""


class GoldenPrompts:
    """References by version, and the comparison with them. Lives on the engine's loop.

    Args:
        known: references recorded by earlier processes.
        keep: writes a new reference down; must not block.
    """

    def __init__(
        self,
        known: Mapping[ReferenceKey, Answers] | None = None,
        *,
        keep: Callable[[ReferenceKey, Answers], None] = lambda _key, _answers: None,
    ) -> None:
        self._references: dict[ReferenceKey, Answers] = dict(known or {})
        self._keep = keep
        self._numbers = count()

    def knows(self, key: VersionKey) -> bool:
        """Whether answers of a version are kept, whatever its weights. From any thread."""
        return any(known[:2] == key for known in tuple(self._references))

    async def ask(self, key: VersionKey, instance: ModelInstance) -> Answers:
        """What an instance answers to the golden prompts, asked all at once."""
        return tuple(await asyncio.gather(*(self._answer(key, instance, prompt) for prompt in PROMPTS)))

    def compare(self, version: ModelVersion, cached: CachedVersion, answers: Answers) -> None:
        """Hold answers against the reference, or make them the reference where there is none.

        Raises:
            LoadFailed: the answers are not those of this version, or its files were changed.
        """
        key = (*version.key, cached.weights_digest or "")
        reference = self._references.get(key)
        if reference is None:
            self._refuse_changed(version, key[2])
            self._first(version, cached, key, answers)
            return
        agreed = agreement(reference, answers)
        if agreed < MIN_AGREEMENT:
            raise LoadFailed(
                f"{version} came back ({cached.path}) with other answers than its own: {agreed:.0%} of the golden "
                f"prompts' text agrees, at least {MIN_AGREEMENT:.0%} must; "
                f"first {_shown(reference)}, now {_shown(answers)}"
            )
        if agreed < 1.0:
            log.info(
                "%s came back (%s): %.0f %% of the golden prompts' text agrees", version, cached.path, 100 * agreed
            )

    def _refuse_changed(self, version: ModelVersion, digest: str) -> None:
        """What was said of a version holds of the weights it had; those of another file would go by its name."""
        before = [known[2] for known in self._references if known[:2] == version.key and known[2]]
        if before and digest:
            raise LoadFailed(
                f"{version}: its weights were changed since it was loaded at first (digest {before[0]} then, {digest} "
                f"now), and a version does not change; put the old files back, or register the new ones as another "
                f"version"
            )

    def _first(self, version: ModelVersion, cached: CachedVersion, key: ReferenceKey, answers: Answers) -> None:
        """What comes from its files is the reference; what was swapped in has nothing to be held against."""
        if cached.path is SwitchPath.IN_PLACE:
            log.warning("%s was swapped in and never loaded from its files: its answers could not be compared", version)
            return
        self._references[key] = answers
        self._keep(key, answers)

    async def _answer(self, key: VersionKey, instance: ModelInstance, prompt: str) -> tuple[str, ...]:
        request = GenerationRequest(
            request_id=f"golden-{key[1]}-{next(self._numbers)}", prompt=prompt, sampling=_SAMPLING
        )
        pieces: list[str] = []
        async with aclosing(instance.generate(request)) as chunks:
            async for chunk in chunks:
                pieces.append(chunk.text)
        return tuple(pieces)


def agreement(reference: Answers, answers: Answers) -> float:
    """Share of the reference's text that comes again, each answer counted up to its first difference; 0–1.

    By characters: under load an engine hands over several tokens as one piece, and the same answer in other pieces is
    the same answer.
    """
    texts = [("".join(was), "".join(now)) for was, now in zip(reference, answers, strict=False)]
    total = sum(max(len(was), 1) for was, _ in texts)
    agreed = sum(max(len(was), 1) if was == now else _common(was, now) for was, now in texts)
    return agreed / total if total else 1.0


def _common(was: str, now: str) -> int:
    for index, (a, b) in enumerate(zip(was, now, strict=False)):
        if a != b:
            return index
    return min(len(was), len(now))


def _shown(answers: Answers) -> str:
    return repr(["".join(pieces) for pieces in answers])
