"""Actions on a closed gate: each message arrives, and no fault of an action opens or changes the gate."""

import email.policy
import errno
import http.client
import json
import smtplib
import socketserver
import threading
import urllib.error
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from assay import corpus_gate, pipeline
from assay.cli.main import main
from governance.config import apply_override, validate
from governance.errors import AlteredFile, ConfigError, GateClosed
from governance.gate import gate_actions
from governance.gate.gate_actions import GateAction, GateEvent, run_actions
from governance.gate.verdict import GovernanceConfig, Keyring
from governance.stage import Runtime
from pretrain.config.training import TrackingConfig
from pretrain.data import dataset
from tests.governance.attacked import FAILS, demand, prepare, verdict_of, words_of
from tests.serving import serving

EVENT = GateEvent("closed", "run.toml", "/runs/a", "c" * 64, "strict", "node7", "2026-01-01T00:00:00Z", "pii: too much")


@pytest.fixture
def web():
    """A server that keeps its requests, and answers with `status` (None: never)."""
    got, over = [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}"
            got.append((self.path, self.headers.get("Authorization"), json.loads(body)))
            if self.server.status is None:
                over.wait(300)
                return
            self.send_response(200 if self.command == "GET" else self.server.status)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        do_GET = do_POST  # noqa: N815

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.status = 200
    with serving(server):
        yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}/hook", got=got, server=server)
        over.set()


@pytest.fixture
def mail():
    """A mail server of a few lines: `got` are the messages' lines."""
    got = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            say = lambda text: self.wfile.write(f"{text}\r\n".encode())  # noqa: E731
            say("220 here")
            for line in iter(self.rfile.readline, b""):
                word = line[:4].upper().strip()
                if word == b"DATA":
                    say("354 go")
                    got.extend(iter(lambda: self.rfile.readline().decode().rstrip(), "."))
                say("221 bye" if word == b"QUIT" else "250 ok")
                if word == b"QUIT":
                    return

    with serving(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)) as server:
        yield SimpleNamespace(address=f"127.0.0.1:{server.server_address[1]}", got=got)


def action(**values) -> GateAction:
    return validate(values, GateAction, "run.toml")


def test_each_kind_arrives(web, mail, monkeypatch):
    monkeypatch.setenv("HOOK", web.url)
    monkeypatch.setenv("TOKEN", "s3cret")
    actions = [
        action(kind="webhook", url=web.url, token_variable="TOKEN"),
        action(kind="slack", url_variable="HOOK"),
        action(kind="mail", to=["ann@example.org", "ben@example.org"], smtp=mail.address),
    ]
    assert run_actions(actions, EVENT) == []
    (_, token, event), (_, none, slack) = web.got
    assert (token, none) == ("Bearer s3cret", None)
    assert GateEvent(**event) == EVENT
    assert slack == {"text": EVENT.text()}
    assert "Subject: Gate closed: run.toml" in mail.got
    assert "To: ann@example.org, ben@example.org" in mail.got
    assert "pii: too much" in mail.got


def test_an_open_gate_is_reported_on_request_only(web):
    actions = [action(kind="webhook", url=web.url), action(kind="webhook", url=web.url, on="any")]
    assert run_actions(actions, replace(EVENT, decision="open")) == []
    assert [event["decision"] for _, _, event in web.got] == ["open"]


@pytest.mark.parametrize("status", [302, 307, 404, 500, None])
def test_a_server_that_fails_is_a_warning_and_hides_its_secret(web, monkeypatch, caplog, status):
    web.server.status = status
    monkeypatch.setenv("HOOK", web.url)
    [fault] = run_actions([action(kind="slack", url_variable="HOOK", timeout_seconds=0.5)], EVENT)
    assert fault.startswith("governance.actions.0 (slack): ")
    assert web.url not in fault + caplog.text
    assert len(web.got) == 1, "a redirect is not followed"


@pytest.mark.parametrize(
    "url",
    [
        "{url}/s3cret key",
        "http://s3cret:port/hook",
        "http://[s3cret/hook",
        "http://127.0.0.1:s3cret/hook",
        "https:s3cret",
    ],
)
def test_a_malformed_address_is_named_by_its_variable_alone(web, monkeypatch, caplog, url):
    monkeypatch.setenv("HOOK", url.format(url=web.url))
    [fault] = run_actions([action(kind="slack", url_variable="HOOK")], EVENT)
    assert "the environment variable HOOK does not hold an http or https URL" in fault
    assert "s3cret" not in fault + caplog.text


def test_a_secrets_last_line_end_is_dropped_and_a_malformed_token_is_not_logged(web, monkeypatch, caplog):
    monkeypatch.setenv("HOOK", f"{web.url}\n")
    monkeypatch.setenv("TOKEN", "s3cret\r\n")
    hook = action(kind="slack", url_variable="HOOK", token_variable="TOKEN")
    assert run_actions([hook], EVENT) == []
    assert [(path, token) for path, token, _ in web.got] == [("/hook", "Bearer s3cret")]
    for token in ("s3cret\nX: y", "s3cret key", "s3crèt"):
        monkeypatch.setenv("TOKEN", token)
        [fault] = run_actions([hook], EVENT)
        assert "the environment variable TOKEN holds" in fault
        assert "s3cr" not in fault + caplog.text


@pytest.mark.parametrize(
    ("error", "described"),
    [
        (ValueError("Invalid header value b'Bearer s3cret'"), "ValueError"),
        (OSError("s3cret"), "OSError"),
        (urllib.error.URLError("s3cret"), "URLError"),
        (urllib.error.URLError(ConnectionRefusedError(errno.ECONNREFUSED, "s3cret")), "Connection refused"),
        (smtplib.SMTPAuthenticationError(535, b"s3cret"), "status 535"),
        (http.client.InvalidURL("nonnumeric port: 's3cret'"), "InvalidURL"),
    ],
)
def test_an_error_of_another_library_is_logged_without_its_message(web, monkeypatch, caplog, error, described):
    def fail(*given):
        raise error

    monkeypatch.setattr(gate_actions, "_post", fail)
    [fault] = run_actions([action(kind="webhook", url=web.url)], EVENT)
    assert described in fault
    assert "s3cret" not in fault + caplog.text


def test_the_others_are_run_after_one_that_fails(web, monkeypatch):
    monkeypatch.setenv("EVIL", "file:///etc/passwd")
    actions = [
        action(kind="slack", url_variable="NOT_SET"),
        action(kind="webhook", url_variable="EVIL"),
        action(kind="webhook", url="http://127.0.0.1:9/", timeout_seconds=5),
        action(kind="mail", to=["ann@example.org"], smtp="127.0.0.1:9", timeout_seconds=5),
        action(kind="webhook", url=web.url),
    ]
    faults = run_actions(actions, EVENT)
    assert len(faults) == 4
    assert "environment variable NOT_SET is not set" in faults[0]
    assert "does not hold an http or https URL" in faults[1]
    assert len(web.got) == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "pager"}, "webhook"),
        ({"kind": "slack"}, "needs `url` or `url_variable`"),
        ({"kind": "slack", "url": "http://a", "url_variable": "B"}, "not both"),
        ({"kind": "webhook", "url": "ftp://a"}, "must begin with http"),
        ({"kind": "webhook", "url": "http://a", "to": ["x"]}, "no mail settings"),
        ({"kind": "mail", "to": []}, "needs `to`"),
        ({"kind": "mail", "to": ["x"], "url": "http://a"}, "neither a URL"),
        ({"kind": "mail", "to": ["x"], "smtp": "mail"}, "host:port"),
        ({"kind": "mail", "to": ["x"], "user": "u"}, "require each other"),
        ({"kind": "mail", "to": ["x"], "timeout_seconds": 900}, "60"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_made(values, words):
    with pytest.raises(ConfigError, match=words):
        validate({"actions": [values]}, GovernanceConfig, "run.toml")


@pytest.fixture
def gate(web, monkeypatch, tmp_path):
    """`gate(outcome)`: pass the gate of a run with one action, where `require_open` ends so."""
    actions, tracking = (action(kind="webhook", url=web.url),), TrackingConfig(mode="disabled")
    config = SimpleNamespace(governance=GovernanceConfig(actions=actions), tracking=tracking)
    run = SimpleNamespace(
        config=config,
        journal=lambda root: None,
        gate=lambda root: None,
        keyring=Keyring(config.governance, tmp_path),
        folder=tmp_path,
        path=Path("run.toml"),
        policy=SimpleNamespace(name="strict"),
    )
    artifacts = {"encode": SimpleNamespace(digest="c" * 64, stage="encode")}
    for name in ("teacher_logits", "_refuse_ranks"):
        monkeypatch.setattr(pipeline, name, lambda *given: None)  # the run has no recipe

    def passed(outcome, **values):
        def require_open(*words, record):
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(corpus_gate, "require_open", require_open)
        return corpus_gate.pass_gate(run, artifacts, Runtime(tmp_path, **values))

    passed.given = run, artifacts
    return passed


@pytest.mark.parametrize("status", [200, 500])
def test_a_closed_gate_stays_closed_whatever_the_action_does(web, gate, status):
    web.server.status = status
    closed = GateClosed("pii: too much")
    with pytest.raises(GateClosed) as raised:
        gate(closed)
    assert raised.value is closed
    assert [event["message"] for _, _, event in web.got] == ["pii: too much"]
    assert gate({"verdict": "PASS"}) == {"verdict": "PASS"}
    assert len(web.got) == 1


def test_an_altered_checkpoint_is_a_closed_gate_and_no_open_one(web, gate, monkeypatch):
    """The verdict holds, but what the training would read is not as it was stated."""

    def require_stated(*given):
        raise GateClosed("checkpoint/x: was altered")

    monkeypatch.setattr(corpus_gate, "require_open", lambda *given, record: {"verdict": "PASS"})
    monkeypatch.setattr(pipeline, "require_stated", require_stated)
    run, artifacts = gate.given
    run.config.governance = GovernanceConfig(actions=(action(kind="webhook", url=web.url, on="any"),))
    with pytest.raises(GateClosed, match="was altered"):
        pipeline.training(run, artifacts, Runtime(run.folder))
    assert [(event["decision"], event["message"]) for _, _, event in web.got] == [
        ("closed", "checkpoint/x: was altered")
    ]


@pytest.mark.parametrize("ends", [0, GateClosed.exit_code])
def test_a_gate_that_closes_during_the_training_of_several_ranks_is_reported_once(web, gate, monkeypatch, ends):
    """The launcher reports; its ranks, which also pass the gate, after each restart too, do not."""
    started, outcomes = [], iter([{"verdict": "PASS"}, GateClosed("revoked")])

    def launch(processes, words, **named):
        started.append(words)
        return ends

    def require_open(*given, record):
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(pipeline, "launch", launch)
    monkeypatch.setattr(pipeline, "require_stated", lambda *given: None)  # no checkpoint is made here
    monkeypatch.setattr(pipeline, "weights_origin", lambda *given: None)
    monkeypatch.setattr(pipeline, "training_folder", lambda *given: Path("train"))
    run, artifacts = gate.given
    run.config.governance = GovernanceConfig(actions=(action(kind="webhook", url=web.url, on="any"),))
    run.config.engine = SimpleNamespace(restarts=1)
    monkeypatch.setattr(corpus_gate, "require_open", require_open)
    with pytest.raises(GateClosed, match="revoked"):
        pipeline.training(run, artifacts, Runtime(run.folder), 2, ["run.toml"])
    assert [event["decision"] for _, _, event in web.got] == ["open", "closed"]
    [words] = started
    assert words == ["train", "run.toml", "--set", "governance.actions=[]"]
    values = {"governance": {"actions": [{"kind": "slack"}]}}
    apply_override(values, words[-1])
    assert values == {"governance": {"actions": []}}


def test_shards_that_the_ranks_found_altered_are_reported_by_their_launcher(web, gate, monkeypatch):
    monkeypatch.setattr(pipeline, "launch", lambda *given, **named: AlteredFile.exit_code)
    monkeypatch.setattr(pipeline, "training_folder", lambda *given: Path("train"))
    monkeypatch.setattr(dataset, "altered_shards", lambda *given: ["a.tokens: is missing"])
    run, artifacts = gate.given
    run.config.engine = SimpleNamespace(restarts=1)
    with pytest.raises(AlteredFile, match=r"a\.tokens: is missing"):
        pipeline._launch(run, artifacts, Runtime(run.folder), 2, [])
    assert [event["decision"] for _, _, event in web.got] == ["closed"]


def test_ranks_that_find_the_gate_closed_leave_a_report_though_the_verdict_opens(tmp_path, monkeypatch, capsys):
    """A rank may find at a restart that a checkpoint is not as it was stated; the verdict knows nothing of it."""
    folder = prepare(tmp_path / "project")
    monkeypatch.setattr(pipeline, "launch", lambda *given, **named: GateClosed.exit_code)
    assert main(["run", *words_of(folder), "--nproc", "2", "--set", "engine.micro_batch_size=2"]) == 77
    assert "found the gate closed" in capsys.readouterr().err
    assert list((folder / "root" / "report").glob("*/report.html"))


def test_one_rank_reports_and_a_look_up_does_not(web, gate, monkeypatch):
    with pytest.raises(GateClosed):
        gate(GateClosed("no"), make=False)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(GateClosed):
        gate(GateClosed("no"))
    assert web.got == []


def test_a_gate_that_a_command_closes_is_reported_by_every_kind(web, mail, tmp_path, monkeypatch, capsys):
    """The run's file names the actions; the corpus and its results close the gate, and it stays closed."""
    folder = prepare(tmp_path / "project", checked=False)
    demand(folder, FAILS)
    monkeypatch.setenv("HOOK", web.url)
    with (folder / "run.toml").open("a") as run:
        for values in (
            {"kind": "webhook", "url": web.url}, {"kind": "slack", "url_variable": "HOOK"},
            {"kind": "mail", "to": ["ann@example.org"], "smtp": mail.address},
        ):  # fmt: skip
            lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
            run.write("\n".join(["\n[[governance.actions]]", *lines, ""]))
    capsys.readouterr()
    assert main(["governance", "check", *words_of(folder)]) == 77
    (_, _, event), (_, _, slack) = web.got
    assert (event["decision"], event["corpus"]) == ("closed", verdict_of(folder)[2].digest)
    assert "sources.few" in event["message"]
    assert event["message"] in capsys.readouterr().err
    letter = email.message_from_string("\n".join(mail.got), policy=email.policy.default)
    assert letter["Subject"] == f"Gate closed: {event['run']}"
    assert letter.get_content().strip() == slack["text"].strip()
