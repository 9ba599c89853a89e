"""Actions on a gate's decision: mail, Slack-compatible webhooks, HTTP webhooks.

    [[governance.actions]]
    kind = "slack"                       # {"text": ...}, as Slack, Mattermost and others accept it
    url_variable = "ASSAY_SLACK_URL"     # the environment variable that holds the secret URL

    [[governance.actions]]
    kind = "mail"
    to = ["data-owners@example.org"]
    smtp = "mail.example.org:587"
    starttls = true

    [[governance.actions]]
    kind = "webhook"                     # a POST of `GateEvent` as JSON
    url = "https://hooks.example.org/gate"

Promise: an action runs after the decision and has no way to change it. One that fails, hangs or is misconfigured at
run time is a warning in the log; a closed gate stays closed and an open one open. Secrets come from environment
variables and are never logged: of an error that a library raises, the log has the type and the status. Price: nothing
without actions, else at most `timeout_seconds` each.
"""

from __future__ import annotations

import dataclasses
import os
import smtplib
import ssl
import threading
import urllib.error
from collections.abc import Sequence
from email.message import EmailMessage
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from governance.config import Section
from governance.http_post import open_post
from governance.log import get_logger


class GateAction(Section):
    """One `[[governance.actions]]` of a run's file."""

    kind: Literal["webhook", "slack", "mail"]
    """The form of the message and the way it is sent."""
    on: Literal["closed", "any"] = "closed"
    """The decisions that it reports: a closed gate, or each decision."""
    url: str = ""
    """Address of a webhook; http or https."""
    url_variable: str = ""
    """Environment variable that holds the address, where it is a secret."""
    token_variable: str = ""
    """Environment variable with a token, sent as `Authorization: Bearer ...`; empty: none."""
    to: tuple[str, ...] = ()
    """Mail addresses of the readers."""
    sender: str = "assay@localhost"
    """Mail address of the sender."""
    smtp: str = "localhost:25"
    """Mail server, host:port."""
    starttls: bool = False
    """Encrypt the connection; the server's certificate is verified."""
    user: str = ""
    """Account on the mail server; empty: no login."""
    password_variable: str = ""
    """Environment variable with that account's password."""
    timeout_seconds: float = Field(default=10.0, gt=0, le=60)
    """The longest that a run waits for this action."""

    @model_validator(mode="after")
    def _complete(self) -> GateAction:
        mail = bool({"to", "sender", "smtp", "starttls", "user", "password_variable"} & self.model_fields_set)
        web = bool({"url", "url_variable", "token_variable"} & self.model_fields_set)
        if self.kind == "mail":
            if web or not self.to:
                raise ValueError("a mail action needs `to`, and neither a URL nor a token")
            if not self.smtp.rpartition(":")[2].isdecimal():
                raise ValueError(f"smtp = {self.smtp!r}: needs host:port, for example mail.example.org:587")
            if bool(self.user) != bool(self.password_variable):
                raise ValueError("`user` and `password_variable` require each other")
        elif mail or bool(self.url) == bool(self.url_variable):
            raise ValueError(f"a {self.kind} action needs `url` or `url_variable`, not both, and no mail settings")
        elif self.url and not _is_web_address(self.url):
            raise ValueError("`url` must begin with http:// or https://, and hold a host and no white space")
        return self


@dataclasses.dataclass(frozen=True)
class GateEvent:
    """A decision of the gate, as actions report it."""

    decision: str
    """"closed" or "open"."""
    run: str
    """The run's file."""
    root: str
    corpus: str
    """Digest of the token shards."""
    policy: str
    """Name of the policy."""
    host: str
    time: str
    """UTC, ISO 8601."""
    message: str
    """The reasons with gates and owners, as the command prints them."""

    def text(self) -> str:
        """The event for a reader."""
        head = f"Gate {self.decision}: {self.run} (corpus {self.corpus[:16]}, policy {self.policy}) on {self.host}"
        return f"{head}\n{self.message}"


def run_actions(actions: Sequence[GateAction], event: GateEvent) -> list[str]:
    """Run the actions for an event; log and return their faults."""
    faults = []
    for number, action in enumerate(actions):
        if action.on == "closed" and event.decision != "closed":
            continue
        if fault := _run(action, event):
            faults.append(f"governance.actions.{number} ({action.kind}): {fault}")
            get_logger(__name__).warning("%s; the gate stays %s", faults[-1], event.decision)
    return faults


def _run(action: GateAction, event: GateEvent) -> str:
    """Fault of an action; "" if it succeeded.

    It runs in a thread, because no timeout of a socket bounds a slow name server or a server that sends byte by byte.
    """
    found = [f"no answer within {action.timeout_seconds:g} s"]

    def send() -> None:
        try:
            _mail(action, event) if action.kind == "mail" else _post(action, event)
            found[0] = ""
        except Exception as error:
            found[0] = _description(error)

    thread = threading.Thread(target=send, daemon=True, name="gate action")
    thread.start()
    thread.join(action.timeout_seconds)
    return found[0]


class _Misconfigured(ValueError):
    """Fault of an action's settings; its message repeats no secret."""


def _description(error: Exception) -> str:
    """Describe an error without its message.

    The message may repeat a part of the address or of a header.
    """
    if isinstance(error, _Misconfigured):
        return str(error)
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered with status {error.code}"
    if isinstance(error, smtplib.SMTPResponseException):
        return f"the mail server answered with status {error.smtp_code} ({type(error).__name__})"
    reason = error.reason if isinstance(error, urllib.error.URLError) and not isinstance(error.reason, str) else error
    number = reason.errno if isinstance(reason, OSError) and not isinstance(reason, ssl.SSLError) else None
    return type(reason).__name__ + (f": {os.strerror(number)}" if number is not None and number > 0 else "")


def _secret(variable: str) -> str:
    value = os.environ.get(variable, "").strip("\r\n")  # the last line end of the file that it was read from
    if not value:
        raise _Misconfigured(f"the environment variable {variable} is not set")
    return value


def _is_web_address(url: str) -> bool:
    """Return whether an HTTP client accepts the address."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and _is_one_word(url)
    except ValueError:  # the port or the host is malformed
        return False


def _is_one_word(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _post(action: GateAction, event: GateEvent) -> None:
    url = action.url or _secret(action.url_variable).strip()
    if not _is_web_address(url):
        raise _Misconfigured(f"the environment variable {action.url_variable} does not hold an http or https URL")
    content: dict[str, Any] = {"text": event.text()} if action.kind == "slack" else dataclasses.asdict(event)
    headers = {}
    if action.token_variable:
        token = _secret(action.token_variable).strip()
        if not _is_one_word(token):
            raise _Misconfigured(f"the environment variable {action.token_variable} holds white space or no ASCII")
        headers["Authorization"] = f"Bearer {token}"
    with open_post(url, content, headers, action.timeout_seconds):
        return  # any status other than 2xx raises


def _mail(action: GateAction, event: GateEvent) -> None:
    message = EmailMessage()
    message["Subject"] = f"Gate {event.decision}: {event.run}"
    message["From"], message["To"] = action.sender, ", ".join(action.to)
    message.set_content(event.text())
    host, _, port = action.smtp.rpartition(":")
    with smtplib.SMTP(host, int(port), timeout=action.timeout_seconds) as server:
        if action.starttls:
            server.starttls(context=ssl.create_default_context())
        if action.user:
            server.login(action.user, _secret(action.password_variable))
        server.send_message(message)
