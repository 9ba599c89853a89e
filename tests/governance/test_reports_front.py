"""Page one: run, model, verdict with reason and signer, energy and CO2e, waste, three findings."""

import json
import re

import pytest

from governance.energy.factors import Factor, Factors
from governance.reports.facts.problems import first_look
from governance.reports.facts.report_facts import ReportInputs, summary
from governance.reports.html.markup import size
from governance.reports.report import report
from governance.reports.sections.energy_sections import grams
from governance.reports.sections.model_words import family, loss_unit, model_line, parameters
from governance.reports.sections.page_one import front, meaning, reasons, rules, signer
from governance.stage import Runtime
from tests.governance.test_reports_page import Page, corpus, ledger, trained, verdict_of

FACTORS = Factors(grid=Factor(value=100, low=50, high=200, source="a table", year=2025))


def reported(root, word, passing=True, with_training=True):
    made = corpus(root, passing)
    if with_training:
        made["train"] = trained(root, made)
    ledger(root)
    folder = root / report(made, verdict_of(made, word), root, Runtime(root), extra=ReportInputs(FACTORS)).folder
    html = (folder / "report.html").read_text(encoding="utf-8")
    return json.loads((folder / "report.json").read_bytes()), re.search(r"<header>.*?</header>", html, re.DOTALL)[0]


@pytest.fixture(scope="module")
def waived(tmp_path_factory):
    return reported(tmp_path_factory.mktemp("my-run"), "WAIVED")


@pytest.fixture(scope="module")
def blocked(tmp_path_factory):
    return reported(tmp_path_factory.mktemp("closed"), "BLOCK", passing=False, with_training=False)


def words_of(html):
    return re.sub(r"\s+", " ", " ".join(Page(html).words))


def test_ten_seconds_are_enough(waived):
    """Questions of an officer, in the order in which the page answers them."""
    found, head = waived
    output = words_of(head)
    order = [
        "2026-11-24 10:04:10 UTC", found["run"]["name"],
        "Transformer decoder, 10.7 M parameters; 4,915,200 tokens in 600 steps", "1.419 bits per byte",
        "WAIVED", "Waived: licences.allowed by legal-counsel until 2027-01-31.",
        "signed by the account that ran it", "no person has approved", "policy assay-default",
        "not under a site's policy",
        "0.00085", "0.000283 to 0.0017", "CO2e", "0.085", "Wasted by failed attempts", "3.26 % of all, 0.00277 g CO2e",
        "Main findings", "1 attempt failed",
    ]  # fmt: skip
    places = [output.find(part) for part in order]
    assert -1 not in places, [part for part, place in zip(order, places, strict=True) if place < 0]
    assert places == sorted(places)


def test_three_cards_each_with_n_and_each_a_row_of_report_json(waived):
    found, head = waived
    cards = re.findall(r"<article>.*?</article>", head)
    assert len(cards) == 3
    listed = {row["what"]: row for row in found["first"]}
    assert first_look(found) == found["first"]
    for card in cards:
        title = words_of(re.search(r"<h3>.*?</h3>", card)[0]).strip()
        row = listed[title]
        assert f"n: {row['n']}" in words_of(card)
        assert row["n"]
        assert ("<blockquote>" in card) == bool(row["example"])
        assert row["at"] != "/verdict"
    assert sum("<blockquote>" in card for card in cards) >= 2


def test_a_block_says_which_licence_which_source_how_many_documents_and_whose_decision(blocked):
    found, head = blocked
    output = words_of(head)
    kept = next(row["documents_kept"] for row in found["sources"] if row["name"] == "forum")
    sentence = (f"{kept:,} documents of source forum are in the corpus under licence NOASSERTION, which the policy "
                "does not allow. Decision: legal.")  # fmt: skip
    assert sentence in output
    assert reasons({**found, "owners": {"legal": ["ann", "bob"]}}) == [sentence.replace("legal.", "legal (ann, bob).")]
    assert "A critical gate failed. The corpus may not be trained on. Nothing was trained." in output
    assert output.count("licences.allowed") == 0  # in words, and not repeated as a card
    assert "1 critical check" not in output


def test_only_reasons_that_close_are_reasons(blocked):
    found, _ = blocked
    base = {"subject": "s", "status": "fail", "owner": "data", "detail": "; 3 of 4", "waived": False}
    rows = [{**base, "gate": "warned", "severity": "warning", "closes": False},
            *({**base, "gate": f"gate{n}", "severity": "critical", "closes": True} for n in range(5))]  # fmt: skip
    output = reasons({**found, "verdict": {**found["verdict"], "reasons": rows}})
    assert output[0] == "gate0 on s failed: 3 of 4. Decision: data."
    assert output[-1] == "2 more reasons below."
    assert not any("warned" in sentence for sentence in output)
    again = [row for row in rows if row["gate"] == "gate0"] * 3
    [output] = reasons({**found, "verdict": {**found["verdict"], "reasons": again}})
    assert output.startswith("gate0 on s and 2 more results failed: 3 of 4.")


def test_signer_and_rules_are_those_of_the_signed_verdict(waived):
    """`governance.gate.explanation` has the words for a person, an account, a site."""
    found, _ = waived
    verdict = "The verdict of 2026-11-24 10:05:00 UTC is signed by"
    assert signer(found) == f"{verdict} the account that ran it; no person has approved."
    assert rules(found) == "Judged by policy assay-default, not under a site's policy."
    given = {**found["verdict"], "people": {"signer": "ann", "approved": ["bob"]}, "site": {"name": "centre"}}
    output = {**found, "verdict": given}
    output["summary"] = summary(output)
    assert signer(output).startswith(f"{verdict} ann; approved by bob")
    assert rules(output).endswith("under the site's policy of centre.")


def test_only_sources_with_documents_are_the_corpus(waived):
    found, _ = waived
    rows = [
        {**found["sources"][0], "name": name, "documents_kept": kept, "fate": fate}
        for name, kept, fate in (("a", 3, "kept"), ("b", 0, "refused: licence"), ("c", 0, "nothing left"))
    ]
    assert "Corpus of a. Refused for their licence: b. Nothing left of c." in words_of(
        front({**found, "sources": rows})
    )


def test_carbon_names_what_multiplies_the_energy(waived):
    found, _ = waived
    basis = "grid: world average, not your grid: a table, 2024; PUE 1.56: the industry's average, 2023"
    output = {**found, "summary": {**found["summary"], "carbon_basis": basis}}
    assert "grid: world average, not your grid; PUE 1.56" in words_of(front(output))


@pytest.mark.parametrize("strength", ["warns on fairness", "blocks on fairness"])
def test_the_strength_of_the_policy_is_on_page_one(waived, strength):
    found, _ = waived
    output = {**found, "verdict": {**found["verdict"], "policy": {**found["verdict"]["policy"], "strength": strength}}}
    output["summary"] = summary(output)
    assert f"Judged by policy assay-default ({strength})" in words_of(front(output))


def test_unknown_figures_are_said_and_nothing_is_made_up(tmp_path):
    folder = tmp_path / report({}, {}, tmp_path, Runtime(tmp_path)).folder
    found = json.loads((folder / "report.json").read_bytes())
    output = words_of(front(found))
    wanted = (
        "NOT_RUN",
        "The verdict is not signed.",
        "unknown",
        "The verdict gives no reason.",
        "Nothing was trained.",
        "the energy is unknown",  # not that a factor is missing
    )
    for words in wanted:
        assert words in output
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Footprint of the whole run: unknown, as the energy is." in page
    assert meaning({**found, "summary": {"verdict": "NEW"}}).startswith("This release does not know this verdict")


def test_a_model_is_named_by_its_kind_and_size():
    assert family({"model": {"moe": {"experts": 8}}}) == "Mixture-of-experts Transformer decoder"
    assert family({}) == "Transformer decoder"
    assert family({"model": {"encoder_layers": 2}}) == "Transformer encoder-decoder"
    assert family({"model": {"num_labels": 3}}) == "Transformer decoder with a head of 3 labels"
    sizes = (None, 999, 2_361_024, 7_000_000_000)
    assert [parameters(size) for size in sizes] == [
        "unknown parameters", "999 parameters", "2.36 M parameters", "7 B parameters"]  # fmt: skip
    assert parameters(999_900_000) == "1 B parameters"
    assert [size(value) for value in (999, 12_345_678, 999_700)] == ["999 B", "12.3 MB", "1 MB"]
    figures = [grams(value) for value in (0.00012, 999.7, 999_700, 1_234e9)]
    assert figures == ["0.00012 g", "1 kg", "1 t", "1,234,000 t"]
    assert model_line({"training": None}) == ""
    units = [loss_unit({"config": {"model": {"num_labels": labels}}}) for labels in (3, 0)]
    assert units == ["nats per label", "nats per token"]
