"""The report's section on documents: histograms, examples, and the corpus on a terminal."""

import re
from html.parser import HTMLParser

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.errors import ManifestError
from governance.manifest import Manifest, describe
from governance.reports.facts.distributions import distributions, write_edge
from governance.reports.facts.samples import _masked_evidence, kept_samples, removed_samples
from governance.reports.html.svg_figures import histogram
from governance.reports.report import report
from governance.reports.sections.role_sections import documents_folded
from governance.reports.terminal import show_corpus
from governance.stage import Runtime

HOSTILE = "<script>alert('x')</script>\x1b[2J\u202e\n"
NUMBERS = st.one_of(st.none(), st.integers(0, 2**40).map(float), st.floats(0, 1))
ROWS = st.lists(st.fixed_dictionaries({"words": NUMBERS, "share": st.one_of(st.none(), st.floats(0, 1)),
                                       "kept": st.booleans()}), max_size=40)  # fmt: skip


def artifact(root, stage, tables, **stats):
    """An artifact of (role, shard, rows or table)."""
    outputs = []
    for role, shard, rows in tables:
        path = root / stage / ("a" * 16) / role / f"{shard:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
        pq.write_table(table, path, row_group_size=7)
        outputs.append(describe(path, root))
    return Manifest(stage=stage, version=1, key="a" * 64, config={}, inputs=(), outputs=tuple(outputs), stats=stats,
                    run={})  # fmt: skip


def features(rows, start=0):
    """A clean stage's table of features: sizes from `start` up, `words` and one share."""
    columns = {
        "id": pa.array([f"s/f#{place}" for place in range(len(rows))], pa.string()),
        "bytes": pa.array(range(start, start + len(rows)), pa.int64()),
        "words": pa.array([row["words"] for row in rows], pa.float64()),
        "alphabetic_word_share": pa.array([row["share"] for row in rows], pa.float64()),
        "kept": pa.array([row["kept"] for row in rows], pa.bool_()),
    }
    return pa.table(columns)


@given(ROWS, st.integers(0, 40))
def test_the_counts_add_up_to_the_documents_however_they_are_cut(tmp_path_factory, rows, cut):
    root = tmp_path_factory.mktemp("root")
    one = artifact(root / "one", "clean", [("features", 0, features(rows))])
    parts = [("features", 0, features(rows[:cut])), ("features", 1, features(rows[cut:], cut))]
    two = artifact(root / "two", "clean", parts)
    found = distributions(one, root / "one")
    assert found == distributions(two, root / "two")
    measured = {"words": "words", "alphabetic_word_share": "share"}
    for name, field in measured.items():
        there = [row for row in rows if row[field] is not None]
        [drawn] = [one for one in found if one["name"] == name] or [{"kept": [], "removed": [], "edges": [0]}]
        assert sum(drawn["kept"]) == sum(row["kept"] for row in there)
        assert sum(drawn["removed"]) == sum(not row["kept"] for row in there)
        assert len(drawn["edges"]) == len(drawn["kept"]) + 1 == len(drawn["removed"]) + 1
        assert drawn["edges"] == sorted(set(drawn["edges"]))
    if rows:
        [sizes] = [one for one in found if one["name"] == "bytes"]
        assert sum(sizes["kept"]) + sum(sizes["removed"]) == len(rows)


@given(st.lists(st.integers(0, 2**31 - 2), min_size=1, max_size=20))
def test_each_document_is_in_the_bin_of_its_size(tmp_path_factory, tokens):
    root = tmp_path_factory.mktemp("root")
    made = artifact(root, "encode", [("token_features", 0, pa.table({"tokens": pa.array(tokens, pa.int64())}))])
    [found] = distributions(made, root)
    edges = found["edges"]
    for place, count in enumerate(found["kept"]):
        assert count == sum(edges[place] <= number < edges[place + 1] for number in tokens)


def test_a_whole_share_is_in_the_last_bin_and_a_huge_size_in_the_open_one(tmp_path):
    rows = [{"words": 2.0**40, "share": 1.0, "kept": True}, {"words": 0.0, "share": 0.0, "kept": False}]
    found = {one["name"]: one for one in distributions(artifact(tmp_path, "clean", [("features", 0, features(rows))]),
                                                       tmp_path)}  # fmt: skip
    assert found["alphabetic_word_share"]["kept"] == [0] * 19 + [1]
    assert found["alphabetic_word_share"]["removed"] == [1] + [0] * 19
    assert found["words"]["kept"][-1] == 1
    assert found["words"]["removed"][0] == 1


def test_scores_are_drawn_by_model_and_what_the_model_removed_apart(tmp_path):
    rows = [{"id": f"a#{n}", "source": "a", "language": "en", "toxic": n / 10, "quality": 0.5, "kept": n < 7}
            for n in range(10)]  # fmt: skip
    found = distributions(artifact(tmp_path, "classify", [("scores", 0, rows)]), tmp_path)
    assert [one["name"] for one in found] == ["toxic", "quality"]
    assert [(sum(one["kept"]), sum(one["removed"])) for one in found] == [(7, 3), (7, 3)]


def test_nothing_measured_and_nothing_there(tmp_path):
    empty = artifact(tmp_path, "clean", [("features", 0, features([]))])
    assert distributions(empty, tmp_path) == []
    assert distributions(artifact(tmp_path, "dedup", []), tmp_path) == []
    assert distributions(artifact(tmp_path, "encode", []), tmp_path) == []
    assert list(documents_folded({"distributions": [], "kept": []})) == []
    output = show_corpus([empty], tmp_path)
    assert output.splitlines()[-1] == f"clean: {empty.digest}"


@pytest.mark.parametrize("broken", [b"PAR1", b"", b"\x00" * 100])
def test_a_torn_table_is_named(tmp_path, broken):
    made = artifact(tmp_path, "clean", [("features", 0, features([{"words": 1.0, "share": 0.5, "kept": True}]))])
    made.files("features", tmp_path)[0].write_bytes(broken)
    with pytest.raises(ManifestError, match=r"features/00000\.parquet.*make it again"):
        distributions(made, tmp_path)


def test_a_table_of_another_shape_is_named(tmp_path):
    good = features([{"words": 1.0, "share": 0.5, "kept": True}])
    made = artifact(tmp_path, "clean", [("features", 0, good), ("features", 1, good.drop_columns(["words"]))])
    with pytest.raises(ManifestError, match=r"features/00001\.parquet"):
        distributions(made, tmp_path)


class Page(HTMLParser):
    """Checks that tags balance, and collects them."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 10**12)), min_size=1, max_size=30))
def test_a_drawing_holds_its_bars(bins):
    kept, removed = ([one[side] for one in bins] for side in (0, 1))
    if not any(kept) and not any(removed):
        kept[0] = 1
    found = {"stage": "clean", "name": "words", "kept": kept, "removed": removed, "edges": list(range(len(bins) + 1))}
    drawn = histogram(found, write_edge)
    page = Page(drawn)
    bars = [attributes for tag, attributes in page.tags if tag == "rect"]
    assert len(bars) == sum(map(bool, kept)) + sum(map(bool, removed))
    for bar in bars:
        assert 0 <= float(bar["x"]) <= float(bar["x"]) + float(bar["width"]) <= 1000.1
        assert -0.7 <= float(bar["y"]) <= float(bar["y"]) + float(bar["height"]) <= 110.8
        assert float(bar["width"]) > 0
    [label] = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert label == f"clean: words: {sum(kept):,} documents kept, {sum(removed):,} removed"


def corpus(root):
    rows = [{"words": float(n * n), "share": n / 30, "kept": n % 3 > 0} for n in range(30)]
    gone = [{"id": f"b/{HOSTILE}#{n}", "text": f"{HOSTILE} jane.doe@example.org {n}", "reason": "too_few_words",
             "evidence": f"words={n}.5"} for n in range(10)]  # fmt: skip
    stay = [{"id": f"{'ab'[n % 2]}/f#{n}", "source": "ab"[n % 2], "text": f"text {n} of +44 20 7946 0958"} for n in
            range(20)]  # fmt: skip
    counts = {"documents_in": 30, "documents_kept": 20, "bytes_in": 300, "bytes_kept": 200}
    stats = {**counts, "removed": {"too_few_words": 10}, "by_source": {}}
    tables = [("features", 0, features(rows)), ("removed", 0, gone), ("documents", 0, stay)]
    clean = artifact(root, "clean", tables, **stats)
    stats |= {"documents_in": 20, "removed": {}, "bytes_in": 200}
    return {"clean": clean, "redact": artifact(root, "redact", [("documents", 0, stay)], **stats)}


def test_the_page_shows_histograms_and_examples_and_is_well_formed(tmp_path):
    made = corpus(tmp_path)
    folder = tmp_path / report(made, {}, tmp_path, Runtime(tmp_path)).folder
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in drawings)
    assert {"clean: words: 20 documents kept, 10 removed", "clean: bytes: 20 documents kept, 10 removed"} <= {
        drawing["aria-label"] for drawing in drawings
    }
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") == tags.count("caption") > 0
    assert "<script" not in text
    assert "jane.doe" not in text
    assert "20 7946" not in text
    assert not re.search("[\x00-\x08\x1b\u202e]", text)
    assert "Examples of kept documents" in text


def test_the_median_is_in_the_bin_that_is_shown(tmp_path):
    rows = [{"words": float(words), "share": None, "kept": kept} for words, kept in
            [*((3, True) for _ in range(4)), *((100, True) for _ in range(5)), (1000, False)]]  # fmt: skip
    made = artifact(tmp_path, "clean", [("features", 0, features(rows))])
    [text] = documents_folded({"distributions": distributions(made, tmp_path), "kept": []})
    cells = re.findall(r'<td class="n">([^<]*)</td>', text)
    assert cells[4:8] == ["9", "64 and 128", "1", "512 and 1,024"]


def test_examples_come_from_as_many_sources_as_there_are(tmp_path):
    rows = [{"id": f"{source}#{n}", "source": source, "text": f"{source} {n}"} for source in "ab" for n in range(9)]
    rows += [{"id": "c#0", "source": "c", "text": "c 0"}]
    made = artifact(tmp_path, "redact", [("documents", 0, rows)])
    assert [row["id"] for row in kept_samples(made, tmp_path)] == ["a#0", "b#0", "c#0", "a#1", "b#1"]
    assert kept_samples(artifact(tmp_path, "empty", []), tmp_path) == []


def test_a_measure_is_reported_and_what_is_next_to_it_masked():
    assert _masked_evidence("kept=web/a#7 jaccard=0.912345") == "kept=web/a#7 jaccard=0.912345"
    assert _masked_evidence("words=12") == "words=12"
    assert (
        _masked_evidence("share=0.1234567 call 020 7946 0958 now score=0.5")
        == "share=0.1234567 call [digits] now score=0.5"
    )
    assert _masked_evidence("phone=4915112345678") == "phone=[digits]"
    assert _masked_evidence("by jane.doe@example.org score=1") == "by [e-mail] score=1"
    assert _masked_evidence("") == ""


def test_a_terminal_is_not_commanded_by_a_corpus(tmp_path):
    output = show_corpus(list(corpus(tmp_path).values()), tmp_path)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", output)
    assert "jane.doe" not in output
    assert "clean: examples removed for too_few_words" in output
    assert removed_samples(corpus(tmp_path)["clean"], tmp_path)["too_few_words"][0]["evidence"] == "words=0.5"
    assert output.count("a/f#0") == 1


def test_an_edge_is_written_for_people():
    assert [write_edge(edge) for edge in (0, 0.05, 1, 8, 512, 2**20)] == ["0", "0.05", "1", "8", "512", "1,048,576"]
