"""Budgets of a synthetic source: requests, tokens and money.

Tries count across starts: each has a line in `<root>/synthetic/<key>/tries.log` before it leaves, and a second one if
it ended with a status other than 200 or never left whole. Any other try without an answer (a timeout, a broken
connection, a kill) may have been generated and billed all the same, so it counts as the most tokens that it may have
used. A line is {"number": n, "note": {"request": key, "sent": n, "open": n}}, the note signed with its log and number;
the lines of a request are added up.

Promise: only a line that a trusted key signed gives anything back, and once. Any other line (altered, repeated, torn,
signed by a key that is no longer trusted) and each missing number count as a try without an answer, of the
largest request. The limit: lines cut from the log's end are not known.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.readers.file_types.teacher_answers import Answer, tokens_of
from data_pipeline.readers.sources import SyntheticSource
from data_pipeline.synthetic.answer_log import STAGE
from data_pipeline.synthetic.prompts import Listed, Request, TokenBounds
from governance.config import canonical_json
from governance.errors import BudgetReached, ConfigError
from governance.files import append_line, read_lines
from governance.log import get_logger
from governance.signed_notes import NoteSigner

TRIES = "tries.log"


@dataclass
class TeacherBudget:
    """Requests and tokens used, and tokens that requests under way may use.

    Threads share it.
    """

    source: SyntheticSource
    log: Path
    """The file of tries."""
    signer: NoteSigner = field(default_factory=NoteSigner)
    """The key that signs them."""
    tries: int = 0
    """Requests sent, repeated ones and earlier starts included."""
    tokens_in: int = 0
    tokens_out: int = 0
    held_in: int = 0
    held_out: int = 0
    _number: int = 0
    """Number of the next line."""
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def fits(self, request: Request) -> bool:
        """Return whether a further request fits requests, tokens and money."""
        with self._guard:
            return self._has_room(request.bounds.most_in, request.bounds.most_out)

    def hold(self, request: Request, sign: int = 1) -> None:
        """Reserve the tokens that a request may use; with -1, release them."""
        with self._guard:
            self.held_in += sign * request.bounds.most_in
            self.held_out += sign * request.bounds.most_out

    def take_try(self) -> bool:
        """Count a try of a held request; False: no room for it."""
        with self._guard:
            room = self._has_room(0, 0)
            self.tries += room
            return room

    def note_sent(self, request: Request) -> None:
        """Put a try on the disk, just before it leaves."""
        self._note(request, sent=1, open=1)

    def note_refused(self, request: Request) -> None:
        """Note that a try ended with a status other than 200."""
        self._note(request, sent=0, open=-1)

    def note_unsent(self, request: Request) -> None:
        """Note that a try did not leave whole."""
        with self._guard:
            self.tries -= 1
        self._note(request, sent=-1, open=-1)

    def lose(self, bounds: TokenBounds, times: int = 1) -> None:
        """Count tries without a status at the most each may cost."""
        with self._guard:
            self.tokens_in += times * bounds.most_in
            self.tokens_out += times * bounds.most_out

    def add(self, answer: Answer, bounds: TokenBounds) -> None:
        """Count an answer; without figures, at the most it may have used."""
        used = tokens_of(answer) or ((bounds.most_in, bounds.most_out) if answer.status == 200 else (0, 0))
        with self._guard:
            self.tokens_in += used[0]
            self.tokens_out += used[1]

    def recall(self, root: Path, asked: Mapping[str, Listed], answered: Collection[str]) -> None:
        """Count earlier starts; an answer without a noted try is one."""
        sent, unclear = Counter[str](), Counter[str]()
        every = [facts.bounds for facts in asked.values()]
        largest = TokenBounds(
            max((one.most_in for one in every), default=0), max((one.most_out for one in every), default=0)
        )
        for path in sorted(root.glob(f"{STAGE}/*/{TRIES}")):
            noted, following = self._noted(path)
            for line in noted.values():
                sent[line["request"]] += line["sent"]
                unclear[line["request"]] += line["open"]
            self.tries += following - len(noted)
            self.lose(largest, following - len(noted))
            self._number = following if path == self.log else self._number
        for key, facts in asked.items():
            self.tries += max(sent[key], key in answered)
            self.lose(facts.bounds, max(0, unclear[key] - (key in answered)))

    def _noted(self, path: Path) -> tuple[dict[int, Mapping[str, Any]], int]:
        """Trusted lines of a log by their numbers, and the next number."""
        found: dict[int, Mapping[str, Any]] = {}
        for line in read_lines(path):
            if not isinstance(line, dict) or not isinstance(number := line.get("number"), int):
                continue
            content = self.signer.open(_name(path, number), line.get("note"))
            if isinstance(content, dict) and content.keys() >= {"request", "sent", "open"}:
                found[number] = content
        written = sum(map(bool, path.read_bytes().split(b"\n")))  # with lines that are not JSON
        following = max(written, max(found, default=-1) + 1)
        if lost := following - len(found):
            get_logger(__name__).warning(
                "%s: %d line(s) are missing, repeated, or signed by no trusted key; each counts as a request that used "
                "the most tokens. If the signing key was changed, name the former and the new one in trusted_keys",
                path, lost,
            )  # fmt: skip
        return found, following

    def _has_room(self, most_in: int, most_out: int) -> bool:
        tokens_in = self.tokens_in + self.held_in + most_in
        tokens_out = self.tokens_out + self.held_out + most_out
        money = money_of(self.source, tokens_in, tokens_out)
        return (
            self.tries < self.source.budget_requests
            and tokens_in + tokens_out <= self.source.budget_tokens
            and (self.source.budget_money is None or money <= self.source.budget_money)
        )

    def _note(self, request: Request, **counts: int) -> None:
        with self._guard:
            note = self.signer.sign(_name(self.log, self._number), {"request": request.key, **counts})
            line = canonical_json({"number": self._number, "note": note}).decode("utf-8")
            append_line(self.log, line, durable=True)
            self._number += 1

    def reached(self, left: int) -> BudgetReached:
        """The error where no further request fits."""
        used = self.tokens_in + self.tokens_out
        spent = money_of(self.source, self.tokens_in, self.tokens_out)
        money = "" if self.source.budget_money is None else f", {spent:.2f} of {self.source.budget_money:g} in money"
        return BudgetReached(
            f"source {self.source.name}: its budget has no room for a further request: {self.tries:,} of "
            f"{self.source.budget_requests:,} requests, {used:,} of {self.source.budget_tokens:,} tokens{money}. "
            f"Answers so far are kept, {left:,} requests are left: raise the budget and run the same command, or "
            "lower limit, n or max_tokens, with which a request counts until its answer is here."
        )


def _name(log: Path, number: int) -> str:
    """Signed name of a line, which no other line has."""
    return f"{STAGE}/tries/{log.parent.name}/{number}"


def money_of(source: SyntheticSource, tokens_in: int, tokens_out: int) -> float:
    """Price of tokens."""
    return (tokens_in * source.price_in + tokens_out * source.price_out) / 1e6


@dataclass(frozen=True)
class ExpectedCost:
    """Expected cost of a source's requests."""

    requests: int
    answered: int
    tokens_in: int
    """Tokens of the prompts that are left, at four bytes each."""
    most_out: int
    money: float

    def line(self, source: SyntheticSource) -> str:
        """The forecast in a line."""
        left = self.requests - self.answered
        money = f", at most {self.money:,.2f} in money" if source.price_in or source.price_out else ""
        return (
            f"source {source.name}: {self.requests:,} requests to {source.model}, {self.answered:,} answered already; "
            f"{left:,} to send, about {self.tokens_in:,} tokens of prompts and at most {self.most_out:,} of "
            f"answers{money}"
        )


def forecast(source: SyntheticSource, asked: Mapping[str, Listed], answered: Collection[str]) -> ExpectedCost:
    """Cost of the requests that have no answer yet."""
    left = [facts.bounds for key, facts in asked.items() if key not in answered]
    tokens_in = sum(bounds.expected_in for bounds in left)
    most_out = sum(bounds.most_out for bounds in left)
    return ExpectedCost(len(asked), len(asked) - len(left), tokens_in, most_out, money_of(source, tokens_in, most_out))


def refuse_beyond_budget(source: SyntheticSource, expected: ExpectedCost) -> None:
    """Refuse requests that cannot fit the budget, before the first is sent.

    Raises:
        ConfigError: there are more requests, or longer prompts, than the budget has room for.
    """
    left = expected.requests - expected.answered
    if left > source.budget_requests:
        raise ConfigError(
            f"source {source.name}: budget_requests = {source.budget_requests:,} is less than the {left:,} requests to "
            "send; nothing was sent. Raise it, or lower limit or n."
        )
    if expected.tokens_in > source.budget_tokens:
        raise ConfigError(
            f"source {source.name}: budget_tokens = {source.budget_tokens:,} is less than the prompts alone, about "
            f"{expected.tokens_in:,} tokens; nothing was sent. Raise it, or lower limit or seed_characters."
        )
