"""Alerts to a real HTTP server here: the form, the signature, retries, and a receiver that is slow or dead."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from abswitch.clock import VirtualClock
from abswitch.errors import InvalidInput
from abswitch.serving.alertdesk import AlertDesk
from abswitch.serving.alerts import Alert, AlertState, Severity
from abswitch.serving.findings import HealthState
from abswitch.serving.sinks import WAITING, Outlet
from abswitch.serving.webhook import SIGNATURE_HEADER, WebhookFailed, WebhookSink, body, signature, verify
from tests.patience import PATIENCE_S

SECRET = "hush"
NOW_S = 1_700_000_000.0


class Receiver:
    """An HTTP server that answers with the codes it is given, then 200."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.location: str | None = None
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.hold = threading.Event()
        self.hold.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.received.append((dict(self.headers), content))
                receiver.hold.wait(30)
                self.send_response(receiver.codes.pop(0) if receiver.codes else 200)
                if receiver.location is not None:
                    self.send_header("Location", receiver.location)
                self.end_headers()

            def do_GET(self) -> None:
                receiver.received.append((dict(self.headers), b"nothing"))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/alerts"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.hold.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def alert(**fields: object) -> Alert:
    given = {
        "alert_id": "alert-1",
        "metric": "error_rate",
        "severity": Severity.CRITICAL,
        "state": AlertState.FIRING,
        "message": "7 of 20 requests failed",
        "model_id": "bot",
        "version": "v2",
        "value": 0.35,
        "threshold": 0.1,
        "started_at_s": NOW_S,
        "changed_at_s": NOW_S,
    } | fields
    return Alert(**given)  # type: ignore[arg-type]


def sink(url: str, **arguments: object) -> WebhookSink:
    return WebhookSink(url, **({"backoff_s": 0.001} | arguments))  # type: ignore[arg-type]


def test_the_body_is_alertmanagers(receiver: Receiver) -> None:
    sink(receiver.url).send(alert())
    headers, content = receiver.received[0]
    assert headers["Content-Type"] == "application/json"
    assert SIGNATURE_HEADER not in headers
    told = json.loads(content)
    assert told == body(alert())
    assert {"version", "groupKey", "status", "receiver", "groupLabels", "commonLabels", "commonAnnotations"} <= set(
        told
    )
    (one,) = told["alerts"]
    assert one["status"] == "firing"
    assert one["labels"] == {"alertname": "error_rate", "severity": "critical", "model_id": "bot", "version": "v2"}
    assert one["annotations"]["value"] == "0.35"
    assert (one["startsAt"], one["endsAt"]) == ("2023-11-14T22:13:20Z", "0001-01-01T00:00:00Z")
    over = body(alert(state=AlertState.RESOLVED, resolved_at_s=NOW_S + 60, reason="fine"))
    assert (over["status"], over["alerts"][0]["endsAt"]) == ("resolved", "2023-11-14T22:14:20Z")
    assert body(alert(state=AlertState.ACKNOWLEDGED))["status"] == "firing"


def test_the_signature_is_genuine_and_recent(receiver: Receiver) -> None:
    clock = VirtualClock(wall_s=NOW_S)
    sink(receiver.url, secret=SECRET, clock=clock).send(alert())
    headers, content = receiver.received[0]
    header = headers[SIGNATURE_HEADER]
    assert verify(SECRET, content, header, now_s=NOW_S + 10)
    assert not verify(SECRET, content, header, now_s=NOW_S + 301)
    assert not verify(SECRET, content + b" ", header, now_s=NOW_S)
    assert not verify("other", content, header, now_s=NOW_S)
    assert not verify(SECRET, content, header.replace("t=1", "t=2"), now_s=NOW_S)
    for nonsense in ("", "t=,v1=", "v1=abc", "t=1700000000", "t=1700000000,v1=é"):
        assert not verify(SECRET, content, nonsense, now_s=NOW_S)


def test_the_signature_is_what_the_page_says() -> None:
    # hmac.new(b"hush", b"1700000000.{}", "sha256").hexdigest()
    assert signature(SECRET, b"{}", NOW_S).startswith("t=1700000000,v1=")
    assert len(signature(SECRET, b"{}", NOW_S).partition("v1=")[2]) == 64


@pytest.mark.parametrize("codes", [[500], [503, 429], [502, 500, 408]])
def test_what_may_pass_is_tried_again(receiver: Receiver, codes: list[int]) -> None:
    receiver.codes = list(codes)
    sink(receiver.url).send(alert())
    assert len(receiver.received) == len(codes) + 1
    assert len({content for _, content in receiver.received}) == 1


def test_attempts_are_bounded(receiver: Receiver) -> None:
    receiver.codes = [500] * 9
    with pytest.raises(WebhookFailed, match=r"HTTP 500 \(3 attempt"):
        sink(receiver.url, attempts=3).send(alert())
    assert len(receiver.received) == 3


def test_a_refusal_is_final(receiver: Receiver) -> None:
    receiver.codes = [403]
    with pytest.raises(WebhookFailed, match=r"HTTP 403 \(1 attempt"):
        sink(receiver.url).send(alert())


@pytest.mark.parametrize("code", [300, 301, 302, 303, 304, 307, 308])
def test_a_redirect_is_no_delivery(receiver: Receiver, code: int) -> None:
    receiver.codes, receiver.location = [code], "/moved"
    with pytest.raises(WebhookFailed, match=rf"HTTP {code}, a redirect to http://127.0.0.1:\d+; .* \(1 attempt"):
        sink(receiver.url, secret=SECRET).send(alert())
    assert [content for _, content in receiver.received] == [json.dumps(body(alert())).encode()]


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("https://mia:pass@hooks.example.org/T1/token?key=t#f", "a redirect to https://hooks.example.org; "),
        ("//hooks.example.org:8443/token", "a redirect to http://hooks.example.org:8443; "),
        ("http://[::1", "a redirect to another address; "),
        ("http://h:port/token", "a redirect to another address; "),
        (None, "HTTP 302 (1 attempt"),
    ],
)
def test_of_a_redirect_the_host_is_told_and_nothing_secret(receiver: Receiver, location: str | None, told: str) -> None:
    receiver.codes, receiver.location = [302], location
    with pytest.raises(WebhookFailed) as failed:
        sink(receiver.url).send(alert())
    assert told in str(failed.value)
    assert not {"mia", "pass", "token", "key"} & set(re.split(r"\W", str(failed.value)))


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(WebhookFailed, match="refused"):
        sink(f"http://127.0.0.1:{port}", attempts=2).send(alert())


def test_a_receiver_that_does_not_answer(receiver: Receiver) -> None:
    receiver.hold.clear()
    with pytest.raises(WebhookFailed, match="timed out"):
        sink(receiver.url, timeout_s=0.1, attempts=2).send(alert())


def test_a_slow_receiver_blocks_nobody_and_drops_the_oldest(receiver: Receiver) -> None:
    receiver.hold.clear()
    desk = AlertDesk(VirtualClock(), cooldown_s=0.0, history=5000)
    desk.add_sink(sink(receiver.url))
    quick: list[str] = []
    everything = threading.Event()
    total = WAITING + 50

    def note(told: Alert) -> None:
        quick.append(told.alert_id)
        if len(quick) == total:
            everything.set()

    desk.add_sink(note)
    began_s = time.perf_counter()
    for number in range(total):
        if number % 100 == 99:  # the quick one keeps up
            while len(quick) < number:
                threading.Event().wait(0.001)
        desk.fire("hung", HealthState.CRITICAL, "it hangs", key=("bot", f"v{number}"), operation=None)
    assert time.perf_counter() - began_s < 20.0
    assert everything.wait(PATIENCE_S), "another sink has its own thread"
    slow, other = desk.outlets
    assert slow.dropped >= total - WAITING - 2
    assert other.dropped == 0
    assert len(receiver.received) == 1


def test_closing_does_not_wait_for_a_dead_receiver(receiver: Receiver) -> None:
    receiver.codes = [500] * 100
    outlet = Outlet(WebhookSink(receiver.url, backoff_s=60.0))
    outlet.put(alert())
    while not receiver.received:
        threading.Event().wait(0.001)
    began_s = time.perf_counter()
    outlet.close(50.0)
    assert time.perf_counter() - began_s < 20.0
    outlet.put(alert())
    assert len(receiver.received) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"url": "ftp://x"},
        {"url": 3},
        {"url": "http://[::1"},
        {"url": "http://x:99999"},
        {"url": "http://x:port"},
        {"url": "http://"},
        {"url": "http://x/a b"},
        {"url": "http://mia:pw@x/"},
        {"url": "http://x", "attempts": 0},
        {"url": "http://x", "timeout_s": 0},
        {"url": "http://x", "secret": ""},
        {"url": "http://x", "secret": 5},
    ],
    ids=str,
)
def test_bad_arguments(arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        WebhookSink(**arguments)  # type: ignore[arg-type]


def test_a_secret_that_is_none_is_not_repeated() -> None:
    with pytest.raises(InvalidInput) as refused:
        WebhookSink("http://x", secret=31337)  # type: ignore[arg-type]
    assert "31337" not in str(refused.value)


@pytest.mark.parametrize("header", [None, "", "garbage", "t=x,v1=00", 5])
def test_a_request_without_a_signature_is_not_genuine(header: str | None) -> None:
    assert not verify(SECRET, b"{}", header)
