"""Synthetic text: each answer is paid for once, kills included; every fault of an endpoint is named and kept."""

import contextlib
import datetime
import email.utils
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.config import DataConfig
from data_pipeline.documents import QUARANTINE_SCHEMA, read_documents, read_table
from data_pipeline.ingest import IngestConfig, ingest
from data_pipeline.readers.sources import JsonlSource, SyntheticSource
from data_pipeline.synthetic import answer_log, synthesize
from governance.config import validate
from governance.errors import BudgetReached, ConfigError, MissingInput, PipelineError
from governance.file_digests import Digests
from governance.manifest import read_manifest, verify
from governance.stage import Runtime
from tests.data_pipeline.teacher_server import KEY, answer, teacher

SEEDS = [f"The {word} ran over the hill." for word in ("fox", "hare", "mole", "wren", "newt", "stoat", "vole", "crane")]
FACTS = {"licence": "CC-BY-4.0", "terms": "https://teacher.example/terms", "model": "teacher-1"}
ROOM = {"budget_requests": 1000, "budget_tokens": 1_000_000}
QUICK = {"timeout_seconds": 20.0, "concurrency": 4}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "seeds.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in SEEDS))
    (tmp_path / "retell.txt").write_text("Retell:\n{{text}}")
    return tmp_path


def source(server=None, **values):
    url = server.url if server else "http://127.0.0.1:9/v1"
    given = {"seeds": "news", "template": "retell.txt", "endpoint": url, **FACTS, **ROOM, **QUICK, **values}
    return SyntheticSource(type="synthetic", name="tales", **given)


NEWS = JsonlSource(type="jsonl", name="news", licence="MIT", paths=("seeds.jsonl",))


def made(one, folder, root="root", **runtime):
    return ingest((NEWS, one), IngestConfig(), folder, Runtime(folder / root, **runtime))


def asked(one, folder, root="root"):
    """The artifact of the answers alone."""
    runtime = Runtime(folder / root)
    digests = Digests(runtime)
    return synthesize.list_answers(synthesize.plan(one, (NEWS,), folder, digests, runtime), digests, runtime)[1]


def tales(manifest, root):
    return [one for one in read_documents(manifest.files("documents", root)) if one.source == "tales"]


def faults(manifest, root):
    rows = [
        row for path in manifest.files("quarantine", root) for row in read_table(path, QUARANTINE_SCHEMA).to_pylist()
    ]
    return Counter(row["reason"] for row in rows)


def artifact(folder, root="root"):
    [path] = (folder / root).glob("synthetic/*/manifest.json")
    return read_manifest(path)


def test_answers_become_documents_with_their_lineage(folder, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    with teacher() as server:
        one = source(server, n=2, choices=2, key_variable="TEACHER_KEY", system="Be brief.", seed=7,
                     joules_per_token=0.5, joules_source="vendor, 2026")  # fmt: skip
        manifest = made(one, folder)
        assert [head["Authorization"] for head in server.headers] == [f"Bearer {KEY}"] * len(SEEDS)
        assert {head["path"] for head in server.headers} == {"/v1/chat/completions"}
        assert all(body["seed"] == 7 and body["messages"][0]["content"] == "Be brief." for body in server.bodies)
    found = tales(manifest, folder / "root")
    assert [one.text.rpartition("\n")[2] for one in found] == [text for text in SEEDS for _ in range(2)]
    facts = json.loads(found[2].columns)
    assert facts["teacher"] == "teacher-1-2026"
    assert facts["seeds"] == ["news/seeds.jsonl#1"]
    assert facts["finish_reason"] == "stop"
    assert len(facts["prompt_sha256"]) == 64
    answers = artifact(folder)
    assert answers.as_input() in manifest.inputs
    assert verify(answers, folder / "root") == []
    lineage = manifest.stats["synthetic"]["tales"]
    assert lineage["answered_by"] == {"teacher-1-2026": 8}
    assert lineage["terms"] == FACTS["terms"]
    assert (lineage["tokens_in"], lineage["texts"], lineage["requests"]) == (8 * 7, 16, 8)
    assert lineage["energy"] == {
        "method": "estimate per token",
        "joules": 0.5 * lineage["tokens_out"],
        "source": "vendor, 2026",
    }
    assert not list((folder / "root").glob("synthetic/*/answers.log")), "its answers are in the artifact"
    written = [path.read_bytes() for path in (folder / "root").rglob("*") if path.is_file()]
    assert not any(KEY.encode() in data for data in written), "the key is written nowhere"
    # Everything after is made without the endpoint: another root with these answers, workers, other pace and address.
    (folder / "again").mkdir()
    subprocess.run(["cp", "-a", folder / "root" / "synthetic", folder / "again"], check=True)
    monkeypatch.delenv("TEACHER_KEY")
    offline = one.model_copy(update={"endpoint": "http://127.0.0.1:9/v1", "concurrency": 1, "budget_tokens": 1})
    assert made(offline, folder, "again", workers=2).digest == manifest.digest


def test_prompts_of_files_and_completions(folder):
    rows = [{"prompt": f"Tell of {word} {{{{x}}}}", "unused": 1} for word in ("ice", "sand")]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    with teacher() as server:
        one = source(server, seeds="", template="", prompts=("prompts.jsonl",), api="completions", n=3)
        found = tales(made(one, folder), folder / "root")
        assert len(server.bodies) == 6, "the repeated prompt is not paid for again"
        assert {body["prompt"] for body in server.bodies} == {row["prompt"] for row in rows}, (
            "braces in a value are text"
        )
    assert len(found) == 6
    seeds = {tuple(json.loads(one.columns)["seeds"]) for one in found}
    assert seeds == {
        ("tales/prompts/prompts.jsonl#0", "tales/prompts/prompts.jsonl#2"),
        ("tales/prompts/prompts.jsonl#1",),
    }, "rows with an equal prompt are all named"


@settings(max_examples=4)
@given(first=st.integers(1, 8), second=st.integers(1, 8), torn=st.booleans(), grown=st.booleans())
def test_no_answered_request_is_repeated(first, second, torn, grown):
    """Killed after `first`, then `second` answers: each request is answered once, and the digest is that of one run."""
    with tempfile.TemporaryDirectory() as name, teacher() as server:
        place = Path(name)
        (place / "seeds.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in SEEDS))
        (place / "retell.txt").write_text("Retell:\n{{text}}")
        one = source(server, concurrency=1)
        for stop in (first, second):
            with stopped_after(stop), contextlib.suppress(Killed):
                asked(one.model_copy(update={"limit": 6 if grown else 0}), place)
            if torn:
                for log in (place / "root").glob("synthetic/*/answers.log"):
                    with log.open("ab") as file:
                        file.write(b'{"request":"cut in the mid')
        killed = asked(one, place)
        assert len(server.bodies) == len(SEEDS)
        assert killed.stats["texts"] == len(SEEDS)
        assert asked(one, place, "whole").digest == killed.digest
        assert len(server.bodies) == 2 * len(SEEDS)


class Killed(BaseException):
    """A kill, for a process that lives on."""


@contextlib.contextmanager
def stopped_after(count):
    """Nothing happens after the answer number `count` is on the disk."""
    append, left = answer_log.append, [count]

    def cut(log, one, signer):
        if left[0] <= 0:
            raise Killed
        append(log, one, signer)
        left[0] -= 1
        if left[0] <= 0:
            raise Killed

    synthesize.append = cut
    try:
        yield
    finally:
        synthesize.append = append


def test_a_real_kill_loses_only_what_is_under_way(folder):
    release = threading.Event()

    def plan(number, body):
        if number == 5:
            release.wait(60)

    with teacher(plan) as server:
        one = source(server, concurrency=1)
        code = (
            "import sys, pathlib; sys.path.insert(0, sys.argv[1])\n"
            "from tests.data_pipeline import test_synthetic as t\n"
            "from data_pipeline.readers.sources import SyntheticSource\n"
            "t.made(SyntheticSource.model_validate_json(sys.argv[3]), pathlib.Path(sys.argv[2]))\n"
        )
        words = [sys.executable, "-c", code, str(Path(__file__).parents[2]), str(folder), one.model_dump_json()]
        child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while len(server.bodies) < 6 and time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        release.set()
        manifest = made(one, folder)
        sent = Counter(body["messages"][-1]["content"] for body in server.bodies)
    assert sorted(sent.values()) == [1] * 7 + [2], "the one that was under way"
    assert len(tales(manifest, folder / "root")) == len(SEEDS)


def test_other_settings_pay_for_what_is_new_only(folder):
    with teacher() as server:
        made(source(server, limit=3), folder)
        made(source(server, limit=5, licence="MIT", terms="others"), folder)
        assert len(server.bodies) == 5
        made(source(server, limit=5, n=2), folder)
        assert len(server.bodies) == 10
        made(source(server, limit=5, temperature=0.5), folder)
        assert len(server.bodies) == 15


FAULTY = {
    "answer_not_json": lambda body: b"<html>busy</html>",
    "answer_malformed": lambda body: {"choices": "none", "model": "teacher-1"},
    "other_model": lambda body: answer(body, model="teacher-10"),
    "missing_choices": lambda body: answer(body | {"n": 1}),
    "surplus_choice": lambda body: answer(body | {"n": 3}),
    "empty_answer": lambda body: answer(body, choices=[{"message": {"content": " \n"}}] * 2),
    "text_not_string": lambda body: answer(body, choices=[{"message": {"content": None}}, {"text": 3}]),
}


def test_faulty_answers_are_quarantined_and_nothing_is_lost(folder):
    kinds = list(FAULTY)

    def plan(number, body):
        place = SEEDS.index(body["messages"][-1]["content"].partition("\n")[2])
        return (200, {}, FAULTY[kinds[place]](body)) if place < len(kinds) else None

    with teacher(plan) as server:
        one = source(server, n=2, choices=2)
        manifest = made(one, folder)
        assert len(server.bodies) == len(SEEDS), "an answer that was paid for is not asked for again"
    expected = dict.fromkeys(kinds, 1) | {"empty_answer": 2, "text_not_string": 2}
    assert faults(manifest, folder / "root") == expected
    funnel = manifest.stats["by_source"]["tales"]
    assert funnel["documents_in"] == funnel["documents_kept"] + sum(funnel["removed"].values())
    assert funnel["documents_kept"] == len(tales(manifest, folder / "root")) == 1 + 2 + 2
    answers = b"".join(path.read_bytes() for path in artifact(folder).files("answers", folder / "root"))
    assert b"<html>busy</html>" in answers, "as the endpoint sent it"


def test_what_is_no_character_is_a_fault(folder):
    """As in JSON Lines: neither half a surrogate pair nor bytes that are not UTF-8 are replaced in silence."""

    def plan(number, body):
        reply = json.dumps(answer(body)).encode()
        fox, hare = (word in body["messages"][-1]["content"] for word in ("fox", "hare"))
        spoilt = b"T\xffle" if fox else b"\\ud800Tale"
        return (200, {}, reply.replace(b"Tale", spoilt)) if fox or hare else None

    with teacher(plan) as server:
        manifest = made(source(server, limit=3), folder)
    assert faults(manifest, folder / "root") == {"answer_not_json": 1, "lone_surrogate": 1}
    assert len(tales(manifest, folder / "root")) == 1


def test_a_truncated_answer_is_kept_and_marked(folder):
    def plan(number, body):
        reply = answer(body)
        reply["choices"][0]["finish_reason"] = "length"
        return 200, {}, reply if "fox" in body["messages"][-1]["content"] else answer(body)

    with teacher(plan) as server:
        manifest = made(source(server), folder)
    reasons = [json.loads(one.columns)["finish_reason"] for one in tales(manifest, folder / "root")]
    assert reasons == ["length", *["stop"] * 7]
    assert manifest.stats["by_source"]["tales"]["truncated"] == 1
    assert manifest.stats["synthetic"]["tales"]["truncated"] == 1


def test_refusals_of_one_request_are_answers_that_may_be_asked_again(folder):
    def plan(number, body):
        if "fox" in body["messages"][-1]["content"]:
            return 400, {}, {"error": f"prompt too long for {KEY}"}
        return (503, {}, b"") if number > 3 else None

    with teacher(plan) as server:
        one = source(server, retries=0, concurrency=1)
        with pytest.raises(MissingInput, match="did not answer a request"):
            made(one, folder)
        server.plan = lambda number, body: plan(0, body)
        manifest = made(one, folder)
    assert faults(manifest, folder / "root") == {"answer_refused": 1}
    assert len(tales(manifest, folder / "root")) == len(SEEDS) - 1
    [(_, cost)] = synthesize.expected_costs((NEWS, one), folder, Runtime(folder / "root"))
    assert cost.answered == cost.requests, "the answers are complete: the same command sends nothing"


def test_busy_servers_are_asked_again_when_they_say(folder, monkeypatch):
    monkeypatch.setattr("data_pipeline.synthetic.endpoint._FIRST_WAIT", 0.01)
    when = email.utils.format_datetime(datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=5))
    busy = [(429, {"Retry-After": "0.1"}, b""), (503, {"Retry-After": when}, b""), (500, {}, b"x")]
    busy += [(200, {"Content-Length": "9999", "Connection": "close"}, b'{"cut')]
    with teacher(lambda number, body: busy[number] if number < len(busy) else None) as server:
        manifest = made(source(server, limit=1, timeout_seconds=2.0), folder)
        assert len(server.bodies) == len(busy) + 1
    assert manifest.stats["by_source"]["tales"]["documents_kept"] == 1


def refusals():
    yield "401", (401, {}, {"error": f"no such key {KEY}"}), {"retries": 9}, ConfigError, "TEACHER_KEY to a key"
    yield "404", (404, {}, b"no model"), {"retries": 9}, ConfigError, "Correct endpoint, api or model"
    yield "redirect", (302, {"Location": "http://127.0.0.1:9/"}, b""), {}, ConfigError, "302"
    yield "wait", (429, {"Retry-After": "86400"}, b""), {}, MissingInput, "a wait of 86400 s"
    yield "stall", None, {"retries": 0, "timeout_seconds": 0.3}, MissingInput, "imed out"


@pytest.mark.parametrize(("name", "reply", "values", "kind", "words"), refusals())
def test_a_refusal_names_its_fix_and_keeps_the_answers(folder, monkeypatch, name, reply, values, kind, words):
    stall = threading.Event()
    monkeypatch.setenv("TEACHER_KEY", KEY)

    def plan(number, body):
        if number < 2:
            return None
        if reply is None:
            stall.wait(30)
        return reply

    with teacher(plan) as server:
        one = source(server, concurrency=1, key_variable="TEACHER_KEY", **values)
        with pytest.raises(kind, match=words) as caught:
            made(one, folder)
        stall.set()
        assert KEY not in str(caught.value)
        assert len(server.bodies) == 3
        server.plan = None
        assert len(tales(made(one, folder), folder / "root")) == len(SEEDS)
        sent = Counter(body["messages"][-1]["content"] for body in server.bodies)
    assert sorted(sent.values()) == [1] * 7 + [2]


def test_an_endpoint_that_is_not_there(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(MissingInput, match="refused"):
        made(source(endpoint=url, retries=0), folder)


def test_useless_answers_end_the_stage(folder, monkeypatch):
    monkeypatch.setattr(synthesize, "_HOPELESS", 3)
    with teacher(lambda number, body: (200, {}, answer(body, model="gemma"))) as server:
        with pytest.raises(
            MissingInput, match=r"first 3 answers hold no usable text \(other_model: gemma answered for"
        ):
            made(source(server, concurrency=1), folder)
        assert len(server.bodies) == 3
        server.plan = None
        manifest = made(source(server, answered_models=("gem*", "teacher*")), folder)
        assert len(server.bodies) == len(SEEDS), "those that were paid for are used under the names that are allowed"
    assert len(tales(manifest, folder / "root")) == len(SEEDS)


def test_no_budget_is_exceeded(folder):
    with teacher(lambda number, body: (500, {}, b"") if number == 1 else None) as server:
        with pytest.raises(ConfigError, match=r"budget_requests = 3 is less than the 8 requests"):
            made(source(server, budget_requests=3), folder)
        with pytest.raises(ConfigError, match="less than the prompts alone"):
            made(source(server, budget_tokens=10), folder)
        assert server.bodies == []
        with pytest.raises(BudgetReached, match="8 of 8 requests"):
            made(source(server, budget_requests=8), folder)  # one of them was a 500
        assert len(server.bodies) == 8
        few = source(server, budget_tokens=250, max_tokens=100, temperature=0.1)
        with pytest.raises(BudgetReached, match=r"of 250 tokens.*, \d requests are left"):
            made(few, folder)
        sent = len(server.bodies) - 8
        assert 1 < sent < 8
        priced = few.model_copy(update={"budget_money": 0.0003, "price_out": 2.0, "budget_tokens": 10**6})
        with pytest.raises(BudgetReached, match=r"of 0\.0003 in money"):
            made(priced, folder)
        assert len(tales(made(few.model_copy(update={"budget_tokens": 10**6}), folder), folder / "root")) == 8
        assert len(server.bodies) == 16


def test_the_pace_is_kept(folder, monkeypatch):
    slept = []
    monkeypatch.setattr("data_pipeline.synthetic.endpoint.Endpoint._sleep", lambda self, seconds: slept.append(seconds))
    with teacher() as server:
        made(source(server, requests_per_minute=60.0, concurrency=1), folder)
    assert max(slept) > 5, "eight requests, one a second"


WRONG = [
    ({"licence": ...}, "licence"),
    ({"terms": ...}, "terms"),
    ({"seeds": ""}, "give either seeds"),
    ({"template": ""}, "template is missing"),
    ({"n": 3, "choices": 2}, "choices = 2 does not divide n = 3"),
    ({"api": "completions", "system": "x"}, "system is a message of a chat"),
    ({"joules_per_token": 2.0}, "give both"),
    ({"budget_money": 5.0}, "budget_money needs"),
    ({"endpoint": "teacher.example"}, "endpoint is not a base URL"),
    ({"seeds": "olds"}, "seeds = 'olds' is not a source with texts of its own"),
    ({"key": "sk-1"}, "key"),
]


@pytest.mark.parametrize(("change", "words"), WRONG, ids=[words for _, words in WRONG])
def test_wrong_settings_are_named(change, words):
    values = {**source().model_dump(mode="json", exclude_unset=True), **change}
    values = {name: value for name, value in values.items() if value is not ...}
    with pytest.raises(ConfigError, match=words):
        validate({"sources": [NEWS.model_dump(mode="json"), values]}, DataConfig, "run.toml")


@pytest.mark.parametrize(
    ("files", "values", "words"),
    [
        ({"retell.txt": "Of {{title}}: {{text}}"}, {}, r"has the field \{\{title\}\}.*they have id, language"),
        ({"retell.txt": "Retell."}, {}, "has no field"),
        ({"retell.txt": b"\xff{{text}}"}, {}, "is not UTF-8"),
        ({}, {"template": "gone.txt"}, "gone.txt cannot be read"),
        (
            {"p.jsonl": '{"prompt": "a"}\n{"prompt": null}\n'},
            {"prompts": ("p.jsonl",)},
            "line 2: lacks the value 'prompt'",
        ),
        ({"p.jsonl": '{"prompt": "a"}\n{"pro'}, {"prompts": ("p.jsonl",)}, "line 2: is not JSON"),
        ({"p.jsonl": '{"prompt": "a \\ud800 b"}\n'}, {"prompts": ("p.jsonl",)}, "line 1: 'prompt' has half of a surr"),
        ({}, {"prompts": ("q.jsonl",)}, "q.jsonl"),
        ({"p.jsonl": "\n"}, {"prompts": ("p.jsonl",)}, "has no seed"),
        ({}, {"key_variable": "NO_SUCH_KEY"}, "NO_SUCH_KEY .key_variable. holds no key"),
    ],
)
def test_wrong_files_are_named_before_anything_is_sent(folder, files, values, words):
    for name, text in files.items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    if "prompts" in values:
        values = {"seeds": "", "template": "", **values}
    with teacher() as server:
        with pytest.raises(PipelineError, match=words):
            made(source(server, **values), folder)
        assert server.bodies == []


def test_a_look_up_sends_nothing(folder):
    with teacher() as server:
        with pytest.raises(MissingInput, match="synthetic: not made yet"):
            made(source(server), folder, make=False)
        assert server.bodies == []
        digest = made(source(server), folder).digest
        assert made(source(server), folder, make=False).digest == digest
        (folder / "seeds.jsonl").rename(folder / "gone")
        sealed = ingest((NEWS, source(server)), IngestConfig(), folder, Runtime(folder / "root", make=False))
        assert sealed.digest == digest, "the sealed documents, without their seeds"
        assert len(server.bodies) == len(SEEDS)


def test_the_cost_is_known_before(folder):
    with teacher() as server:
        made(source(server, limit=3), folder)
        runtime = Runtime(folder / "root")
        one = source(server, price_in=1.0, price_out=10.0, max_tokens=50)
        [(_, cost)] = synthesize.expected_costs((NEWS, one), folder, runtime)
        assert (cost.requests, cost.answered, cost.most_out) == (8, 0, 400)
        [(_, cost)] = synthesize.expected_costs((NEWS, source(server)), folder, runtime)
        assert (cost.requests, cost.answered) == (8, 3)
        prompts = sum(len(f"Retell:\n{text}") for text in SEEDS[3:]) / 4
        assert prompts <= cost.tokens_in <= prompts + 5
        assert len(server.bodies) == 3
