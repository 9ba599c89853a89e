"""Synthetic text between starts: seeds as they are now, budgets that no start forgets, keys that stay secret."""

import json
import threading

import pytest

from assay.takedown import find_documents
from data_pipeline.config import DataConfig
from data_pipeline.ingest import IngestConfig, ingest
from data_pipeline.synthetic import endpoint, synthesize
from data_pipeline.synthetic.prompts import Listed, Request, TokenBounds
from data_pipeline.synthetic.spending import TeacherBudget
from governance.config import validate
from governance.errors import BudgetReached, ConfigError, MissingInput
from governance.gate.verdict import GovernanceConfig, Keyring
from governance.lineage.attest import KeySigner
from governance.signing.dsse import private_key
from governance.stage import Runtime
from tests.data_pipeline.teacher_server import answer, teacher
from tests.data_pipeline.test_synthetic import NEWS, SEEDS, artifact, asked, folder, made, source, tales

__all__ = ["folder"]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(endpoint, "_FIRST_WAIT", 0.01)


def seeds_of_texts(manifest, folder):
    return {one.text.rpartition("\n")[2]: json.loads(one.columns)["seeds"] for one in tales(manifest, folder / "root")}


def test_reused_answers_name_the_seeds_of_now(folder):
    with teacher() as server:
        made(source(server), folder)
        (folder / "seeds.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in SEEDS[1:]))
        manifest = made(source(server), folder)  # the first was taken down
        places = enumerate(SEEDS[1:])
        assert seeds_of_texts(manifest, folder) == {text: [f"news/seeds.jsonl#{place}"] for place, text in places}
        [written] = [one for one in tales(manifest, folder / "root") if SEEDS[2] in one.text]
        found = find_documents("news/seeds.jsonl#1", {folder / "root": [manifest]})
        assert found.fates == (f"{written.id}: written by teacher-1-2026 from news/seeds.jsonl#1",)
        press = NEWS.model_copy(update={"name": "press"})
        renamed = (press, source(server, seeds="press"))
        manifest = ingest(renamed, IngestConfig(), folder, Runtime(folder / "root"))
        assert seeds_of_texts(manifest, folder)[SEEDS[3]] == ["press/seeds.jsonl#2"]
        assert len(server.bodies) == len(SEEDS), "nothing is paid for again"


def test_all_seeds_of_a_prompt_are_named(folder):
    with teacher() as server:
        manifest = made(source(server, seed_characters=3), folder)
        assert len(server.bodies) == 1
    [written] = tales(manifest, folder / "root")
    assert json.loads(written.columns)["seeds"] == [f"news/seeds.jsonl#{place}" for place in range(len(SEEDS))]
    fate = f"{written.id}: written by teacher-1-2026 from news/seeds.jsonl#5"
    assert find_documents("news/seeds.jsonl#5", {folder / "root": [manifest]}).fates == (fate,)


def test_seeds_are_read_twice(folder, monkeypatch):
    passes, read = [], synthesize.requests
    monkeypatch.setattr(synthesize, "requests", lambda *given: passes.append(given) or read(*given))
    with teacher() as server:
        asked(source(server), folder)
        assert len(passes) == 2
        asked(source(server, licence="MIT"), folder)
        assert len(passes) == 3, "once where every answer is there"


@pytest.mark.parametrize("key", ["sk-planted\nsk-second", "sk-planted 4242", "sk-pl\xe4nted"])
def test_a_key_that_no_header_carries_is_not_shown(folder, monkeypatch, key):
    monkeypatch.setenv("TEACHER_KEY", key)
    with teacher() as server:
        with pytest.raises(ConfigError, match=r"TEACHER_KEY .key_variable. holds a space, a line break") as caught:
            made(source(server, key_variable="TEACHER_KEY"), folder)
        assert server.bodies == []
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://user:pa55word@localhost/v1",
        "user:pa55word@localhost/v1",
        "https://host/v1?api-key=pa55word",
        "https://host/v1#pa55word",
        "https://host:pa55word/v1",
        "https://host/v1 pa55word",
    ],
)
def test_credentials_in_the_endpoint_are_refused_and_not_shown(url):
    values = {**source().model_dump(mode="json", exclude_unset=True), "endpoint": url}
    with pytest.raises(ConfigError, match="endpoint is not a base URL") as caught:
        validate({"sources": [NEWS.model_dump(mode="json"), values]}, DataConfig, "run.toml")
    assert "pa55word" not in str(caught.value)


def test_an_echoed_key_is_replaced_however_it_is_escaped(folder, monkeypatch):
    key = 'sk-a/b"c+\\d'
    monkeypatch.setenv("TEACHER_KEY", key)
    once = json.dumps(key)[1:-1]
    spelled = [
        key,
        once,
        once.replace("/", "\\/"),
        json.dumps(once)[1:-1].replace("/", "\\\\/"),
        "".join(f"\\u{ord(one):04X}" for one in key),
        "sk-a%2Fb%22c%2b%5Cd",
    ]

    def plan(number, body):
        return 200, {}, json.dumps(answer(body)).replace("Tale ", f"Tale <{spelled[number]}> ", 1).encode()

    with teacher(plan) as server:
        made(source(server, limit=len(spelled), concurrency=1, key_variable="TEACHER_KEY"), folder)
    [path] = artifact(folder).files("answers", folder / "root")
    bodies = [json.loads(line)["body"] for line in path.read_bytes().splitlines()]
    assert [body.partition("<")[2].partition(">")[0] for body in bodies] == ["[key]"] * len(spelled)


def test_tries_without_an_answer_count_as_tokens_across_starts(folder):
    stall = threading.Event()
    most = 64 + len(f"Retell:\n{SEEDS[0]}") + 16
    with teacher(lambda number, body: stall.wait(30) and None) as server:
        one = source(server, limit=1, max_tokens=16, timeout_seconds=0.3, retries=3, budget_tokens=2 * most - 1)
        for _ in range(3):
            with pytest.raises(BudgetReached, match=rf"1 of 1,000 requests, {most} of {2 * most - 1} tokens"):
                asked(one, folder)
        assert len(server.bodies) == 1, "a second might have exceeded the budget"
        stall.set()
        asked(one.model_copy(update={"budget_tokens": 2 * most, "timeout_seconds": 20.0}), folder)
        assert len(server.bodies) == 2
    assert not list((folder / "root").glob("synthetic/*/tries.log"))


def altered_lines(lines, how):
    match how:
        case "repeated":
            return [*lines, lines[1], lines[1]]  # the line of a refusal, which takes a try's tokens back
        case "planted":
            return [*lines, json.dumps({"number": 3, "note": {"request": "a", "sent": -9, "open": -9}})]
        case "changed":
            return [lines[0], lines[1].replace('"number":1', '"number":3'), *lines[2:]]
        case "removed":
            return [lines[0], *lines[2:]]
        case "not lines":
            return ["[]", "3", "{}", '{"number":9,"note":null}', *lines]
        case "last":
            return [lines[0], *(line.replace('"number":', '"number":1') for line in lines[1:])]
        case "last is another":
            return [*lines[:-1], lines[1]]
        case "every":
            return [line.replace('"payload":"', '"payload":"e') for line in lines]
        case "torn":
            return [line[:-1] for line in lines]
        case "without numbers and notes":
            return ['{"request":"a","sent":1,"open":1}', '{"request":"a","sent":0,"open":-1}', lines[2]]
    return lines


@pytest.mark.parametrize(
    ("how", "tries", "open_"),
    [
        ("untouched", 2, 1),
        ("repeated", 4, 3),
        ("planted", 3, 2),
        ("changed", 3, 3),
        ("removed", 3, 3),
        ("not lines", 6, 5),
        ("last", 3, 3),
        ("last is another", 2, 1),
        ("every", 3, 3),
        ("torn", 3, 3),
        ("without numbers and notes", 3, 3),
        ("key changed", 3, 3),
    ],
)
def test_no_altered_line_gives_a_budget_back(tmp_path, how, tries, open_):
    for name in ("key", "new"):
        private_key(tmp_path / f"{name}.pem")
    signer = KeySigner(Keyring(GovernanceConfig(signing_key="key.pem"), tmp_path))
    log = tmp_path / "synthetic" / "0123" / "tries.log"
    bounds = TokenBounds(100, 10)
    request = Request("a", "seed", "", 1, {}, bounds)
    with teacher() as server:
        one = source(server)
    sending = TeacherBudget(one, log, signer)
    sending.note_sent(request)
    sending.note_refused(request)
    sending.note_sent(request)
    lines = log.read_text("utf-8").splitlines()
    log.write_text("".join(f"{line}\n" for line in altered_lines(lines, how)), "utf-8")
    other = log.parents[1] / "4567" / "tries.log"  # a copy for another artifact
    other.parent.mkdir()
    other.write_text(lines[1], "utf-8")  # it counts as one more
    if how == "key changed":
        signer = KeySigner(Keyring(GovernanceConfig(signing_key="new.pem"), tmp_path))
    found = TeacherBudget(one, log, signer)
    found.recall(tmp_path, {"a": Listed(bounds, ["seed"])}, ())
    assert (found.tries, found.tokens_in, found.tokens_out) == (tries + 1, 100 * (open_ + 1), 10 * (open_ + 1))
    found.note_sent(request)
    again = TeacherBudget(one, log, signer)
    again.recall(tmp_path, {"a": Listed(bounds, ["seed"])}, ())
    assert again.tries == tries + 2


def test_requests_that_did_not_leave_are_not_counted(folder):
    with teacher() as server:
        one = source(server, limit=1, budget_requests=1, retries=3)
    with pytest.raises(MissingInput, match="refused"):  # the server is gone
        asked(one, folder)
    with teacher() as server:
        assert asked(one.model_copy(update={"endpoint": server.url}), folder).stats["texts"] == 1


def test_the_budget_of_requests_holds_across_starts(folder):
    with teacher(lambda number, body: (500, {}, b"") if number < 2 else None) as server:
        one = source(server, limit=2, budget_requests=2, budget_tokens=400, max_tokens=16)
        for _ in range(3):
            with pytest.raises(BudgetReached, match="2 of 2 requests, 0 of 400 tokens"):
                asked(one, folder)
        assert len(server.bodies) == 2
        assert asked(one.model_copy(update={"budget_requests": 4}), folder).stats["texts"] == 2
        assert len(server.bodies) == 4


class Killed(BaseException):
    """A kill, for a process that lives on."""


def test_a_killed_try_counts(folder, monkeypatch):
    def killed(*given):
        raise Killed

    with teacher() as server:
        one = source(server, limit=1, budget_requests=1)
        monkeypatch.setattr(endpoint, "open_post", killed)
        with pytest.raises(Killed):
            asked(one, folder)
        monkeypatch.undo()
        with pytest.raises(BudgetReached, match="1 of 1 requests"):
            asked(one, folder)
        assert server.bodies == []


def test_torn_refusals_are_tried_again(folder):
    busy = [
        (503, {"Transfer-Encoding": "chunked", "Connection": "close"}, b"9\r\nto"),
        (503, {"Content-Length": "9999"}, b"stalled"),
        (429, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 -0000"}, b""),
        (429, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 +99999999999999"}, b""),
    ]
    with teacher(lambda number, body: busy[number] if number < len(busy) else None) as server:
        one = source(server, limit=1, timeout_seconds=0.5, budget_tokens=1200)
        assert asked(one, folder).stats["texts"] == 1, "a status that is not an answer uses no tokens"
        assert len(server.bodies) == len(busy) + 1
