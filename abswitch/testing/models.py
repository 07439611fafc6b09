"""Tiny models of known quality, trained on the spot: nothing is downloaded, and the truth about them is known.

A set is trained once per recipe, by a process of its own (`trainer`), and kept in a cache folder named by the recipe's
hash. The folders are ordinary Hugging Face folders, so what loads them loads any model.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from abswitch.cached import cache_root, cached_folder, manifest_of
from abswitch.errors import InvalidInput, MissingExtra, TrainingFailed
from abswitch.testing.recipes import Recipe, recipe_for
from abswitch.testing.tasks import Task, task_named

MODELS = ("baseline", "better", "regressed")
ADAPTER = "adapter"

_NEEDED = ("torch", "transformers", "peft")
_ERROR_CHARACTERS = 2000

Progress = Callable[[str, float], None]
"""Called with what happens now, in words, and the share of the work done, 0–1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModels:
    """Three checkpoints and an adapter that answer one task, each with a known share of right answers.

    Attributes:
        baseline, better: two moments of one training run.
        regressed: `better` after a careless fine-tune on the easiest problems; worse than `baseline`.
        adapter: a LoRA adapter in PEFT's format that improves `baseline`.
        task: draws problems with their answers.
        accuracy: share of right answers 0–1, by name (`baseline`, `better`, `regressed`, `adapter`), greedy decoding,
            measured at training time on every problem of the held-out split.
        recipe_digest: SHA-256 of the recipe.
    """

    baseline: Path
    better: Path
    regressed: Path
    adapter: Path
    task: Task
    accuracy: Mapping[str, float]
    recipe_digest: str


def tiny_models(
    task: str = "addition", *, cache_dir: str | Path | None = None, progress: Progress | None = None
) -> TinyModels:
    """Train the models of a task (about half a minute on one core), or return them from the cache (milliseconds).

    Several processes may ask at once: one trains, the others wait for it. A training that is killed leaves nothing.

    Args:
        task: `addition` (two 2-digit numbers) or `sorting` (five letters).
        cache_dir: where sets are kept; by default `$ABSWITCH_CACHE_DIR`, or else `~/.cache/abswitch`.
        progress: called now and then while it trains; not called when the set is there already.

    Raises:
        InvalidInput: an unknown task, a `cache_dir` that cannot be written, or a `progress` that cannot be called.
        MissingExtra: torch, transformers or peft is not installed.
        TrainingFailed: training broke, or did not come to the quality the recipe promises.
    """
    recipe = recipe_for(task)
    if progress is not None and not callable(progress):
        raise InvalidInput("progress", progress, "a function of (words, share done), or None")
    entry = cache_root(cache_dir) / "tiny-models" / f"{recipe.task}-{recipe.digest[:16]}"
    manifest = manifest_of(entry) or _made(recipe, entry, progress or _silent)
    return TinyModels(
        **{name: entry / name for name in (*MODELS, ADAPTER)},
        task=task_named(task),
        accuracy=MappingProxyType(dict(manifest["accuracy"])),
        recipe_digest=recipe.digest,
    )


def _made(recipe: Recipe, entry: Path, progress: Progress) -> Mapping[str, Any]:
    _require_extras()
    return cached_folder(
        entry,
        lambda folder: _train(recipe, folder, entry, progress),
        lambda: progress("waiting for another process that trains the same models", 0.0),
    )


def _require_extras() -> None:
    missing = tuple(name for name in _NEEDED if importlib.util.find_spec(name) is None)
    if missing:
        raise MissingExtra("training the tiny models", missing, ("cpu", "gpu"))


def _train(recipe: Recipe, folder: Path, served_from: Path, progress: Progress) -> Mapping[str, Any]:
    command = [sys.executable, "-P", "-m", "abswitch.testing.trainer", recipe.to_json(), str(folder), str(served_from)]
    with (
        tempfile.TemporaryFile("w+", errors="replace") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=_environment(), text=True
        ) as trainer,
    ):
        try:
            outcome = _followed(trainer, progress)
        finally:
            trainer.kill()  # harmless when it has ended; needed when the caller was interrupted or `progress` raised
        if "accuracy" not in outcome:
            reason = outcome.get("missed") or _last_words(errors)
            raise TrainingFailed(f"the {recipe.task} models could not be trained: {reason}")
    return {"recipe": json.loads(recipe.to_json()), "accuracy": outcome["accuracy"]}


def _followed(trainer: subprocess.Popen[str], progress: Progress) -> Mapping[str, Any]:
    """Pass the trainer's reports on until it ends; returns its last line, or nothing if it died without one."""
    outcome: dict[str, Any] = {}
    for line in trainer.stdout or ():
        if not line.endswith("\n"):
            break  # it died in the middle of a word
        said = json.loads(line)
        if "stage" in said:
            progress(said["stage"], said["fraction"])
        else:
            outcome = said
    return outcome if trainer.wait() == 0 else {}


def _environment() -> dict[str, str]:
    """The trainer's: this very package importable, one thread, no accelerator, no network, no chatter."""
    package_root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), package_root)))
    fixed = {
        "PYTHONPATH": path,
        "CUDA_VISIBLE_DEVICES": "",
        "HIP_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONHASHSEED": "0",
    }
    return {**os.environ, **fixed}


def _last_words(errors: IO[str]) -> str:
    errors.seek(0)
    return errors.read()[-_ERROR_CHARACTERS:].strip() or "the training process was killed"


def _silent(stage: str, fraction: float) -> None:
    """Report to nobody."""
