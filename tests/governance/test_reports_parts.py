import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from governance.energy.factors import Factor, Factors
from governance.files import append_line
from governance.lineage.unlisted_files import find_unlisted
from governance.manifest import Manifest
from governance.reports.facts.report_facts import ReportInputs, threshold
from governance.reports.facts.samples import _masked_evidence, mask, shorten
from governance.reports.facts.training_facts import thin, training_facts
from governance.reports.html.markup import (
    Html,
    alike,
    compact,
    energy,
    escape,
    kilowatt_hours,
    number,
    share,
    size,
    table,
    tag,
)
from governance.reports.html.style import CSS
from governance.reports.html.svg_figures import Curve, bar, chart, ticks
from governance.reports.report import report
from governance.reports.sections.energy_sections import grams
from governance.stage import Runtime

UNITS = {
    size: {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15},
    energy: {"Wh": 3600, "kWh": 3.6e6, "MWh": 3.6e9},
    grams: {"g": 1, "kg": 1e3, "t": 1e6},
}


@given(st.integers(1, 999_999), st.integers(0, 15), st.sampled_from(list(UNITS)))
@example(99_997, 3, size)
@example(99_997, 10, grams)
def test_a_number_is_written_in_the_unit_that_fits_its_three_digits(digits, places, write):
    """Up to the edge of a magnitude: 999.97 of one unit is 1 of the next, never 1000."""
    value = digits * 10**places if write is size else digits * 10.0 ** (places - 2)
    text, unit = write(value).split(" ")
    shown = float(text.replace(",", ""))
    assert shown * UNITS[write][unit] == pytest.approx(value, rel=0.0051)
    assert 1 <= shown < 1000 or unit in (
        min(UNITS[write], key=UNITS[write].get),
        max(UNITS[write], key=UNITS[write].get),
    )


@given(st.floats(0, 1))
@example(0.99949)
@example(0.99999)
def test_a_share_below_one_is_never_shown_as_the_whole(value):
    shown = float(share(value).removesuffix(" %"))
    assert shown < 100 or value > 1 - 1e-14
    assert (shown > 0) == (value > 0)
    assert shown == pytest.approx(100 * value, rel=0.0051)


@given(st.text(st.characters(), max_size=60))
def test_no_text_becomes_markup(text):
    made = escape(text)
    assert not set(made) & set("<>\"'")
    assert not re.search("[\x00-\x08\x0b-\x0c\x0e-\x1f\u202a-\u202e\u2066-\u2069]", made)
    made.encode("utf-8")
    assert tag("p", text, title=text).count("<") == 2


def test_lone_surrogates_are_replaced():
    assert escape("a\ud800b") == "a?b"
    assert tag("b", Html("<i>"), ["x", None, "<"]) == "<b><i>x&lt;</b>"


def test_a_table_heads_its_columns_and_rows():
    made = table("Cap", ["a", "b"], [["x", "1"]], numeric=(1,))
    assert made.count('scope="col"') == 2
    assert made.count('scope="row"') == 1
    assert table("Cap", ["a"], []) == '<p class="none">Cap: none.</p>'


def test_numbers_are_written_for_people():
    assert number(1234567) == "1,234,567"
    assert number(1234.5) == "1,234.500"
    assert number(None) == size(None) == energy(None) == share(None) == compact(None) == "unknown"
    assert (size(999), size(1_230_000)) == ("999 B", "1.23 MB")
    output = (energy(66.676), energy(1204.5), energy(7.2e6), energy(3.6e10), energy(3.6e13))
    assert output == ("0.0185 Wh", "0.335 Wh", "2 kWh", "10 MWh", "10,000 MWh")
    output = tuple(map(kilowatt_hours, (842.987, 0.0, 1e-3, 7.2e6, 4.5e9, None)))
    assert output == ("0.000234 kWh", "0 kWh", "2.78e-10 kWh", "2 kWh", "1,250 kWh", "unknown")
    assert (compact(3.2e-5), compact(0), compact(12340.0)) == ("3.2e-05", "0", "12,340")
    assert (share(0.626), share(0.99961), share(1.0)) == ("62.6 %", "99.96 %", "100 %")


def test_numbers_side_by_side_have_equal_decimals():
    assert alike(-0.08951, 0.1) == ["-0.09", "0.10"]
    assert alike(0.997, 1.0, 1.003) == ["0.997", "1.000", "1.003"]
    assert alike(12, 340.25) == ["12", "340"]
    assert alike(3.2e-5, 4e-5) == ["3.2e-05", "4e-05"]


def test_personal_data_is_masked_also_across_the_cut():
    assert mask("write to a.b+c@mail.example.org, 4111 1111 1111 1111 or 555-01-99") == (
        "write to [e-mail] [digits] or [digits]"
    )
    assert mask("in 1984 the 12 of 100") == "in 1984 the 12 of 100"
    assert _masked_evidence("symbol_share=0.1234567") == "symbol_share=0.1234567"
    assert _masked_evidence("phone=4915112345678") == "phone=[digits]"
    text = "x@y.zz " * 113 + "secret.name@example.org"
    assert "secret" not in shorten(text)
    assert len(shorten("a" * 3000)) == 201


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_span_the_values(low, span):
    made = ticks(low, low + span)
    assert 2 <= len(made) <= 8
    slack = 1e-6 * max(1.0, abs(low), span)
    assert made[0] <= low + slack
    assert made[-1] >= low + span - slack
    assert made == sorted(made)


def test_a_constant_curve_and_a_single_point_can_be_drawn():
    for points in ([(1.0, 2.0)], [(1.0, 0.0), (2.0, 0.0)], [(1.0, -3.0), (5.0, -3.0)]):
        assert "nan" not in chart("t", [Curve("c", points)], "step", "unit")


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=4))
@example([1e-12, 5e-13])  # as a learning rate: no marks of equal height, which have no scale
@example([1.0, 1.0 + 2**-52])
@example([5e-324, 0.0])
def test_any_finite_curve_can_be_drawn(values):
    made = ticks(min(values), max(values))
    assert made == sorted(set(made))
    assert len(made) > 1
    drawn = chart("t", [Curve("c", [(float(step), value) for step, value in enumerate(values)])], "step", "unit")
    assert not re.search(r"\bnan\b|\binf\b", drawn)


def test_a_bar_is_not_wider_than_its_whole():
    made = bar([("a", 3), ("b", 1), ("c", 0)], 8, "label")
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height="10" class="f-', made)]
    assert widths == [375.0, 125.0]


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=3000))
def test_thinning_keeps_ends_and_extremes(values):
    points = [(float(index), value) for index, value in enumerate(values)]
    kept = thin(points)
    assert len(kept) <= 402
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert {min(values), max(values)} <= {value for _, value in kept}
    assert kept == sorted(kept)


def test_a_step_that_was_computed_twice_has_the_later_numbers(tmp_path):
    made = Manifest(stage="train", version=1, key="0" * 64, config={}, inputs=(), outputs=(), stats={}, run={})
    path = tmp_path / made.folder / "metrics.jsonl"
    lines = [(1, 1, 9.0), (1, 2, 8.0), (1, 3, "nan"), (2, 2, 7.5), (2, 3, 7.0), (2, 4, "inf")]
    for attempt, step, loss in lines:
        append_line(path, json.dumps({"event": "step", "attempt": attempt, "step": step, "loss": loss, "mfu": None}))
    append_line(path, '{"event": "st')
    found = training_facts(made, tmp_path)
    assert found["curves"]["loss"] == [(1.0, 9.0), (2.0, 7.5), (3.0, 7.0)]
    assert found["curves"]["mfu"] == []
    assert found["attempts"] == 2


@pytest.mark.parametrize("labels", [None, 2])
def test_a_classifier_has_no_bits_per_byte(tmp_path, labels):
    config = {"model": {"num_labels": labels}}
    made = Manifest(stage="train", version=1, key="0" * 64, config=config, inputs=(), outputs=(), stats={}, run={})
    values = {"loss": 1.0, "loss_stderr": 0.1, "tokens": 9, "bits_per_byte": 0.5}
    line = {"event": "validation", "step": 4, **values, "by_source": {"bits_per_byte": values}}
    append_line(tmp_path / made.folder / "metrics.jsonl", json.dumps(line))
    found = training_facts(made, tmp_path)
    bits = [] if labels else [(4.0, 0.5)]
    assert found["curves"]["validation_loss"] == [(4.0, 1.0)]
    assert found["curves"]["validation_bits_per_byte"] == bits
    [row] = found["validation"]["source"]
    assert row == {**values, "name": "bits_per_byte", "bits_per_byte": None if labels else 0.5,
                   "curves": {"loss": [(4.0, 1.0)], "bits_per_byte": bits}}  # fmt: skip


@pytest.mark.parametrize(
    ("gate", "output"),
    [
        ({"column": "x", "expectation": "between", "min": 0.1, "max": 0.5}, "x from 0.1 to 0.5"),
        ({"column": "x", "expectation": "mean_between", "max": 2}, "mean of x ≤ 2"),
        ({"column": "", "expectation": "row_count_between", "min": 2}, "rows ≥ 2"),
        ({"column": "x", "expectation": "not_null", "mostly": 0.99}, "not null x, in 99 % of rows"),
        ({"column": "x", "expectation": "match_regex", "regex": "^a"}, "x matches ^a"),
        ({"column": "", "expectation": "columns_present", "values": ["a", "b"]}, "columns: a, b"),
        ({}, "unknown"),
    ],
)
def test_a_threshold_in_words(gate, output):
    assert threshold(gate) == output


def test_a_report_on_nothing_says_that_nothing_is_there(tmp_path):
    made = report({}, {}, tmp_path, Runtime(tmp_path))
    text = (tmp_path / made.folder / "report.html").read_text(encoding="utf-8")
    assert "NOT_RUN" in text
    assert "Nothing was trained." in text


def test_the_latest_report_has_a_second_name_that_verification_knows(tmp_path):
    made = {}
    for pue in (None, Factor(value=1.5, source="a report", year=2025), None):
        made[pue] = report({}, {}, tmp_path, Runtime(tmp_path), extra=ReportInputs(Factors(pue=pue)))
        for suffix in ("html", "json"):
            latest = tmp_path / "report" / f"latest.{suffix}"
            assert latest.samefile(tmp_path / made[pue].folder / f"report.{suffix}")
    manifests = {one.path: one for one in made.values()}
    assert len(manifests) == 2
    assert find_unlisted(manifests, tmp_path).problems == []
    latest.unlink()
    latest.write_text("{}")
    assert find_unlisted(manifests, tmp_path).problems == [
        "report/latest.json: is not the copy of a report of this root. Remove it."
    ]


def luminance(colour):
    """Relative luminance (WCAG 2.2)."""
    digits = colour if len(colour) == 6 else "".join(digit * 2 for digit in colour)
    channels = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("block", range(3), ids=["light", "dark", "paper"])
def test_words_have_contrast_with_their_ground(block):
    """WCAG 2.2, 1.4.3: 4.5 to 1 for words; 1.4.11: 3 to 1 for graphics."""
    found = re.findall(r":root\{([^}]*)\}", CSS)[block]
    colours = dict(re.findall(r"--(\w+):#([0-9a-f]+)", found))

    def contrast(one, other):
        low, high = sorted((luminance(colours[one]), luminance(colours[other])))
        return (high + 0.05) / (low + 0.05)

    for ground in ("page", "card"):
        for words in ("ink", "soft", "a", "good", "warn", "bad"):
            assert contrast(words, ground) >= 4.5, (words, ground)
        for drawn in "abcdef":
            assert contrast(drawn, ground) >= 3, (drawn, ground)
    for badge in ("good", "warn", "bad"):
        assert contrast("on", badge) >= 4.5, badge
