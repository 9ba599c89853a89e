"""Requests to an OpenAI-style endpoint, repeated while the server is busy.

Repeated after 429, 408, any 5xx, a timeout and a broken connection, each time after twice the wait; a server that
states `Retry-After` holds all requests back until then. Ended for good: a key that is not accepted (401, 403), an
address without such an API (404, 405, a redirect), tries used up. Any other refusal (400: a prompt too long) is of its
one request, and is an answer. The key is sent as a bearer token, and replaced in whatever the server says, also where
it is written with escapes of JSON or of URLs.
"""

from __future__ import annotations

import datetime
import email.utils
import http.client
import os
import random
import re
import threading
import time
import urllib.error
from collections.abc import Mapping
from typing import Any

from data_pipeline.readers.file_types.teacher_answers import Answer
from data_pipeline.readers.sources import SyntheticSource
from data_pipeline.synthetic.prompts import Request
from data_pipeline.synthetic.spending import TeacherBudget
from governance.errors import ConfigError, MissingInput, PipelineError
from governance.http_post import open_post

MAX_BYTES = 8 << 20  # bytes of an answer; a longer one is cut, and is then not JSON
_LONGEST_WAIT = 600.0  # seconds that a server may request
_FIRST_WAIT, _SHOWN = 0.5, 300
_BUSY, _KEYS, _NO_API = (408, 409, 429), (401, 402, 403), (404, 405)


class Stopped(Exception):
    """End of a request that is not sent.

    The stage stops, or its budget has no room for a further try.
    """


class Endpoint:
    """A teacher's address, with the pace that all threads share.

    Args:
        source: its settings.
        budget: counts each try, and has room for it or not.
    """

    def __init__(self, source: SyntheticSource, budget: TeacherBudget) -> None:
        self.source = source
        self.budget = budget
        self.name = source.endpoint.rstrip("/")
        self.stopping = threading.Event()
        self._key = _key(source)
        self._spelled = _spelled(self._key) if self._key else None
        self._url = f"{self.name}/{'chat/completions' if source.api == 'chat' else 'completions'}"
        self._guard = threading.Lock()
        self._next = 0.0

    def answer(self, request: Request) -> Answer:
        """The endpoint's answer.

        Raises:
            ConfigError: the key or the address is not accepted.
            MissingInput: the endpoint did not answer, in all tries.
            Stopped: the stage stops, or the budget has no room for a further try.
        """
        wait, said = _FIRST_WAIT, ""
        for _ in range(self.source.retries + 1):
            self._take_turn()
            status, body, after = self._send(request)
            if status == 200 or (400 <= status < 500 and status not in (*_BUSY, *_KEYS, *_NO_API)):
                return Answer(
                    request.key, [request.seed], request.prompt_sha256, request.choices, self.name, status, body
                )
            said = f"{status} {body[:_SHOWN]!r}" if status else body
            if status and (status < 400 or status in (*_KEYS, *_NO_API)):
                raise self._refused(status, said)
            if after > _LONGEST_WAIT:
                said += f", and requests a wait of {after:.0f} s"
                break
            self._hold_back(after)
            self._sleep(max(after, wait * random.uniform(0.8, 1.2)))
            wait = min(2 * wait, _LONGEST_WAIT)
        raise MissingInput(
            f"source {self.source.name}: {self.name} did not answer a request, in {self.source.retries + 1} tries at "
            f"most: {said}. Answers so far are kept; run the same command again when the endpoint works."
        )

    def _refused(self, status: int, said: str) -> PipelineError:
        place = f"source {self.source.name}: {self.name}"
        if status in _KEYS:
            named = self.source.key_variable
            fix = (
                f"Set {named} to a key that may use {self.source.model}" if named else "Name its variable: key_variable"
            )
            return ConfigError(f"{place} refuses the key: {said}. {fix}; answers so far are kept.")
        return ConfigError(f"{place} has no {self.source.api} API or no model {self.source.model!r}: {said}. Correct "
                           "endpoint, api or model; answers so far are kept.")  # fmt: skip

    def _take_turn(self) -> None:
        """Wait for the pace of all requests."""
        rate = self.source.requests_per_minute
        if not self.budget.take_try():
            raise Stopped
        with self._guard:
            begin = max(time.monotonic(), self._next)
            self._next = begin + (60 / rate if rate else 0)
        self._sleep(begin - time.monotonic())

    def _hold_back(self, seconds: float) -> None:
        with self._guard:
            self._next = max(self._next, time.monotonic() + seconds)

    def _sleep(self, seconds: float) -> None:
        if self.stopping.wait(max(0.0, seconds)):
            raise Stopped

    def _send(self, request: Request) -> tuple[int, str, float]:
        """Status, text and requested wait; status 0 without an answer."""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limit = self.source.timeout_seconds
        self.budget.note_sent(request)
        try:
            deadline = time.monotonic() + limit
            with _opened(self._url, request.body, headers, limit) as answer:
                status, after = answer.status, _wait_of(answer.headers.get("Retry-After"))
                if status != 200:
                    self.budget.note_refused(request)
                return status, self._without_key(_read(answer, deadline, whole=status == 200)), after
        except urllib.error.URLError as error:  # the connection failed, or failed while the request was sent
            self.budget.note_unsent(request)
            return 0, _said(error.reason), 0.0
        except (OSError, http.client.HTTPException) as error:  # reset, timed out, cut short
            self.budget.lose(request.bounds)
            return 0, _said(error), 0.0

    def _without_key(self, data: bytes) -> str:
        text = data.decode("utf-8", "backslashreplace")  # \\xff within JSON is a fault; U+FFFD would be text
        return self._spelled.sub("[key]", text) if self._spelled else text


def _opened(url: str, body: Mapping[str, Any], headers: Mapping[str, str], limit: float) -> Any:
    """The response, a context, of any status."""
    try:
        return open_post(url, body, headers, limit)
    except urllib.error.HTTPError as error:
        return error


def _said(error: str | BaseException) -> str:
    return f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else error


def _spelled(key: str) -> re.Pattern[str]:
    """The key, plain or with escapes of JSON or URLs."""
    ways = (rf"(?:\\{{0,8}}{re.escape(one)}|\\{{1,8}}u00{ord(one):02x}|%{ord(one):02x})" for one in key)
    return re.compile("".join(ways), re.IGNORECASE)


def _key(source: SyntheticSource) -> str:
    """The endpoint's key.

    Raises:
        ConfigError: its variable is not set, or holds no key that a header can carry.
    """
    key = os.environ.get(source.key_variable, "").strip() if source.key_variable else ""
    place = f"source {source.name}: the environment variable {source.key_variable} (key_variable)"
    if source.key_variable and not key:
        raise ConfigError(f"{place} holds no key. Set it, or remove the line if the endpoint needs none.")
    if not all("!" <= one <= "~" for one in key):
        raise ConfigError(
            f"{place} holds a space, a line break or a character outside ASCII, which no key has. Set it to the key "
            "alone."
        )
    return key


def _read(answer: Any, deadline: float, *, whole: bool) -> bytes:
    """The body, within the deadline and the bound of bytes.

    If it need not be `whole`, what came before a fault is returned.
    """
    blocks, size = [], 0
    try:
        while size <= MAX_BYTES and (block := answer.read1(1 << 16)):
            blocks.append(block)
            size += len(block)
            if time.monotonic() > deadline:
                raise TimeoutError("the answer took longer than timeout_seconds")
        if answer.length and size <= MAX_BYTES:  # the body is shorter than its stated length
            raise http.client.IncompleteRead(b"", answer.length)
    except (OSError, http.client.HTTPException):
        if whole:
            raise
    return b"".join(blocks)


def _wait_of(text: str | None) -> float:
    """Seconds of a `Retry-After`: a number or a date; 0 without one."""
    if not text:
        return 0.0
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        then = email.utils.parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return 0.0
    if then.tzinfo is None:  # "-0000": a time of UTC from a zone that is not stated
        then = then.replace(tzinfo=datetime.UTC)
    return max(0.0, (then - datetime.datetime.now(datetime.UTC)).total_seconds())
