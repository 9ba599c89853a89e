"""Settings of a synthetic source: the teacher, its prompts, budgets and pace."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from governance.config import Section


class TeacherSettings(Section):
    """Fields of a synthetic source."""

    endpoint: str = Field(min_length=1)
    """The base URL, as "https://host/v1", without credentials; the name of the API follows it."""
    api: Literal["chat", "completions"] = "chat"
    """`/chat/completions` or `/completions`."""
    model: str = Field(min_length=1)
    """The teacher, as the endpoint names it."""
    answered_models: tuple[str, ...] = ()
    """Shell patterns of the names under which it may answer; (): its own, also with a date or version after it."""
    terms: str = Field(min_length=1)
    """The teacher's licence or terms that allow training on its answers: an SPDX expression, a URL or a sentence."""
    key_variable: str = Field(default="", pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")
    """The environment variable that holds the endpoint's key, which is written nowhere; "": it needs none."""
    seeds: str = ""
    """The source whose documents, as read, fill the template; or give `prompts`."""
    prompts: tuple[str, ...] = ()
    """Shell patterns of JSON Lines files whose rows fill the template."""
    template: str = ""
    """The file of the prompt, with fields such as {{text}}; "": the field `prompt` of a row of `prompts`."""
    system: str = ""
    """The system message of a chat; "": none."""
    limit: int = Field(default=0, ge=0)
    """Seeds that are used, from the first; 0: all."""
    seed_characters: int = Field(default=0, ge=0)
    """Characters of a seed's text that the prompt gets; 0: all."""
    n: int = Field(default=1, ge=1)
    """Answers for each seed."""
    choices: int = Field(default=1, ge=1)
    """Answers for each request, the API's `n`; it divides `n`."""
    temperature: float = Field(default=1.0, ge=0)
    max_tokens: int = Field(default=1024, ge=1)
    """Tokens that an answer may have; one that reaches them is kept and marked as truncated."""
    seed: int | None = None
    """The API's `seed` of a seed's first request, one more for each further one; absent: not sent."""
    budget_requests: int = Field(ge=1)
    """Requests that may be sent, repeated ones and earlier starts included."""
    budget_tokens: int = Field(ge=1)
    """Tokens of prompts and answers that may be used; a request that might exceed them is not sent."""
    budget_money: float | None = Field(default=None, gt=0)
    """Money that may be spent, in the currency of the prices; absent: no bound."""
    price_in: float = Field(default=0.0, ge=0)
    """Price of a million tokens of prompts."""
    price_out: float = Field(default=0.0, ge=0)
    """Price of a million tokens of answers."""
    concurrency: int = Field(default=8, ge=1, le=1024)
    """Requests under way at once."""
    requests_per_minute: float = Field(default=0.0, ge=0)
    """Requests that begin in a minute; 0: no bound."""
    retries: int = Field(default=6, ge=0)
    """Further tries after 429, a 5xx, a timeout or a broken connection, each after a longer wait."""
    timeout_seconds: float = Field(default=300.0, gt=0)
    """Time that an answer may take."""
    runs_here: bool = False
    """True: the teacher runs on this machine, so the stage's meter measures its energy."""
    joules_per_token: float | None = Field(default=None, gt=0)
    """Energy of a token of an answer, where it runs elsewhere; absent: the energy is unknown."""
    joules_source: str = ""
    """Origin of that figure."""

    @model_validator(mode="after")
    def _fits_together(self) -> TeacherSettings:
        faults = {  # none repeats the endpoint, which may hold a password
            'endpoint is not a base URL such as "https://host/v1", without a user, password, query or fragment; a key '
            "goes into the environment variable that key_variable names": not _is_base_url(self.endpoint),
            "give either seeds, the name of a source, or prompts, files of rows": bool(self.seeds)
            == bool(self.prompts),
            "template is missing: seeds need a file with fields such as {{text}}": bool(
                self.seeds and not self.template
            ),
            f"choices = {self.choices} does not divide n = {self.n}": self.n % self.choices != 0,
            'system is a message of a chat: use api = "chat"': bool(self.system) and self.api != "chat",
            "budget_money needs price_in or price_out": self.budget_money is not None
            and not (self.price_in or self.price_out),
            "give both joules_per_token and joules_source": (self.joules_per_token is None) == bool(self.joules_source),
            "runs_here means that the energy is measured: remove joules_per_token": self.runs_here
            and self.joules_per_token is not None,
        }
        for words, found in faults.items():
            if found and self.endpoint:  # without one it is an identity
                raise ValueError(words)
        return self


def _is_base_url(text: str) -> bool:
    """Return whether a URL has only a scheme, host, port and path."""
    try:
        parts = urlsplit(text)
        named = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return named and "@" not in parts.netloc and text.isascii() and text.isprintable() and not set(text) & set(" ?#\\")
