"""Further counts of stages are shown on the page and on a terminal, with the manifests' numbers."""

import re

from assay.cli.main import main
from governance.manifest import read_manifest
from governance.reports.documents.corpus_documents import PURPOSES
from governance.reports.facts.report_facts import facts, funnel_of
from governance.reports.facts.stage_counts import removals, stage_tables
from governance.reports.html.markup import join
from governance.reports.sections import corpus_sections
from governance.reports.sections.page import page
from governance.reports.terminal import show_corpus
from governance.stage_order import CORPUS_STAGES
from tests.manifests import manifest_of

HOSTILE = "<b>x</b>\x1b[2J"


NONE = {"documents_in": 0, "documents_kept": 0, "bytes_in": 0, "bytes_kept": 0}


def made(stage, config=None, **stats):
    """An artifact of these counts."""
    by_source = {name: {**NONE, **counts} for name, counts in stats.pop("by_source", {}).items()}
    stats = {**NONE, "by_source": by_source, **stats}
    return manifest_of(stage, key="a", config=config or {}, stats=stats)


MANIFESTS = [
    made("ingest", by_source={
        "web": {"passed_over": {"not_a_response": 7110, "media_type": 0}},
        HOSTILE: {"passed_over": {"status": 3}},
        "prose": {"passed_over": {}},
    }),
    made("clean", lines_removed={"line_too_short": 1204, "line_javascript": 0, "line_unpunctuated": 31}),
    made("code", licences={"MIT": 41, "Zlib": 0}, programming_languages={"C++": 1312}),
    made("filter", {"filters": [["loud", "mylab.rules:too_loud", "0a"], ["recent", "column date", '{"min":"2015"}']]},
         removed={"own:loud": 6, "column:recent": 5, "column_missing:recent": 2}),
    made("classify", {"bounds": {"toxic": [None, 0.9], "quality": [0.25, None], "shown": [None, None]}},
         documents_in=200, removed={"classifier:toxic": 50}),
    made("paragraphs", cut={"paragraphs": 12, "lines": 0, "documents": 5}),
    made("substrings", cut={"repeats": 7, "gaps": 2, "documents": 4}, windows_cut_short=9),
    made("decontaminate", items_sought_by_set={"quiz": 90, "sums": 10}, hits_by_set={"quiz": 4},
         documents_by_set={"quiz": 3}, documents_cut=2, bytes_cut=1500),
    made("redact", {"actions": {"email": "mask", "iban": "replace", "phone": "replace"}}, documents_in=1000,
         documents_with_findings=41, findings={"iban": 3, "email": 1600, "phone": 0},
         findings_by_source={**{f"s{n}": {"email": 100 * n} for n in range(1, 6)}, "web": {"email": 100, "iban": 3}}),
]  # fmt: skip
WANTED = [
    ["web", "not_a_response", "7,110"],
    ["status", "3"],
    ["line_too_short", "1,204"],
    ["line_unpunctuated", "31"],
    ["MIT", "41"],
    ["C++", "1,312"],
    ["loud", "mylab.rules:too_loud", "6"],
    ["recent", "column date, min = 2015", "7"],
    ["toxic", "to 0.9", "50", "25 %"],
    ["quality", "from 0.25", "0", "0 %"],
    ["shown", "all", "0", "0 %"],
    ["paragraphs", "12"],
    ["documents affected", "5"],
    ["repeats", "7"],
    ["gaps", "2"],
    ["quiz", "90", "4", "3"],
    ["sums", "10", "0", "0"],
    ["email", "mask", "1,600", "s5 500, s4 400, s3 300, s2 200, 2 more 200"],
    ["iban", "replace", "3", "web 3"],
]


def shown(manifests):
    """The tables on the page."""
    return join(corpus_sections.counts_folded({"counts": stage_tables(manifests)}))


def test_every_count_is_in_a_row_on_both(tmp_path):
    output = show_corpus(MANIFESTS, tmp_path).splitlines()
    drawn = shown(MANIFESTS)
    rows = [re.sub("<[^>]*>", "|", row) for row in drawn.split("<tr>")]
    for cells in WANTED:
        pattern = r"[ |]+".join(map(re.escape, cells))
        assert any(re.search(rf"{pattern}$", line) for line in output), cells
        assert any(re.search(rf"{pattern}[|]", row) for row in rows), cells


def test_a_table_s_sum_is_of_one_unit():
    titles = re.findall(r"<summary>(.*?)</summary>", shown(MANIFESTS))
    sums = [re.sub("<[^>]*>", "", title).partition(") ") for title in titles]
    assert {name.rpartition("(")[2]: total for name, _, total in sums if total} == {
        "ingest": "7,113", "clean": "1,235", "code": "1,312", "filter": "13", "classify": "50", "redact": "1,603",
    }  # fmt: skip


def test_copies_by_quality_are_a_curve_over_all_topics():
    """Ranks 0 to 60 of two topics: 3 of 300 bytes, then 600 of 300; each bucket is level."""

    def counts(size_in, got):
        return {"documents": 1, "bytes_in": size_in, "copies": 1, "bytes_got": got}

    buckets = {"law one 00.0-30.0": counts(100, 0), "00.0-30.0": counts(200, 3), "30.0-60.0": counts(300, 600),
               "law one 60.0-99.0": counts(0, 0)}  # fmt: skip
    drawn = shown([made("mix", {"quality": {"score": "score"}}, mix_by_bucket=buckets)])
    [label] = re.findall(r'aria-label="(Copies by quality[^"]*)"', drawn)
    assert label == "Copies by quality: copies from 0.01 to 2; rank by score, percent of the bytes 0 to 60"
    [line] = re.findall(r'd="(M[^"]*L[^"]*)"', drawn)
    assert re.findall(r"[ML]([\d.]+) ", line) == ["0.0", "500.0", "500.0", "1000.0"]
    nothing = shown([made("mix", {"quality": {"score": "score"}}, mix_by_bucket={"00.0-30.0": counts(0, 0)})])
    assert "<svg" not in nothing


def test_what_is_nought_and_says_nothing_is_left_out():
    titles = [
        table["title"] for table in stage_tables([made("ingest"), made("clean"), made("paragraphs"), made("dedup")])
    ]
    assert titles == []
    [clean] = [table for table in stage_tables(MANIFESTS) if table["title"].startswith("clean")]
    assert [row[0] for row in clean["rows"]] == ["line_too_short", "line_unpunctuated"]


def test_that_nothing_was_found_is_reported(tmp_path):
    none = made("redact", {"actions": {"email": "mask"}}, documents_in=7, documents_with_findings=0,
                findings={"email": 0}, findings_by_source={})  # fmt: skip
    output = show_corpus([none], tmp_path)
    assert (
        "redact: personal data\n  none\n  Personal data was found in 0 of 7 documents. "
        "The detector covers 1 structured types; names and places are not sought." in output
    )
    assert "personal data: none" in shown([none])


def test_the_recall_of_a_finder_of_names_and_of_rules_is_reported(tmp_path):
    actions = dict.fromkeys(("email", "name", "place", "rule:a", "rule:b"), "mask")
    found = made("redact", {"actions": actions, "finder": {"kind": "transformers"}},
                 documents_in=7, documents_with_findings=3, findings={"email": 2, "name": 4, "place": 0, "rule:b": 1},
                 canaries={"email": {"planted": 9, "found": 9}, "name": {"planted": 9, "found": 8},
                           "place": {"planted": 9, "found": 6}}, findings_by_source={})  # fmt: skip
    output = show_corpus([found], tmp_path)
    assert (
        "The detector covers 1 structured types and 2 rules of a file; a model (transformers) found 8 of 9 planted "
        "names and 6 of 9 planted places." in output
    )
    [missed] = [table for table in stage_tables([found]) if "missed" in table["title"]]
    assert missed["rows"] == [["name", 9, 8, "0.889"], ["place", 9, 6, "0.667"]]
    assert missed["note"] == "All 9 planted values of 1 of 3 types were found."


def test_a_source_s_name_commands_neither_a_page_nor_a_terminal(tmp_path):
    assert "\x1b" not in show_corpus(MANIFESTS, tmp_path)
    assert "<b>" not in shown(MANIFESTS)


def test_a_made_corpus_shows_them(project, capsys):
    copy = project / "c.jsonl"
    copy.write_text('{"text": "' + (project / "a.jsonl").read_text().split('"')[3] + ' Ask jane.doe@example.org."}\n')
    words = ["data", "prepare", str(project / "run.toml"), "--root", str(project / "made"), "--data-workers", "1"]
    assert main(words) == 0
    capsys.readouterr()
    assert main(["data", "show", str(project / "run.toml"), "--root", str(project / "made")]) == 0
    assert re.search(r"^  email +replace +1 +tales 1$", capsys.readouterr().out, re.MULTILINE)
    artifacts = {path.parts[-3]: read_manifest(path) for path in (project / "made").glob("*/*/manifest.json")}
    found = facts(artifacts, {}, project / "made")
    assert "redact: personal data" in page(found)
    assert found["counts"][-2]["rows"] == [["email", "replace", 1, "tales 1"]]


def test_a_document_without_a_copy_is_removed_once():
    """`mix` counts it; `encode` and `pack`, which read the documents before the plan, count it again."""
    gone = {"mix_quota": 6, "other": 1}
    rows = [{"stage": "mix", "removed": {"mix_quota": 6}}, {"stage": "encode", "removed": gone},
            {"stage": "pack", "removed": gone}]  # fmt: skip
    assert [(row["stage"], reason, count) for row, reason, count in removals(rows)] == [
        ("mix", "mix_quota", 6), ("encode", "other", 1),
    ]  # fmt: skip
    assert sum(count for _, _, count in removals(rows[1:])) == 7


def test_a_stage_takes_in_what_the_stage_before_kept(tmp_path):
    before = {"documents_in": 20, "documents_kept": 20, "bytes_in": 900, "bytes_kept": 900}
    mixed = {"documents_in": 20, "documents_kept": 8, "bytes_in": 900, "bytes_kept": 300, "removed": {"mix_quota": 12}}
    counts = {"redact": before, "mix": mixed, "encode": mixed, "pack": mixed}
    stages = [made(stage, by_source={"web": of}, **of) for stage, of in counts.items()]
    output = show_corpus(stages, tmp_path)
    rows = [line.split() for line in output.splitlines() if " web " in line]
    assert [row[:4] for row in rows] == [
        ["redact", "web", "20", "20"], ["mix", "web", "20", "8"], ["encode", "web", "8", "8"],
    ]  # fmt: skip
    assert output.count("mix_quota") == 1
    funnel = corpus_sections.funnel_folded({"funnel": funnel_of(stages), "evidence": [], "citations": {}})
    cells = [re.sub("<[^>]*>", " ", line).split() for fold in funnel for line in fold.split("<tr>")]
    assert [line[1:6] for line in cells if line[0] in ("mix", "encode", "pack") and len(line) > 5] == [
        ["20", "8", "12", "900", "300"], ["8", "8", "0", "300", "300"], ["8", "8", "0", "300", "300"],
    ]  # fmt: skip


def test_the_disclosure_names_the_purpose_of_each_step_that_counts_documents():
    others = {"tokenizer", "pack"}
    assert {row.name for row in CORPUS_STAGES} - others <= PURPOSES.keys()
