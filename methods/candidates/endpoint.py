"""One chat completion from an OpenAI-compatible endpoint, past its passing faults.

Asked again, after a random wait that doubles: timeouts, dropped connections, 408, 425, 429, 5xx, and a success whose
body is no chat completion. A ``Retry-After`` is obeyed by all threads. Everything else ends the asking: a refused key,
an unknown model, an account without credit, a budget that is used up. The key is sent to this address alone (redirects
are not followed) and cut out of whatever the endpoint says.
"""

import json
import random
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, JsonValue, NonNegativeInt, ValidationError

PASSING = frozenset({408, 425, 429})  # and all of 5xx
NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
REFUSED_PROMPT = frozenset({"content_filter", "content_policy_violation"})
MOST_BYTES = 16 * 2**20  # of an answer
MOST_SAID = 200  # characters of an endpoint's error that are passed on
HINTS = {401: "the key is refused", 403: "the key may not do this", 404: "no such address or model"}


class EndpointError(Exception):
    """No further request is worth making; the message says why."""


class Stopped(EndpointError):
    """Another thread met the reason."""


class _Passing(Exception):
    """A fault that may be gone in a while."""

    def __init__(self, reason: str, retry_after_s: float | None = None):
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Reply(BaseModel):
    """What came back. ``text`` is empty where the model refused; token counts are None where none were given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    finish: str | None
    model: str | None  # as the endpoint calls it, with its date
    prompt_tokens: NonNegativeInt | None
    completion_tokens: NonNegativeInt | None
    host: str | None = None  # that answered: answers are found by what was asked, wherever it was asked


@dataclass
class Meter:
    """Requests and tokens of this run, counted against a budget; retries are requests."""

    most_requests: int | None = None
    most_tokens: int | None = None
    requests: int = 0
    retries: int = 0
    answers: int = 0
    tokens: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def request(self, again: bool) -> None:
        """Count one that is about to be sent; raises EndpointError where the budget does not cover it."""
        with self._lock:
            if self.most_requests is not None and self.requests >= self.most_requests:
                raise EndpointError(f"the budget of {self.most_requests} requests is used up")
            if self.most_tokens is not None and self.tokens >= self.most_tokens:
                raise EndpointError(f"the budget of {self.most_tokens} tokens is used up ({self.tokens} so far)")
            self.requests += 1
            self.retries += again

    def answered(self, reply: Reply) -> None:
        """Count what an answer took."""
        with self._lock:
            self.answers += 1
            self.tokens += (reply.prompt_tokens or 0) + (reply.completion_tokens or 0)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to an address that nobody gave it for."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        return None


class Endpoint:
    """Asks one address; several threads may."""

    def __init__(
        self,
        url: str,
        key: str,
        meter: Meter,
        *,
        timeout_s: float,
        tries: int,
        wait_s: float,
        longest_wait_s: float,
        rng: random.Random,
    ):
        self.url, self._key, self.meter = checked_url(url), checked_key(key), meter
        self.timeout_s, self.tries, self.wait_s, self.longest_wait_s = timeout_s, tries, wait_s, longest_wait_s
        self._rng = rng
        self._stopped = threading.Event()
        self._not_before = 0.0  # monotonic time that the endpoint asked all of us to wait for
        self._opener = urllib.request.build_opener(_NoRedirect())

    def stop(self) -> None:
        """Ask no more; threads that wait give up with `Stopped`."""
        self._stopped.set()

    def complete(self, body: dict[str, JsonValue]) -> Reply:
        """The answer to one request body. Raises EndpointError where there is none to be had."""
        reason = ""
        for attempt in range(self.tries):
            self._sleep(self._not_before - time.monotonic())
            self.meter.request(again=attempt > 0)
            try:
                reply = self._once(body).model_copy(update={"host": urlsplit(self.url).netloc})
            except _Passing as fault:
                reason = str(fault)
                if attempt + 1 < self.tries:
                    self._sleep(self._delay(attempt, fault.retry_after_s, reason))
            else:
                self.meter.answered(reply)
                return reply
        raise EndpointError(f"{self.url}: {reason} ({self.tries} tries)")

    def _delay(self, attempt: int, asked_s: float | None, reason: str) -> float:
        """Seconds until the next try: random, so that threads which failed together do not come back together."""
        if asked_s is None:
            return self._rng.uniform(0.0, min(self.wait_s * 2**attempt, self.longest_wait_s))
        if asked_s > self.longest_wait_s:
            raise EndpointError(f"{self.url}: {reason}: asks to wait {asked_s:.0f} s")
        self._not_before = max(self._not_before, time.monotonic() + asked_s)
        return asked_s + self._rng.uniform(0.0, self.wait_s)

    def _sleep(self, seconds: float) -> None:
        if self._stopped.wait(max(seconds, 0.0)):
            raise Stopped("stopped")

    def _once(self, body: dict[str, JsonValue]) -> Reply:
        request = urllib.request.Request(
            self.url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        try:
            with self._opener.open(request, timeout=self.timeout_s) as response:
                return self._reply(_read(response, self.timeout_s))
        except HTTPError as error:
            with error:
                return self._refusal(error)
        except (OSError, HTTPException) as error:  # refused, dropped, timed out, garbled
            cause = error.reason if isinstance(error, URLError) else error
            raise _Passing(self._told(f"{type(cause).__name__}: {cause}")) from None

    def _reply(self, content: bytes) -> Reply:
        """A chat completion, or a passing fault where the body is none."""
        try:
            value = json.loads(content)
            choice, usage = value["choices"][0], value.get("usage") or {}
            return Reply(
                text=self._without_key(_text(choice["message"])),
                finish=choice.get("finish_reason"),
                model=value.get("model"),
                prompt_tokens=usage.get("prompt_tokens"),
                completion_tokens=usage.get("completion_tokens"),
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, ValidationError, RecursionError):
            raise _Passing(f"answered with no chat completion: {self._told(_decoded(content))}") from None

    def _refusal(self, error: HTTPError) -> Reply:
        """What an HTTP error means: an empty answer where the prompt was refused, else an exception."""
        try:
            said = _decoded(_read(error, self.timeout_s))
        except (OSError, HTTPException):
            said = ""
        codes = _codes(said)
        if error.code < 500 and codes & REFUSED_PROMPT:
            return Reply(text="", finish="content_filter", model=None, prompt_tokens=None, completion_tokens=None)
        reason = f"HTTP {error.code} {self._told(said)}".strip()
        if error.code == 402 or codes & NO_CREDIT:
            raise EndpointError(f"{self.url}: the account's quota is exceeded: {reason}")
        if error.code in PASSING or error.code >= 500:
            raise _Passing(reason, _retry_after_s(error.headers.get("Retry-After")))
        hint = "redirects, which is not followed" if error.code < 400 else HINTS.get(error.code, "refuses the request")
        raise EndpointError(f"{self.url}: {hint}: {reason}")

    def _told(self, text: str) -> str:
        """An endpoint's words as one short line without the key."""
        return " ".join(self._without_key(text).split())[:MOST_SAID]

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if len(self._key) >= 8 else text  # "none" is a word, not a secret


def checked_url(url: str) -> str:
    """The address of chat completions under a base address such as https://api.openai.com/v1.

    Raises ValueError for one that is not http, or carries a password or a query: it stands in records.
    """
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port  # a port that is no number raises
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise ValueError("an endpoint's address begins with http:// or https:// and names a host")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("an endpoint's address carries no user, password or query: it stands in records")
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{parts.netloc}{path}/chat/completions"


def checked_key(key: str) -> str:
    """The key without spaces around it; EndpointError, which does not show it, where it cannot stand in a header."""
    key = key.strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise EndpointError("the key holds characters that no key has (a line break, a space?)")
    return key


def _read(response: Any, timeout_s: float) -> bytes:
    """The body; TimeoutError where it trickles in for longer than a request may take."""
    deadline, parts, size = time.monotonic() + timeout_s, [], 0
    while part := response.read1(65536):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline or size > MOST_BYTES:
            raise TimeoutError("the answer does not end")
    return b"".join(parts)


def _text(message: dict[str, Any]) -> str:
    """A message's text: none for a refusal, joined where it comes in parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


def _decoded(content: bytes) -> str:
    return content.decode("utf-8", errors="replace")


def _codes(said: str) -> set[str]:
    """Code and type of an error body."""
    try:
        error = json.loads(said)["error"]
        return {str(error.get(name)) for name in ("code", "type")}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()


def _retry_after_s(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which gives seconds or a date."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if seconds == seconds else None
