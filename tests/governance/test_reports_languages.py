"""Documents by language through the funnel: counted from what each stage removed."""

import re

import pytest

from governance.reports.facts.distributions import language_counts
from governance.reports.facts.report_facts import facts
from governance.reports.sections.corpus_sections import funnel
from tests.governance.test_reports_page import corpus, folder_of, manifest_of, shard, verdict_of

CAME = {"en": 60, "de": 30, "fr": 10, None: 4}
REMOVED = {"clean": {"en": 10, None: 4}, "dedup": {"en": 5, "de": 1}, "decontaminate": {"fr": 2}, "redact": {}}
AFTER = {"clean": {"en": 50, "de": 30, "fr": 10}, "dedup": {"en": 45, "de": 29, "fr": 10},
         "decontaminate": {"en": 45, "de": 29, "fr": 8}, "redact": {"en": 45, "de": 29, "fr": 8}}  # fmt: skip


def stages(root, removed):
    """Stages from `clean` on that removed these documents; each keeps what it did not remove."""
    made, left = {}, sum(CAME.values())
    for stage, cut in removed.items():
        rows = [{"language": language, "reason": "x"} for language, count in cut.items() for _ in range(count)]
        files = [shard(root, stage, "removed", rows)] if rows else []
        if stage == "clean":
            gone = {language: cut.get(language, 0) for language in CAME}
            rows = [{"language": language, "kept": n >= gone[language]} for language in CAME
                    for n in range(CAME[language])]  # fmt: skip
            files.append(shard(root, stage, "features", rows))
        left -= sum(cut.values())
        folder_of(root, stage).mkdir(parents=True, exist_ok=True)
        made[stage] = manifest_of(root, stage, [], {"documents_kept": left}, {}, files)
    return made


def after(made, root):
    rows = {row["language"]: row["documents_after"] for row in language_counts(made, root)}
    return {stage: {name: row[stage] for name, row in rows.items() if row[stage]} for stage in rows["en"]}


def test_each_stage_has_the_documents_of_each_language_that_it_left(tmp_path):
    made = stages(tmp_path, REMOVED)
    assert after(made, tmp_path) == AFTER
    assert [row["documents_in"] for row in language_counts(made, tmp_path)] == [60, 30, 10, 4]


@pytest.mark.parametrize("stage", ["dedup", "decontaminate"])
def test_a_stage_whose_removed_documents_do_not_account_for_its_count_is_left_out(tmp_path, stage):
    made = stages(tmp_path, REMOVED)
    made[stage] = made[stage].model_copy(update={"stats": {"documents_kept": 3}})
    assert after(made, tmp_path) == {name: counts for name, counts in AFTER.items() if name != stage}


def test_the_bars_have_sources_and_languages_from_ingest_to_the_last_stage(tmp_path):
    made = corpus(tmp_path)
    features = [{"language": f"l{n % 9}", "kept": n % 3 > 0} for n in range(900)]
    made["clean"] = manifest_of(tmp_path, "clean", made["clean"].inputs, made["clean"].stats, {},
                                [shard(tmp_path, "clean", "features", features)])  # fmt: skip
    found = facts(made, verdict_of(made, "PASS"), tmp_path)
    html = str(funnel(found))
    figures = {re.sub("<[^>]+>", "", title): part for title, part in
               re.findall(r"<figcaption><b>(.*?)</b>(.*?)</figure>", html, re.DOTALL)}  # fmt: skip
    by_source = figures["Documents kept after each stage, by source"]
    assert re.findall(r"<b><bdi dir=\"auto\">(\w+)</bdi></b>", by_source) == [row["stage"] for row in found["funnel"]]
    by_language = figures["Documents kept after each stage, by language"]
    assert re.findall(r"<b><bdi dir=\"auto\">(\w+)</bdi></b>", by_language)[:2] == ["ingest", "clean"]
    assert "900 (100 %)" in by_language
    assert "600 (66.7 %)" in by_language
    assert "all others" in by_language
