"""The failures: what was seen elsewhere, as a literal change of the code, and the tests that must notice it."""

from __future__ import annotations

from typing import NamedTuple


class Plant(NamedTuple):
    """One failure. `old` occurs exactly once in `file`, and `new` takes its place.

    Attributes:
        tests: the test files that must fail, separated by blanks.
        seen: a public thread that describes it, as `owner/project/issues/number` or `…/pull/number`; empty where none
            is known.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str
    seen: str = ""

    @property
    def row(self) -> str:
        """Its line of the table in `docs/peer-failures.md`."""
        tests = ", ".join(f"`{test.rpartition('/')[2]}`" for test in self.tests.split())
        return f"| {self.name} | `{self.file}` | {tests} | {self.source} |"

    @property
    def source(self) -> str:
        """Where it was seen, as a link; a dash where no thread is known."""
        if not self.seen:
            return "–"
        owner, project, _, number = self.seen.split("/")
        return f"[{owner}/{project} #{number}](https://github.com/{self.seen})"


ROLLOUT, SERVING, STORE, STATS = "tests/rollout/", "tests/serving/", "tests/store/", "tests/stats/"

PLANTS = (
    # --- deciding without evidence
    Plant("no data counts as success", "rollout/judging.py",
          'return Judgement(ruling=Ruling.HOLD, reason=f"{name}: {count} of {self.min_requests} needed observations")',
          'return Judgement(ruling=Ruling.ADVANCE, reason=f"{name}: {count} of {self.min_requests}")',
          ROLLOUT + "test_judging.py",
          "spinnaker/kayenta/issues/700"),
    Plant("a NaN passes, as it is not above any limit", "rollout/judging.py",
          "        if not math.isfinite(value):\n", "        if False:\n", ROLLOUT + "test_judging.py",
          "fluxcd/flagger/pull/1095"),
    Plant("an empty arm has an error rate of 0", "rollout/judging.py",
          "return self.errors / self.requests if self.requests else math.nan",
          "return self.errors / self.requests if self.requests else 0.0", ROLLOUT + "test_judging.py",
          "fluxcd/flagger/issues/1098"),
    Plant("no limit of the stable version means no limit", "rollout/judging.py",
          "            if not math.isfinite(limit):\n", "            if not math.isfinite(limit) and False:\n",
          ROLLOUT + "test_judging.py",
          "spinnaker/kayenta/issues/377"),
    Plant("terminating without a measurement counts as success", "rollout/machine.py",
          'return _back(op, ending, f"its longest duration is over; the last word was: {op.reason}")',
          'return _promote(op, op.candidate, "its longest duration is over")', ROLLOUT + "test_machine.py",
          "argoproj/argo-rollouts/issues/1329"),
    Plant("a test whose time is over promotes its candidate", "rollout/machine.py",
          'return _back(op, P.SUCCEEDED, "the test\'s time is over; the stable version is kept")',
          "return _promote(op, winner, reason)", ROLLOUT + "test_machine.py",
          "argoproj/argo-rollouts/pull/3873"),
    Plant("a judge that failed lets the step pass", "serving/effects.py",
          "judgement = Judgement(ruling=Ruling.HOLD, reason=reason)",
          "judgement = Judgement(ruling=Ruling.ADVANCE, reason=reason)", SERVING + "test_strategies_served.py",
          "argoproj/argo-rollouts/issues/4479"),
    # --- the life of a switch
    Plant("abort is ignored once it promotes", "rollout/machine.py",
          """        DeadlineElapsed: frozenset({P.PROMOTING}),
        CandidateLost: frozenset({P.ROLLING_BACK}),
        Breached: frozenset({P.ROLLING_BACK}),
        Abort: frozenset({P.ROLLING_BACK}),
""",
          """        DeadlineElapsed: frozenset({P.PROMOTING}),
        CandidateLost: frozenset({P.ROLLING_BACK}),
        Breached: frozenset({P.ROLLING_BACK}),
        Abort: frozenset({P.PROMOTING}),
""", ROLLOUT + "test_machine.py",
          "argoproj/argo-rollouts/issues/4461"),
    Plant("late answers of an earlier phase are taken for answers of this one", "rollout/machine.py",
          "event.epoch != operation.epoch", "False and event.epoch != operation.epoch", ROLLOUT + "test_machine.py",
          "fluxcd/flagger/issues/30"),
    Plant("two operations hold one model", "serving/switcher.py",
          "        if holder is not None:\n", "        if False:\n", SERVING + "test_switcher.py",
          "fluxcd/flagger/pull/28"),
    Plant("a move goes on although it could not be written down", "serving/switcher.py",
          "            if after.phase not in _SAFE:\n", "            if False:\n", SERVING + "test_switcher.py",
          "ray-project/ray/pull/26797"),
    Plant("an interrupted switch resumes by itself after a crash", "rollout/recovery.py",
          "        phase=Phase.PAUSED,\n", "        phase=Phase.EVALUATING,\n", ROLLOUT + "test_recovery.py",
          "ray-project/ray/pull/66290"),
    Plant("a crash leaves the candidate's share in force", "rollout/recovery.py",
          "        share=0.0,\n", "        share=operation.share,\n", ROLLOUT + "test_recovery.py"),
    # --- assignment
    Plant("hashes of similar experiment names are correlated", "rollout/assignment.py",
          'return int.from_bytes(hashed.digest(), "big") * _SCALE',
          'return int.from_bytes(blake2b(unit_id.encode(), digest_size=8).digest(), "big") * _SCALE',
          ROLLOUT + "test_assignment.py",
          "togglz/togglz/issues/104"),
    Plant("weights are silently normalised", "rollout/strategies.py",
          "    if sum(share for _, share in arms) > 100.0 + _EXACT:\n", "    if False:\n",
          ROLLOUT + "test_strategies.py",
          "istio/istio/pull/39544"),
    Plant("a ramp may go down again", "rollout/strategies.py",
          "any(b <= a for a, b in pairwise(shares))", "False", ROLLOUT + "test_strategies.py",
          "Eppo-exp/eppo-docs/pull/672"),
    # --- requests
    Plant("the in-flight count is not given back on an exception", "serving/dispatch.py",
          """        finally:
            self._transitions.release(lease)
""",
          """        finally:
            if error is None:
                self._transitions.release(lease)
""", SERVING + "test_switcher.py " + SERVING + "test_revival.py " + SERVING + "test_strategies_served.py",
          "Lightning-AI/LitServe/issues/747"),
    Plant("a broken stream is quietly continued by another version", "serving/dispatch.py",
          "        if submission.last is not None:\n", "        if False:\n", SERVING + "test_revival.py",
          "BerriAI/litellm/issues/31067"),
    Plant("an answer of another version counts for the assigned one", "serving/dispatch.py",
          "        submission.fallback = True  #", "        submission.fallback = False  #",
          SERVING + "test_switcher.py " + SERVING + "test_revival.py",
          "BerriAI/litellm/issues/28241"),
    Plant("the queue has no end", "serving/queueing.py",
          "        if self._waiting[model_id] >= self._max_waiting:\n", "        if False:\n",
          SERVING + "test_queueing.py",
          "vllm-project/vllm/issues/18826"),
    Plant("a drain does not wait", "serving/transition.py",
          "        if self._held[key]:\n", "        if False:\n", SERVING + "test_transition.py",
          "vllm-project/vllm/pull/34730"),
    Plant("a caller who hangs up is answered to the end", "serving/openai.py",
          "                await stream.close()\n", "                pass\n", SERVING + "test_openai.py",
          "xorbitsai/inference/pull/5549"),
    # --- instances and memory
    Plant("traffic to a candidate that generated nothing", "serving/readiness.py",
          "            if not await self._first_token(version, cached.instance):\n", "            if False:\n",
          SERVING + "test_readiness.py",
          "SeldonIO/MLServer/issues/2056"),
    Plant("what was proven once counts for every later load", "serving/readiness.py",
          "return cached if cached is not None and self._shown.get(key) is cached else None",
          "return cached if cached is not None and key in self._shown else None", SERVING + "test_readiness.py",
          "triton-inference-server/server/issues/7588"),
    Plant("a wake that returns garbage is believed", "serving/golden.py",
          "        if agreed < MIN_AGREEMENT:\n", "        if False:\n", SERVING + "test_readiness.py",
          "vllm-project/vllm/issues/29341"),
    Plant("evicted although requests are on it", "serving/cache.py",
          "protected=key in self._loading or bool(self._pins[key]) or self._in_use(key),",
          "protected=key in self._loading or bool(self._pins[key]),", SERVING + "test_cache.py",
          "lmstudio-ai/lmstudio-bug-tracker/issues/1796"),
    Plant("ten requests for a cold version start ten loads", "serving/cache.py",
          "        task = self._loading.get(key)\n", "        task = None\n", SERVING + "test_switcher.py",
          "triton-inference-server/server/issues/7018"),
    Plant("a caller who leaves ends the load for the others", "serving/cache.py",
          "return await asyncio.shield(task)", "return await task", SERVING + "test_switcher.py",
          "ollama/ollama/issues/8398"),
    Plant("a version that dies at every start is started for ever", "serving/backoff.py",
          "        if tried >= self.policy.max_restarts:\n", "        if False:\n", SERVING + "test_revival.py",
          "ray-project/ray/issues/31121"),
    Plant("engines outlive the process that started them", "serving/reaper.py",
          "    for patience_s in (0.3, 1.0, 0.0):\n", "    for patience_s in ():\n", SERVING + "test_reaper.py",
          "vllm-project/vllm/issues/55510"),
    Plant("memory of one engine is counted for each of its adapters", "serving/policy.py",
          "        engines[one.engine] = Footprint(", "        engines[one.key] = Footprint(",
          SERVING + "test_policy.py"),
    Plant("stale weights after an edit of the same size", "serving/weights.py",
          "                digest.update(chunk)\n", "                pass\n", SERVING + "test_weights.py",
          "Layr-Labs/d-inference/pull/297"),
    Plant("weights are swapped where the output layer keeps the old ones", "serving/vllm_swap.py",
          '    if configs[1].get("tie_word_embeddings") and not can_tie:\n', "    if False:\n",
          SERVING + "test_vllm_swap.py",
          "vllm-project/vllm/pull/51665"),
    Plant("a hung engine passes its health check", "serving/watchdog.py",
          "            if now_s - watch.asked_s >= self._hang_after_s:\n", "            if False:\n",
          SERVING + "test_health.py",
          "vllm-project/vllm/pull/45453"),
    Plant("an alert rings at every look", "serving/alerts.py",
          "            if known.is_active:\n                return self._again(known, told, now_s)\n", "",
          SERVING + "test_alerts.py",
          "fluxcd/notification-controller/issues/445"),
    # --- evidence
    Plant("a damaged journal is believed", "store/journal.py",
          "        if int(checksum, 16) != zlib.crc32(text):\n", "        if False:\n", STORE + "test_journal.py",
          "memgraph/memgraph/issues/4216"),
    Plant("the journal is not on the disk when the switch goes on", "store/journal.py",
          '                os.fdatasync(self._file) if hasattr(os, "fdatasync") else os.fsync(self._file)\n',
          "", STORE + "test_journal.py",
          "ClickHouse/ClickHouse/issues/111348"),
    Plant("what could not be redacted is stored as it was", "store/redaction.py",
          "            return None\n        return kept\n", "            return text\n        return kept\n",
          STORE + "test_redaction.py",
          "open-metadata/OpenMetadata/issues/19680"),
    Plant("a split that is off is not noticed", "stats/srm.py",
          "mismatch=p_value < alpha,", "mismatch=False,", STATS + "test_srm.py",
          "bucketeer-io/bucketeer/issues/2654"),
    Plant("a plan changed after the first exposure is judged all the same", "stats/rules.py",
          "    if stored == given:\n        return None\n", "    return None\n", STATS + "test_verdict.py",
          "PostHog/posthog/pull/13377"),
    Plant("a test is decided before all its units were seen", "stats/rules.py",
          "    if missing <= 0:\n", "    if True:\n", STATS + "test_verdict.py",
          "assaf/vanity/issues/150"),
    Plant("a unit seen in both arms counts in both", "stats/rules.py",
          'were seen in both arms.") if crossed else None', 'were seen in both arms.") if crossed < 0 else None',
          STATS + "test_verdict.py",
          "PostHog/posthog/pull/29336"),
    Plant("lost rows do not matter", "stats/rules.py",
          'could not be written.") if dropped else None', 'could not be written.") if dropped < 0 else None',
          STATS + "test_verdict.py",
          "comet-ml/opik/pull/7513"),
    Plant("an unreadable variable falls back to the default", "settings/sources.py",
          '        raise InvalidInput(name, shown, described.kind.words) from None\n', "        return None\n",
          "tests/test_settings.py",
          "open-feature/java-sdk-contrib/pull/1851"),
)  # fmt: skip
