"""Budgets of a synthetic source: requests, tokens and money."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from data_pipeline.readers.file_types.teacher_answers import Answer, tokens_of
from data_pipeline.readers.sources import SyntheticSource
from data_pipeline.synthetic.prompts import Request
from governance.errors import BudgetReached, ConfigError


@dataclass
class TeacherBudget:
    """Tokens used, and those that requests under way may use."""

    source: SyntheticSource
    tokens_in: int = 0
    tokens_out: int = 0
    answers: int = 0
    held_in: int = 0
    held_out: int = 0

    def fits(self, request: Request) -> bool:
        """Return whether a further request fits tokens and money."""
        tokens_in = self.tokens_in + self.held_in + request.most_in
        tokens_out = self.tokens_out + self.held_out + request.most_out
        money = money_of(self.source, tokens_in, tokens_out)
        return tokens_in + tokens_out <= self.source.budget_tokens and (
            self.source.budget_money is None or money <= self.source.budget_money
        )

    def hold(self, request: Request, sign: int = 1) -> None:
        """Count what a request may use, or with -1 no longer."""
        self.held_in += sign * request.most_in
        self.held_out += sign * request.most_out

    def add(self, answer: Answer, request: Request) -> None:
        """Count an answer; without figures, as the most it may have used."""
        used = tokens_of(answer) or ((request.most_in, request.most_out) if answer.status == 200 else (0, 0))
        self.tokens_in += used[0]
        self.tokens_out += used[1]
        self.answers += 1

    def reached(self, left: int, tries: int) -> BudgetReached:
        """The error where no further request fits."""
        used = self.tokens_in + self.tokens_out
        spent = money_of(self.source, self.tokens_in, self.tokens_out)
        money = "" if self.source.budget_money is None else f", {spent:.2f} of {self.source.budget_money:g} in money"
        return BudgetReached(
            f"source {self.source.name}: its budget has no room for a further request: {tries:,} of "
            f"{self.source.budget_requests:,} requests, {used:,} of {self.source.budget_tokens:,} tokens{money}. "
            f"Answers so far are kept, {left:,} requests are left: raise the budget and run the same command, or lower "
            "limit or n."
        )


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


def forecast(source: SyntheticSource, requests: Iterable[Request], answered: set[str]) -> ExpectedCost:
    """Cost of the requests that have no answer yet."""
    count = known = tokens_in = most_out = 0
    for request in requests:
        count += 1
        if request.key in answered:
            known += 1
        else:
            tokens_in += request.expected_in
            most_out += request.most_out
    return ExpectedCost(count, known, tokens_in, most_out, money_of(source, tokens_in, most_out))


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
