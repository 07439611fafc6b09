"""The failures: what was seen elsewhere, as a literal change of the code, and the test that must notice it."""

from __future__ import annotations

from typing import NamedTuple


class Plant(NamedTuple):
    """One failure. `old` occurs exactly once in `file`, and `new` takes its place.

    Attributes:
        test: the test that must fail, as `file::name`; the quickest and most telling of those that do.
        seen: a public thread that describes it, as `owner/project/issues/number` or `…/pull/number`; empty where none
            is known.
    """

    name: str
    file: str
    old: str
    new: str
    test: str
    seen: str = ""

    @property
    def row(self) -> str:
        """Its line of the table in `docs/peer-failures.md`."""
        return f"| {self.name} | `{self.file}` | `{self.test.rpartition('/')[2]}` | {self.source} |"

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
          ROLLOUT + "test_judging.py::test_error_rate_with_minimum_evidence",
          "spinnaker/kayenta/issues/700"),
    Plant("a NaN passes, as it is not above any limit", "rollout/judging.py",
          "        if not math.isfinite(value):\n", "        if False:\n",
          ROLLOUT + "test_judging.py::test_guardrails",
          "fluxcd/flagger/pull/1095"),
    Plant("an empty arm has an error rate of 0", "rollout/judging.py",
          "return self.errors / self.requests if self.requests else math.nan",
          "return self.errors / self.requests if self.requests else 0.0",
          ROLLOUT + "test_judging.py::test_an_arm_without_requests_has_no_error_rate",
          "fluxcd/flagger/issues/1098"),
    Plant("no limit of the stable version means no limit", "rollout/judging.py",
          "            if not math.isfinite(limit):\n", "            if not math.isfinite(limit) and False:\n",
          ROLLOUT + "test_judging.py::test_a_limit_relative_to_a_stable_version_without_data_holds",
          "spinnaker/kayenta/issues/377"),
    Plant("terminating without a measurement counts as success", "rollout/machine.py",
          'return _back(op, ending, f"its longest duration is over; the last word was: {op.reason}")',
          'return _promote(op, op.candidate, "its longest duration is over")',
          ROLLOUT + "test_machine.py::test_a_canary_that_is_held_is_judged_again_and_never_promoted_by_the_clock",
          "argoproj/argo-rollouts/issues/1329"),
    Plant("a test whose time is over promotes its candidate", "rollout/machine.py",
          'return _back(op, P.SUCCEEDED, "the test\'s time is over; the stable version is kept")',
          "return _promote(op, winner, reason)",
          ROLLOUT + "test_machine.py::test_an_ab_test_that_runs_out_of_time_keeps_the_stable_version",
          "argoproj/argo-rollouts/pull/3873"),
    Plant("a judge that failed lets the step pass", "serving/effects.py",
          "judgement = Judgement(ruling=Ruling.HOLD, reason=reason)",
          "judgement = Judgement(ruling=Ruling.ADVANCE, reason=reason)",
          SERVING + "test_strategies_served.py::test_a_judge_that_fails_never_promotes",
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
""",
          ROLLOUT + "test_machine.py::test_abort_wins_in_every_phase_that_is_not_final",
          "argoproj/argo-rollouts/issues/4461"),
    Plant("late answers of an earlier phase are taken for answers of this one", "rollout/machine.py",
          "event.epoch != operation.epoch", "False and event.epoch != operation.epoch",
          ROLLOUT + "test_machine.py::test_what_comes_from_an_earlier_epoch_is_dropped_wherever_the_operation_is",
          "fluxcd/flagger/issues/30"),
    Plant("two operations hold one model", "serving/switcher.py",
          "        if holder is not None:\n", "        if False:\n",
          SERVING + "test_switcher.py::test_one_operation_per_model",
          "fluxcd/flagger/pull/28"),
    Plant("a move goes on although it could not be written down", "serving/switcher.py",
          "            if after.phase not in _SAFE:\n", "            if False:\n",
          SERVING + "test_switcher.py::test_a_move_that_could_not_be_written_down_is_made_up_for",
          "ray-project/ray/pull/26797"),
    Plant("an interrupted switch resumes by itself after a crash", "rollout/recovery.py",
          "        phase=Phase.PAUSED,\n", "        phase=Phase.EVALUATING,\n",
          ROLLOUT + "test_recovery.py::test_what_wanted_a_decision_is_paused_with_the_stable_version_serving",
          "ray-project/ray/pull/66290"),
    Plant("a crash leaves the candidate's share in force", "rollout/recovery.py",
          "        share=0.0,\n", "        share=operation.share,\n",
          ROLLOUT + "test_recovery.py::test_what_wanted_a_decision_is_paused_with_the_stable_version_serving"),
    # --- assignment
    Plant("hashes of similar experiment names are correlated", "rollout/assignment.py",
          'return int.from_bytes(hashed.digest(), "big") * _SCALE',
          'return int.from_bytes(blake2b(unit_id.encode(), digest_size=8).digest(), "big") * _SCALE',
          ROLLOUT + "test_assignment.py::test_similar_salts_give_unrelated_assignments",
          "togglz/togglz/issues/104"),
    Plant("weights are silently normalised", "rollout/strategies.py",
          "    if sum(share for _, share in arms) > 100.0 + _EXACT:\n", "    if False:\n",
          ROLLOUT + "test_strategies.py::test_arms_that_make_no_sense_are_refused",
          "istio/istio/pull/39544"),
    Plant("a ramp may go down again", "rollout/strategies.py",
          "any(b <= a for a, b in pairwise(shares))", "False",
          ROLLOUT + "test_strategies.py::test_a_ramp_that_makes_no_sense_is_refused",
          "Eppo-exp/eppo-docs/pull/672"),
    # --- requests
    Plant("the in-flight count is not given back on an exception", "serving/dispatch.py",
          """        finally:
            self._transitions.release(lease)
""",
          """        finally:
            if error is None:
                self._transitions.release(lease)
""",
          SERVING + "test_switcher.py::test_leaving_a_stream_early_releases_its_lease_and_leaves_a_row",
          "Lightning-AI/LitServe/issues/747"),
    Plant("a broken stream is quietly continued by another version", "serving/dispatch.py",
          "        if submission.last is not None:\n", "        if False:\n",
          SERVING + "test_revival.py::test_a_started_answer_ends_in_an_error_and_is_not_repeated",
          "BerriAI/litellm/issues/31067"),
    Plant("an answer of another version counts for the assigned one", "serving/dispatch.py",
          "        submission.fallback = True  #", "        submission.fallback = False  #",
          SERVING + "test_switcher.py::test_a_candidate_that_dies_under_traffic_is_rolled_back_and_nobody_notices",
          "BerriAI/litellm/issues/28241"),
    Plant("the queue has no end", "serving/queueing.py",
          "        if self._waiting[model_id] >= self._max_waiting:\n", "        if False:\n",
          SERVING + "test_queueing.py::test_the_queue_is_bounded_and_says_so",
          "vllm-project/vllm/issues/18826"),
    Plant("a drain does not wait", "serving/transition.py",
          "        if self._held[key]:\n", "        if False:\n",
          SERVING + "test_transition.py::test_a_drain_ends_with_the_last_holder_of_that_version",
          "vllm-project/vllm/pull/34730"),
    Plant("a caller who hangs up is answered to the end", "serving/openai.py",
          "                await stream.close()\n", "                pass\n",
          SERVING + "test_openai.py::test_closing_a_stream_hangs_up",
          "xorbitsai/inference/pull/5549"),
    # --- instances and memory
    Plant("traffic to a candidate that generated nothing", "serving/readiness.py",
          "            if not tokens:\n", "            if False:\n",
          SERVING + "test_readiness.py::test_what_did_not_show_it_is_unloaded",
          "SeldonIO/MLServer/issues/2056"),
    Plant("what was proven once counts for every later load", "serving/readiness.py",
          "return cached if cached is not None and self._shown.get(key) is cached else None",
          "return cached if cached is not None and key in self._shown else None",
          SERVING + "test_readiness.py::test_another_load_must_show_it_anew",
          "triton-inference-server/server/issues/7588"),
    Plant("a wake that returns garbage is believed", "serving/golden.py",
          "        if agreed < MIN_AGREEMENT:\n", "        if False:\n",
          SERVING + "test_readiness.py::test_a_version_that_comes_back_as_garbage_never_serves",
          "vllm-project/vllm/issues/29341"),
    Plant("evicted although requests are on it", "serving/cache.py",
          "protected=key in self._loading or bool(self._pins[key]) or self._in_use(key),",
          "protected=key in self._loading or bool(self._pins[key]),",
          SERVING + "test_cache.py::test_pinned_leased_and_loading_versions_stay",
          "lmstudio-ai/lmstudio-bug-tracker/issues/1796"),
    Plant("ten requests for a cold version start ten loads", "serving/cache.py",
          "        task = self._loading.get(key)\n", "        task = None\n",
          SERVING + "test_switcher.py::test_ten_requests_for_a_cold_version_start_one_load",
          "triton-inference-server/server/issues/7018"),
    Plant("a caller who leaves ends the load for the others", "serving/cache.py",
          "return await asyncio.shield(task)", "return await task",
          SERVING + "test_switcher.py::test_one_caller_that_gives_up_does_not_end_the_load_for_the_others",
          "ollama/ollama/issues/8398"),
    Plant("a version that dies at every start is started for ever", "serving/backoff.py",
          "        if tried >= self.policy.max_restarts:\n", "        if False:\n",
          SERVING + "test_revival.py::test_pauses_double_up_to_the_longest_and_old_restarts_are_forgotten",
          "ray-project/ray/issues/31121"),
    Plant("a way back that fails leaves the candidate its share", "rollout/machine.py",
          "        return failed, (Withdraw(), Unpin(op.candidates))\n",
          "        return failed, (Unpin(op.candidates),)\n",
          SERVING + "test_revival.py::test_where_nothing_can_be_brought_back_the_stable_version_keeps_all_traffic"),
    Plant("an aborted switch goes on loading its versions", "serving/effects.py",
          "        return self._current(operation.operation_id).epoch == operation.epoch\n", "        return True\n",
          SERVING + "test_switcher.py::test_an_abort_ends_the_bringing_back_of_versions_that_do_not_all_fit"),
    Plant("engines that work at the same time compute on the same cores", "serving/cores.py",
          "        if number == self.number:\n", "        if True:\n",
          SERVING + "test_cores.py::test_one_that_gets_work_beside_another_at_work_moves_to_idle_cores",
          "vllm-project/vllm/pull/27953"),
    Plant("engines outlive the process that started them", "serving/reaper.py",
          "    for patience_s in (0.3, 1.0, 0.0):\n", "    for patience_s in ():\n",
          SERVING + "test_reaper.py::test_the_supervisor_ends_engines_when_its_pipe_closes",
          "vllm-project/vllm/issues/55510"),
    Plant("memory of one engine is counted for each of its adapters", "serving/policy.py",
          "        engines[one.engine] = Footprint(", "        engines[one.key] = Footprint(",
          SERVING + "test_policy.py::test_versions_on_one_engine_are_counted_once_and_never_put_to_sleep_alone"),
    Plant("stale weights after an edit of the same size", "serving/weights.py",
          "                digest.update(chunk)\n", "                pass\n",
          SERVING + "test_weights.py::test_copies_are_equal_and_an_edit_is_seen",
          "Layr-Labs/d-inference/pull/297"),
    Plant("weights are swapped where the output layer keeps the old ones", "serving/vllm_swap.py",
          '    if configs[1].get("tie_word_embeddings") and not can_tie:\n', "    if False:\n",
          SERVING + "test_vllm_swap.py::test_what_a_reload_corrupts",
          "vllm-project/vllm/pull/51665"),
    Plant("a hung engine passes its health check", "serving/watchdog.py",
          "            if now_s - watch.asked_s >= self._hang_after_s:\n", "            if False:\n",
          SERVING + "test_health.py::test_an_idle_hung_engine_is_found_within_ten_seconds",
          "vllm-project/vllm/pull/45453"),
    Plant("an alert rings at every look", "serving/alerts.py",
          "            if known.is_active:\n                return self._again(known, told, now_s)\n", "",
          SERVING + "test_alerts.py::test_an_alert_is_told_once_however_often_it_is_seen",
          "fluxcd/notification-controller/issues/445"),
    # --- evidence
    Plant("a damaged journal is believed", "store/journal.py",
          "        if int(checksum, 16) != zlib.crc32(text):\n", "        if False:\n",
          STORE + "test_journal.py::test_damage_in_the_middle_is_told_and_the_file_is_kept",
          "memgraph/memgraph/issues/4216"),
    Plant("the journal is not on the disk when the switch goes on", "store/journal.py",
          '                os.fdatasync(self._file) if hasattr(os, "fdatasync") else os.fsync(self._file)\n',
          "",
          STORE + "test_journal.py::test_an_entry_is_on_the_disk_before_append_returns",
          "ClickHouse/ClickHouse/issues/111348"),
    Plant("what could not be redacted is stored as it was", "store/redaction.py",
          "            return None\n        return kept\n", "            return text\n        return kept\n",
          STORE + "test_redaction.py::test_a_failing_hook_stores_nothing_and_counts",
          "open-metadata/OpenMetadata/issues/19680"),
    Plant("a split that is off is not noticed", "stats/srm.py",
          "mismatch=p_value < alpha,", "mismatch=False,",
          STATS + "test_srm.py::test_a_mismatch_is_told",
          "bucketeer-io/bucketeer/issues/2654"),
    Plant("a plan changed after the first exposure is judged all the same", "stats/rules.py",
          "    if stored == given:\n        return None\n", "    return None\n",
          STATS + "test_verdict.py::test_a_plan_changed_after_the_first_exposure_is_caught",
          "PostHog/posthog/pull/13377"),
    Plant("a test is decided before all its units were seen", "stats/rules.py",
          "    if missing <= 0:\n", "    if True:\n",
          STATS + "test_verdict.py::test_an_early_look_decides_nothing_and_says_what_is_missing",
          "assaf/vanity/issues/150"),
    Plant("a unit seen in both arms counts in both", "stats/rules.py",
          'were seen in both arms.") if crossed else None', 'were seen in both arms.") if crossed < 0 else None',
          STATS + "test_verdict.py::test_what_voids_a_test_never_ships",
          "PostHog/posthog/pull/29336"),
    Plant("lost rows do not matter", "stats/rules.py",
          'could not be written.") if dropped else None', 'could not be written.") if dropped < 0 else None',
          STATS + "test_verdict.py::test_what_voids_a_test_never_ships",
          "comet-ml/opik/pull/7513"),
    Plant("an unreadable variable falls back to the default", "settings/sources.py",
          '        raise InvalidInput(name, shown, described.kind.words) from None\n', "        return None\n",
          "tests/test_settings.py::test_a_bad_variable_names_itself_and_what_is_allowed",
          "open-feature/java-sdk-contrib/pull/1851"),
)  # fmt: skip
