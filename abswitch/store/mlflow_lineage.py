"""What a run in MLflow came from, and single requests of it: data sets as inputs, templates in the registry of prompts,
sampled requests as traces.

Ids are made from the operation and the request, so that a job that is delivered again finds what it left.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Span, TraceInfo

_LONGEST_DIGEST = 36
_LONGEST_PREVIEW = 1000
_TOLD = ("version", "output_tokens", "first_token_s", "error")
_PLACE, _PLACE_THERE = "{prompt}", "{{prompt}}"
_DIGEST = "abswitch.digest"
_RUN, _NAME = "mlflow.sourceRun", "mlflow.traceName"


def log_dataset(client: MlflowClient, run_id: str, dataset: Mapping[str, Any]) -> None:
    """Note the prompts as the run's input; once more changes nothing.

    Args:
        dataset: see `TrackedDataset`.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    known = client.get_run(run_id).inputs.dataset_inputs
    digest = dataset["digest"][:_LONGEST_DIGEST]
    if any((one.dataset.name, one.dataset.digest) == (dataset["name"], digest) for one in known):
        return
    made = Dataset(
        name=dataset["name"],
        digest=digest,
        source_type="abswitch",
        source=json.dumps(dataset["source"]),
        profile=json.dumps({"prompts": dataset["rows"]}),
    )
    client.log_inputs(run_id, [DatasetInput(made, [InputTag("mlflow.data.context", "evaluation")])])


def link_template(client: MlflowClient, run_id: str, arm: Mapping[str, Any]) -> None:
    """Register the prompt template of an arm's version, each text once, and note it at the run.

    The name is the model's id and `-template`. A version without a template of its own has nothing to register.
    """
    template, model_id = arm["params"].get("prompt_template"), arm["params"].get("model_id")
    if template is None or model_id is None:
        return
    name = f"{re.sub(r'[^A-Za-z0-9_.-]', '-', model_id)}-template"
    number = _known_template(client, name, template) or _new_template(client, name, template)
    # MLflow's own function for this asks the store of the process's default address, which is another one.
    client.set_tag(run_id, "mlflow.linkedPrompts", json.dumps([{"name": name, "version": str(number)}]))


def _known_template(client: MlflowClient, name: str, template: str) -> str | None:
    query = f"name = '{name}' AND tags.`mlflow.prompt.is_prompt` = 'true' AND tags.`{_DIGEST}` = '{_digest(template)}'"
    found = client.search_model_versions(query)
    return str(min(int(one.version) for one in found)) if found else None


def _new_template(client: MlflowClient, name: str, template: str) -> str:
    made = client.register_prompt(
        name,
        template.replace(_PLACE, _PLACE_THERE),
        commit_message="prompt template of a model's version",
        tags={_DIGEST: _digest(template)},
    )
    return str(made.version)


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()


def log_traces(
    tracking_uri: str,
    experiment_id: str,
    operation_id: str,
    runs: Mapping[str, str],
    traces: Sequence[Mapping[str, Any]],
) -> None:
    """Keep requests as traces of their arms' runs; once more changes nothing.

    Args:
        runs: run id by arm.
        traces: see `TrackedTrace`.
    """
    from mlflow.tracing.client import TracingClient

    client = TracingClient(tracking_uri)
    for trace in traces:
        key = blake2b(f"{operation_id}/{trace['request_id']}".encode(), digest_size=16).digest()
        client.start_trace(_info(key, experiment_id, runs.get(trace["arm"]), trace))
        client.log_spans(experiment_id, list(_spans(key, trace)))


def _info(key: bytes, experiment_id: str, run_id: str | None, trace: Mapping[str, Any]) -> TraceInfo:
    from mlflow.entities import TraceInfo, TraceState
    from mlflow.entities.trace_location import TraceLocation

    tags = {_NAME: "generate", "abswitch.arm": trace["arm"], "abswitch.version": trace["version"]}
    tags |= {f"score.{name}": f"{value:g}" for name, value in trace["scores"].items()}
    return TraceInfo(
        trace_id=f"tr-{key.hex()}",
        trace_location=TraceLocation.from_experiment_id(experiment_id),
        request_time=round(trace["at_s"] * 1e3),
        execution_duration=round(trace["took_s"] * 1e3),
        state=TraceState.OK if trace["error"] is None else TraceState.ERROR,
        request_preview=None if trace["prompt"] is None else trace["prompt"][:_LONGEST_PREVIEW],
        response_preview=None if trace["output"] is None else trace["output"][:_LONGEST_PREVIEW],
        client_request_id=trace["request_id"],
        trace_metadata={} if run_id is None else {_RUN: run_id},
        tags=tags,
    )


def _spans(key: bytes, trace: Mapping[str, Any]) -> Iterator[Span]:
    """The whole request, and in it the wait for something that serves and the generation."""
    begin_s, end_s = trace["at_s"], trace["at_s"] + trace["took_s"]
    began_s = min(end_s, begin_s + trace["queue_s"])
    told = {name: trace[name] for name in _TOLD if trace[name] is not None}
    told |= {"mlflow.spanInputs": {"prompt": trace["prompt"]}, "mlflow.spanOutputs": {"text": trace["output"]}}
    yield _span(key, 0, ("request", "CHAIN"), (begin_s, end_s), told, trace["error"])
    if trace["queue_s"] > 0:
        yield _span(key, 1, ("queue", "UNKNOWN"), (begin_s, began_s), {}, None)
    yield _span(key, 2, ("generate", "LLM"), (began_s, end_s), told, trace["error"])


def _span(
    key: bytes,
    number: int,
    what: tuple[str, str],
    span_s: tuple[float, float],
    values: Mapping[str, Any],
    error: str | None,
) -> Span:
    """One span of a trace; `what` is its name and its type in MLflow's words."""
    from mlflow.entities import Span

    given = {"mlflow.traceRequestId": f"tr-{key.hex()}", "mlflow.spanType": what[1], **values}
    plain: dict[str, Any] = {
        "trace_id": b64encode(key).decode(),
        "span_id": _span_id(key, number),
        "parent_span_id": _span_id(key, 0) if number else "",
        "name": what[0],
        "start_time_unix_nano": round(span_s[0] * 1e9),
        "end_time_unix_nano": round(span_s[1] * 1e9),
        "events": [],
        "status": {"code": "STATUS_CODE_OK" if error is None else "STATUS_CODE_ERROR", "message": error or ""},
        "attributes": {name: json.dumps(value) for name, value in given.items()},
    }
    return Span.from_dict(plain)


def _span_id(key: bytes, number: int) -> str:
    return b64encode(bytes([key[0] | 1, *key[1:7], number])).decode()
