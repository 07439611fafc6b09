"""`WebhookSink`: alerts to an HTTP receiver, in the form of Alertmanager's webhook, signed, with bounded retries."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime
from http.client import HTTPException
from typing import Any
from urllib.parse import urljoin, urlsplit

from abswitch import addresses, checks
from abswitch.clock import Clock, SystemClock
from abswitch.errors import AbswitchError, InvalidInput
from abswitch.serving.alerts import Alert, AlertState

SIGNATURE_HEADER = "X-Abswitch-Signature"
_NEVER = "0001-01-01T00:00:00Z"  # what Alertmanager writes for an end that has not come
_TOLERANCE_S = 300.0
_RETRIED = frozenset({408, 425, 429})


class WebhookFailed(AbswitchError):
    """The receiver did not take an alert."""


class WebhookSink:
    """Posts each alert as JSON (Alertmanager's webhook, version 4).

    Args:
        url: http or https.
        secret: signs each body; see `verify`. None signs nothing.
        timeout_s: how long one attempt may wait for the receiver.
        attempts: tries per alert; after a connection error, a 5xx, 408, 425 or 429 comes another one.
        backoff_s: pause before the second attempt; each further one is twice as long.

    Raises:
        InvalidInput: a malformed argument.
    """

    def __init__(
        self,
        url: str,
        *,
        secret: str | None = None,
        timeout_s: float = 5.0,
        attempts: int = 4,
        backoff_s: float = 1.0,
        clock: Clock | None = None,
    ) -> None:
        self._url = addresses.web_address("url", url)
        if secret is not None and (not isinstance(secret, str) or not secret):
            raise InvalidInput("secret", "(hidden)", "a text that is not empty; None signs nothing")
        self._secret = secret
        self._timeout_s = checks.number("timeout_s", timeout_s, low=0.0, above=True)
        self._attempts = checks.integer("attempts", attempts, low=1)
        self._backoff_s = checks.number("backoff_s", backoff_s, low=0.0)
        self._clock = clock or SystemClock()
        self._closed = threading.Event()

    def send(self, alert: Alert) -> None:
        """Post it, trying again as allowed.

        Raises:
            WebhookFailed: the receiver refused it, or could not be reached in all attempts.
        """
        content = json.dumps(body(alert), allow_nan=False).encode()
        for attempt in range(1, self._attempts + 1):
            problem, again = self._post(content)
            if problem is None:
                return
            pause_s = self._backoff_s * 2.0 ** (attempt - 1)
            if not again or attempt == self._attempts or self._closed.wait(pause_s):
                raise WebhookFailed(f"{self._url}: {problem} ({attempt} attempt(s))")

    def _post(self, content: bytes) -> tuple[str | None, bool]:
        headers = {}
        if self._secret is not None:
            headers[SIGNATURE_HEADER] = signature(self._secret, content, self._clock.wall_s())
        return post(self._url, content, headers, timeout_s=self._timeout_s)

    def close(self) -> None:
        """End a pause between attempts."""
        self._closed.set()


def _opener() -> urllib.request.OpenerDirector:
    """The usual one, proxies included, but for redirects: a POST is sent on as a GET without its body, and all seems
    well though nothing arrived."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _leads_to(url: str, refused: urllib.error.HTTPError) -> str:
    """Of a redirect, the host that it leads to, in words; what else an address has may be secret."""
    location = refused.headers.get("Location")
    if not 300 <= refused.code < 400 or location is None:
        return ""
    try:
        to = urlsplit(urljoin(url, location))
        host = f"{to.scheme}://{to.hostname}" + ("" if to.port is None else f":{to.port}")
    except ValueError:  # no address
        host = "another address"
    return f", a redirect to {host}; alerts do not follow it: give the address that takes them itself"


def post(url: str, content: bytes, headers: Mapping[str, str], *, timeout_s: float) -> tuple[str | None, bool]:
    """Post JSON, once.

    A redirect is not followed, and is a failure.

    Returns:
        What went wrong, if anything, and whether another attempt could help.
    """
    sent = {"Content-Type": "application/json", "User-Agent": "abswitch", **headers}
    try:
        request = urllib.request.Request(url, content, sent, method="POST")
        with _opener().open(request, timeout=timeout_s):
            return None, False
    except urllib.error.HTTPError as refused:
        with refused:
            again = refused.code >= 500 or refused.code in _RETRIED
            return f"HTTP {refused.code}{_leads_to(url, refused)}", again
    except OSError as error:  # not reached, reset, timed out
        return str(getattr(error, "reason", error)) or type(error).__name__, True
    except (ValueError, HTTPException) as error:  # no address, or what answered speaks no HTTP
        return str(error) or type(error).__name__, False


def body(alert: Alert) -> dict[str, Any]:
    """The alert in the form that receivers of Alertmanager's webhook (version 4) read."""
    status = "resolved" if alert.state is AlertState.RESOLVED else "firing"
    labels = {
        "alertname": alert.metric,
        "severity": alert.severity.value,
        "model_id": alert.model_id,
        "version": alert.version,
        "operation_id": alert.operation_id,
    }
    annotations = {
        "summary": alert.message,
        "state": alert.state.value,
        "value": None if alert.value is None else f"{alert.value:g}",
        "threshold": None if alert.threshold is None else f"{alert.threshold:g}",
        "acknowledged_by": alert.acknowledged_by,
        "reason": alert.reason,
    }
    one = {
        "status": status,
        "labels": _given(labels),
        "annotations": _given(annotations),
        "startsAt": _instant(alert.started_at_s),
        "endsAt": _NEVER if alert.resolved_at_s is None else _instant(alert.resolved_at_s),
        "generatorURL": "",
        "fingerprint": alert.alert_id,
    }
    return {
        "version": "4",
        "groupKey": ":".join(part or "" for part in alert.key),
        "truncatedAlerts": 0,
        "status": status,
        "receiver": "abswitch",
        "groupLabels": {"alertname": alert.metric},
        "commonLabels": one["labels"],
        "commonAnnotations": one["annotations"],
        "externalURL": "",
        "alerts": [one],
    }


def _given(texts: dict[str, str | None]) -> dict[str, str]:
    return {name: text for name, text in texts.items() if text is not None}


def _instant(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat().replace("+00:00", "Z")


def signature(secret: str, content: bytes, at_s: float) -> str:
    """The header's value: `t=<seconds since the Unix epoch>,v1=<HMAC-SHA256 of "<t>." and the body, in hex>`."""
    stamp = str(int(at_s))
    return f"t={stamp},v1={_digest(secret, stamp, content)}"


def verify(
    secret: str,
    content: bytes,
    header: str | None,
    *,
    tolerance_s: float = _TOLERANCE_S,
    now_s: float | None = None,
) -> bool:
    """For receivers: whether a request is genuine and recent.

    Args:
        content: the body as received, byte for byte.
        header: the value of `X-Abswitch-Signature`; None where the request has none, which is never genuine.
        tolerance_s: how old it may be, against replays.
        now_s: seconds since the Unix epoch; this machine's clock by default.
    """
    if not isinstance(header, str):
        return False
    parts = dict(part.partition("=")[::2] for part in header.split(","))
    stamp, given = parts.get("t", ""), parts.get("v1", "")
    now_s = SystemClock().wall_s() if now_s is None else now_s
    if not stamp.isdecimal() or abs(now_s - int(stamp)) > tolerance_s:
        return False
    return hmac.compare_digest(_digest(secret, stamp, content).encode(), given.encode())


def _digest(secret: str, stamp: str, content: bytes) -> str:
    return hmac.new(secret.encode(), stamp.encode() + b"." + content, hashlib.sha256).hexdigest()
