"""Findings of a report: faults of a run, problems in order, two runs side by side, all runs of a folder."""

import copy
import json
import re
import shutil
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.cli.main import main
from governance.errors import ManifestError, MissingInput
from governance.files import append_line
from governance.manifest import Manifest
from governance.reports.compare import _flat, comparison, comparison_lines, comparison_page, side_of
from governance.reports.facts.faults import fault_facts, faults
from governance.reports.facts.problems import first_look
from governance.reports.facts.report_facts import ReportInputs
from governance.reports.index import index_page, runs_below
from governance.reports.recompute import recompute
from governance.reports.report import ReportSection, report
from governance.reports.sections.corpus_sections import checks
from governance.reports.sections.page_one import waste_clause
from governance.stage import Runtime
from tests.governance.test_reports_page import Page, corpus, ledger, trained, verdict_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of three roots: a trained one, a copy of it with another loss, and one whose gate is closed."""
    folder = tmp_path_factory.mktemp("runs")
    for name, steps in (("a", 600), ("b/deep", 400)):
        root = folder / name
        made = corpus(root)
        made["train"] = trained(root, made, steps)
        ledger(root)
        report(made, verdict_of(made, "WAIVED"), root, Runtime(root))
    root = folder / "closed"
    made = corpus(root, passing=False)
    report(made, verdict_of(made, "BLOCK"), root, Runtime(root))
    return folder


def found_of(root):
    return json.loads(next(root.glob("report/*/report.json")).read_bytes())


def record(root, *lines):
    made = Manifest(stage="train", version=1, key="0" * 64, config={}, inputs=(), outputs=(), stats={}, run={})
    for line in lines:
        append_line(root / made.folder / "metrics.jsonl", json.dumps(line))
    return made


def step(attempt, number, event="step", **values):
    return {"event": event, "attempt": attempt, "step": number, **values}


def test_attempts_say_how_far_they_came_and_what_was_computed_again(tmp_path):
    steps = [step(1, 0, "start"), *(step(1, n) for n in range(1, 8)), step(2, 5, "start"),
             *(step(2, n) for n in range(6, 10)), step(2, 9, "left"), step(3, 9, "start"), step(3, 10)]  # fmt: skip
    found = fault_facts(record(tmp_path, *steps), tmp_path)
    assert found["attempts"] == [
        {"attempt": 1, "from": 0, "to": 7, "lost": 2, "left": False},
        {"attempt": 2, "from": 5, "to": 9, "lost": 0, "left": True},
        {"attempt": 3, "from": 9, "to": 10, "lost": 0, "left": False},
    ]


def test_a_step_left_out_by_two_attempts_counts_once(tmp_path):
    lines = [
        *(step(attempt, 40, "skipped", reason="spike", z=8.5 + attempt / 2) for attempt in (1, 2)),
        step(2, 41, "skipped", reason="loss", z=None),
        step(2, 44, "skipped", reason="spike", z="nan"),
    ]
    found = fault_facts(record(tmp_path, *lines), tmp_path)["skipped"]
    assert found == [
        {"reason": "loss", "count": 1, "first": 41, "last": 41, "greatest_z": None},
        {"reason": "spike", "count": 2, "first": 40, "last": 44, "greatest_z": 9.5},
    ]
    page = str(faults({"faults": fault_facts(record(tmp_path), tmp_path), "energy": {"wasted_by_cause": {}}}))
    assert "loss spike" in page
    assert "non-finite" in page


def page_of(root, *lines):
    found = {"faults": fault_facts(record(root, *lines), root), "energy": {"wasted_by_cause": {}}}
    return found["faults"], re.sub(r"<[^>]+>", " ", str(faults(found)))


def test_a_verdict_that_stopped_the_training_is_among_the_faults(tmp_path):
    verdict = {"reason": "too many", "skipped": 9, "window": 128, "most_skips": 8, "by_reason": {"loss": 1, "spike": 8},
               "steps": [32, 40], "documents": [f"d{n}" for n in range(9)]}  # fmt: skip
    lines = [step(1, 0, "start"), step(1, 40), step(1, 40, "diverged", **verdict), step(2, 30, "start"), step(2, 99)]
    found, page = page_of(tmp_path, *lines)
    kept = {name: verdict[name] for name in ("reason", "skipped", "window", "by_reason", "documents")}
    assert found["diverged"] == [{"attempt": 1, "step": 40, **kept}]
    assert "more skipped steps than train.skip.most_skips allows" in page
    assert "9 of 128" in page
    assert "non-finite loss: 1, loss spike: 8" in page
    assert "d0, d1, d2, d3, d4, d5 and 3 more" in page
    assert page.count("stopped: diverged") == 1  # of the two attempts


def test_the_own_work_of_ranks_is_of_the_newest_attempt_and_weighed_by_steps(tmp_path):
    def ranks(attempt, at, steps, *seconds):
        return step(attempt, at, "ranks", steps=steps, seconds=list(seconds), slowest=0)

    lines = [step(1, 1), ranks(1, 50, 50, 9.0, 9.0), ranks(2, 100, 10, 1.0, 1.0, 4.0), ranks(2, 150, 30, 1.0, 1.0, 8.0)]
    found, page = page_of(tmp_path, *lines)
    assert found["own_work"] == [
        {"rank": 2, "seconds": 7.0, "ratio": 7.0},
        {"rank": 0, "seconds": 1.0, "ratio": 1.0},
        {"rank": 1, "seconds": 1.0, "ratio": 1.0},
    ]
    assert "seconds per step" in page
    assert "seconds per step" not in page_of(tmp_path / "alone", step(1, 1))[1]


def test_a_training_that_never_finished_is_reported_by_its_record_and_can_be_verified(tmp_path):
    """A diverged training never becomes an artifact: its verdict would appear in no report."""
    made, begun = corpus(tmp_path), "train/0123456789abcdef"
    ledger(tmp_path)

    def output(line):
        append_line(tmp_path / begun / "metrics.jsonl", json.dumps(line))

    def reported(**given):
        written = report(made, verdict_of(made, "PASS"), tmp_path, Runtime(tmp_path), extra=ReportInputs(**given))
        folder = tmp_path / written.folder
        return written, json.loads((folder / "report.json").read_bytes()), (folder / "report.html").read_text()

    assert "Not trained yet" in reported(begun=begun)[2]  # no record: nothing was begun
    for line in (step(1, 0, "start"), step(1, 31), step(1, 32)):
        output(line)
    running, found, page = reported(begun=begun)
    assert "Training started and is not finished" in page
    assert "Attempt 1 reached step 32; attempts and faults are listed below" in page
    assert found["faults"]["diverged"] == []
    output(step(1, 32, "skipped", reason="loss", z=0.0))
    verdict = {"reason": "not finite", "skipped": 3, "window": 128, "by_reason": {"loss": 3}, "documents": ["d1"]}
    output(step(1, 32, "diverged", **verdict))
    stopped, found, page = reported(begun=begun)
    assert stopped.key != running.key  # the record has grown
    assert found["faults"]["diverged"] == [{"attempt": 1, "step": 32, **verdict}]
    assert "Training diverged and was stopped" in [row["what"] for row in found["first"]]
    assert "Attempt 1 reached step 32 and was stopped because it diverged" in page
    [entry] = [entry for entry in found["evidence"]["entries"] if entry["kind"] == "record"]
    assert entry["path"] == f"{begun}/metrics.jsonl"
    assert entry["id"] in found["evidence"]["of"]["/faults"]["from"]
    output(step(2, 30, "start", steps=40))  # it continues
    for written in (running, stopped):
        assert recompute(written, tmp_path).mismatches == ()
    output(step(2, 40))  # all steps were computed, and then an owner refused
    extra = ReportInputs(begun=begun)
    page = tmp_path / report(made, verdict_of(made, "BLOCK"), tmp_path, Runtime(tmp_path), extra=extra).folder
    words = (page / "report.html").read_text()
    assert "A training computed all of its 40 steps before this verdict" in words
    assert "The verdict is now BLOCK: nothing further may be trained" in words
    assert "is not finished" not in words
    (tmp_path / begun / "metrics.jsonl").write_text("{}\n")
    assert any("/faults" in fault.place for fault in recompute(stopped, tmp_path).mismatches)
    with pytest.raises(ValueError, match="begun"):
        ReportSection(verdict_sha256="", begun="train/../elsewhere00")
    made["train"] = trained(tmp_path, made)
    assert reported(begun=begun)[1]["begun"] is None  # the report is about a finished one


def test_a_run_without_faults_says_so(tmp_path):
    found = {"faults": fault_facts(record(tmp_path, step(1, 0, "start"), step(1, 1)), tmp_path)}
    page = str(faults({**found, "energy": {"wasted_by_cause": {}}}))
    assert "Whether an attempt failed or hung is unknown" in page
    assert "no attempt failed" not in page
    none = {
        "finished": False,
        "skipped": [],
        "diverged": [],
        "attempts": [],
        "planned": None,
        "ended": [],
        "stragglers": [],
        "own_work": [],
    }
    assert fault_facts(None, tmp_path) == {**none, "ledger": False}
    ledger(tmp_path)
    found["faults"] |= {"ledger": fault_facts(None, tmp_path)["ledger"]}
    page = str(faults({**found, "energy": {"wasted_by_cause": {}}}))
    assert "no attempt failed, nothing hung" in page
    assert "unknown" not in page


@pytest.mark.parametrize(
    ("total", "words"),
    [
        ({"wasted": None, "joules": 1000.0}, "the wasted energy is unknown"),
        ({"wasted": 49.0, "joules": 1000.0}, "4.9 % of the energy was wasted"),
        ({"wasted": 0.0, "joules": 1000.0}, "no energy was wasted"),
    ],
)
def test_without_a_finding_the_waste_is_reported_as_it_is(total, words):
    assert waste_clause(total) == words


def test_the_largest_problem_comes_first(runs):
    closed, open_one = found_of(runs / "closed"), found_of(runs / "a")
    assert closed["first"][0]["what"] == "The gate is closed: BLOCK"
    assert "licences.allowed" in closed["first"][0]["detail"]
    assert open_one["first"][0]["what"] == "1 failure waived"
    output = [row["what"] for row in open_one["first"]]
    assert output.index("1 attempt failed") < output.index("1 non-blocking check did not pass")


def test_each_problem_that_is_planted_is_found_and_what_is_mended_is_not(runs):
    found = found_of(runs / "a")
    found["verdict"]["waivers"], found["summary"]["verdict"] = [], "PASS"
    for row in found["checks"]:
        row |= {"status": "pass", "waived": False}
    for row in found["sources"]:
        row["fate"] = "kept"
    found["faults"] = fault_facts(None, runs) | {"ledger": True}
    found["energy"]["estimated"] = False
    found["energy"]["total"] |= {"joules": 1000.0, "wasted": 49.0}
    assert first_look(found) == []
    plants = [
        ("of the documents were removed", lambda f: f["summary"].update(documents_kept=1)),
        ("The energy is unknown", lambda f: f["energy"]["total"].update(joules=None)),
        ("not in the corpus", lambda f: f["sources"][0].update(fate="refused: licence", documents_kept=0)),
        ("non-blocking", lambda f: next(row for row in f["checks"] if "gender" in row["gate"]).update(status="fail")),
        ("slower than the others", lambda f: f["faults"]["stragglers"].append({"rank": 1, "ratio": 2.0})),
        ("2 updates skipped", lambda f: f["faults"]["skipped"].append({"reason": "spike", "count": 2})),
        ("1 attempt failed", lambda f: f["faults"]["ended"].append({"stage": "train", "cause": "hang", "count": 1})),
        (
            "Training diverged",
            lambda f: f["faults"]["diverged"].append({"attempt": 1, "step": 9, "reason": "not finite"}),
        ),
        ("of the energy was wasted", lambda f: f["energy"]["total"].update(joules=1000.0, wasted=51.0)),
        ("1 failure waived", lambda f: f["verdict"]["waivers"].append({"gate": "g"})),
        ("1 critical check did", lambda f: next(r for r in f["checks"] if "parity" in r["gate"]).update(status="fail")),
        ("The gate is closed: ERROR", lambda f: f["summary"].update(verdict="ERROR")),
    ]
    for count, (words, plant) in enumerate(plants, 1):
        plant(found)
        output = [row["what"] for row in first_look(found)]
        assert words in output[0], output
        if words == "not in the corpus":
            assert "refused: licence CC-BY-SA-4.0 (40,000)" in first_look(found)[0]["detail"]
        assert len(output) == count - (count > 8)  # wasted energy is no longer unknown


def test_documents_without_a_copy_are_removed_by_the_mixture_alone(runs):
    """`encode` and `pack` count them, too, and removed nothing."""
    found = found_of(runs / "a")
    found["summary"].update(documents_in=20, documents_kept=8)
    found["funnel"] = [
        {"stage": stage, "by_source": {}, "removed": {"mix_quota": 12}} for stage in ("mix", "encode", "pack")
    ]
    [cut] = [one for one in first_look(found) if "of the documents were removed" in one["what"]]
    assert cut["detail"] == "12 of them by mix: mix quota"


def test_many_results_are_reported_gate_by_gate_and_none_that_failed_is_lost(runs):
    found = found_of(runs / "a")
    row = {"gate": "tokens.parity", "status": "pass", "observed": 0.25, "rows": 7, "unexpected": 0, "detail": "",
           "waived": False}  # fmt: skip
    passing = [{**row, "subject": f"shard{n}", "observed": n / 1000} for n in range(1000)]
    failing = [{**row, "subject": f"bad{n}", "status": "fail"} for n in range(13)]
    page = Page(checks({**found, "checks": [*failing, *passing]}))
    output = " ".join(page.words)
    assert "1,000 subjects" in output
    assert "0 – 0.999" in output
    assert "7,000" in output
    assert all(f"bad{n}" in output for n in range(10))
    assert "3 subjects" in output
    heads, first, failed, rest, passed = 3, 3, 10, 1, 1
    assert len(page.named("tr")) == heads + first + failed + rest + passed


@given(st.recursive(st.integers() | st.text(max_size=3), lambda inner: st.dictionaries(
    st.text("abc", min_size=1, max_size=3), inner, max_size=4), max_leaves=12))  # fmt: skip
def test_settings_are_flattened_without_loss(value):
    def put(target, names, leaf):
        for name in names[:-1]:
            target = target.setdefault(name, {})
        target[names[-1]] = leaf

    whole = {"x": value}
    built = {}
    for name, leaf in _flat(whole):
        put(built, name.split("."), leaf)
    assert built == whole


def test_two_runs_are_set_side_by_side(runs):
    sides = [side_of(*found) for found in (_side(runs / "a", "a"), _side(runs / "b/deep", "b"))]
    assert comparison(sides[0], sides[0])["changed"] == []
    assert {row[3] for rows in comparison(sides[0], sides[0])["sections"].values() for row in rows} == {
        "equal",
        "unknown",
    }
    other = copy.deepcopy(sides[1])
    other.settings["clean.min_words"] = 50
    other.found["energy"]["checkpoints"] = [{"with_ancestors": 1.0}, {"with_ancestors": 7200.0}]
    other.found["training"]["curves"]["tokens_per_second"] = [[1, 10.0], [2, 30.0]]
    found = comparison(sides[0], other)
    assert ["steps", "600", "400", "-200 (-33.33%)"] in found["sections"]["Loss"]
    assert ["clean.min_words", "–", "50"] in found["changed"]
    assert found["sections"]["Throughput"][0][2] == "20"
    assert found["sections"]["Energy"][0][::2] == ["last checkpoint and its inputs, at least", "2 Wh"]
    assert comparison(other, other)["sections"]["Energy"][0][0] == "last checkpoint and its inputs"
    output = "\n".join(comparison_lines(found))
    assert re.search(r"^steps +600 +400 +-200 \(-33.33%\)$", output, re.MULTILINE)
    page = Page(comparison_page(found))
    assert len(page.named("h1")) == 1
    assert not page.named("script")
    assert next(drawing["aria-label"] for drawing in page.named("svg")).startswith("Training loss")


def _side(root, name):
    from governance.reports.recompute import newest_report

    return newest_report(root), root, name


def test_the_commands_write_pages_and_lines(runs, tmp_path, capsys):
    page = tmp_path / "two.html"
    assert main(["report", "compare", str(runs / "a"), str(runs / "closed"), "--html", str(page)]) == 0
    output = capsys.readouterr().out
    assert re.search(r"^verdict +WAIVED +BLOCK +differs$", output, re.MULTILINE)
    assert re.search(r"^steps +600 +unknown +differs$", output, re.MULTILINE)
    Page(page.read_text(encoding="utf-8"))
    assert main(["report", "index", str(runs)]) == 0
    output = capsys.readouterr().out
    assert [line.split()[0] for line in output.splitlines()[1:4]] == ["closed", "b/deep", "a"]
    text = (runs / "index.html").read_text(encoding="utf-8")
    links = [attributes["href"] for attributes in Page(text).named("a") if not attributes["href"].startswith("#")]
    assert len(links) == 3
    assert all((runs / link).is_file() for link in links)
    assert main(["report", "index", str(tmp_path)]) == MissingInput.exit_code


def test_a_link_leads_to_a_folder_of_any_name(runs, tmp_path):
    shutil.copytree(runs / "closed", tmp_path / "50% #1?a b")
    page = index_page(runs_below(tmp_path, tmp_path), "all")
    [link] = [attributes["href"] for attributes in Page(page).named("a") if not attributes["href"].startswith("#")]
    parts = urlsplit(link)
    assert (parts.query, parts.fragment) == ("", "")
    assert (tmp_path / unquote(parts.path)).is_file()
    assert "1 run, each with its newest report" in page
    [row] = runs_below(tmp_path, tmp_path)
    unknown = {**row, "summary": {**row["summary"], "energy_low_joules": None, "energy_high_joules": None}}
    assert "unknown – unknown" not in index_page([unknown], "all")


def test_an_index_passes_over_what_it_cannot_read(runs, tmp_path, caplog):
    shutil.copytree(runs, tmp_path / "copy")
    broken = next((tmp_path / "copy" / "a").glob("report/*/manifest.json"))
    broken.write_text("{")
    rows = runs_below(tmp_path / "copy", tmp_path)
    assert {row["name"] for row in rows} == {"b/deep", "closed"}
    assert "a is skipped" in caplog.text
    assert "BLOCK" in index_page(rows, "copy")
    with pytest.raises(ManifestError):
        side_of(*_broken_side(tmp_path / "copy" / "closed"))


def _broken_side(root):
    manifest, place, name = _side(root, "x")
    (place / manifest.folder / "report.json").write_text("{")
    return manifest, place, name
