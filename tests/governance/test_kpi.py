"""KPI plans and tests: statsmodels as the oracle, error rates by simulation, peeking and bad outcomes refused."""

import csv
import json
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower, TTestPower
from statsmodels.stats.proportion import proportions_chisquare, samplesize_proportions_2indep_onetail
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from benchmarks.measures.transfer.kpi_errors import CASES, rates
from governance.config import validate
from governance.errors import ConfigError, GateClosed, MissingInput
from governance.files import sha256_bytes, sha256_file
from governance.gate.chain import require_chain
from governance.hooks import Hooks
from governance.kpi import kpi_evidence
from governance.kpi.effects import estimate, holm, influence, p_and_interval
from governance.kpi.kpi_evidence import (
    KpiRequest,
    KpiTestSection,
    ModelEnergy,
    facts_of_test,
    find_plan,
    make_plan,
    make_test,
)
from governance.kpi.kpi_file import KpiFile
from governance.kpi.other_plans import OtherPlan, common_units, rival_plans
from governance.kpi.outcomes import Outcomes, read_outcomes
from governance.kpi.power_analysis import detectable, plan_facts, power_of
from governance.manifest import Manifest, read_manifest
from governance.reports.sections.kpi_section import answer, paid, paid_folded
from governance.signing.dsse import create_key, private_key
from governance.signing.journal import Journal
from governance.stage import Runtime
from tests.governance.test_reports_page import Page

SHARE = {"name": "solved", "kind": "share", "column": "solved", "baseline": 0.5, "smallest_effect": 0.2}
MEAN = {"name": "minutes", "kind": "mean", "column": "minutes", "baseline": 10.0, "smallest_effect": 2.0,
        "standard_deviation": 4.0}  # fmt: skip


def file_of(*kpis, money=None, columns=None, **experiment):
    values = {"experiment": {"name": "trial", **experiment}, "kpi": list(kpis or (SHARE,)), "columns": columns or {}}
    return validate(values | ({"money": money} if money else {}), KpiFile, "kpis.toml")


def outcomes_of(treated, groups=None, **columns):
    treated = np.asarray(treated, dtype=bool)
    codes = np.arange(len(treated)) if groups is None else np.asarray(groups)
    return Outcomes(treated, codes, {name: np.asarray(values, dtype=float) for name, values in columns.items()})


def written(path, rows, **kind):
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


DRAW = np.random.default_rng(4)
X, Y = DRAW.normal(10, 4, 60), DRAW.normal(11, 7, 45)


def test_units_are_welch_pairs_the_paired_test_and_holm_is_holm():
    """statsmodels 0.15.0."""
    file = file_of(MEAN)
    both = outcomes_of([0] * 60 + [1] * 45, minutes=np.concatenate([X, Y]))
    ours = estimate([influence(file.kpi[0], both)], [1.0], both, "")
    oracle = CompareMeans(DescrStatsW(Y), DescrStatsW(X))
    assert ours.p_value() == pytest.approx(oracle.ttest_ind(usevar="unequal")[1], rel=1e-10)
    assert ours.interval(0.05) == pytest.approx(oracle.tconfint_diff(usevar="unequal"), rel=1e-10)
    paired = file_of(MEAN, design="paired")
    pairs = outcomes_of([0] * 45 + [1] * 45, [*range(45)] * 2, minutes=np.concatenate([X[:45], Y]))
    ours = estimate([influence(paired.kpi[0], pairs)], [1.0], pairs, "")
    assert ours.p_value() == pytest.approx(DescrStatsW(Y - X[:45]).ttest_mean()[1], rel=1e-10)
    for _ in range(20):
        p = DRAW.random(5) ** 3
        assert holm(p) == pytest.approx(multipletests(p, method="holm")[1], rel=1e-12)


def test_clusters_and_ratios_are_the_sandwich_and_a_covariate_the_regression():
    """Against statsmodels' OLS with cluster-robust and HC errors, whose corrections for size are taken out."""
    treated = np.repeat([0, 1], 600)
    shops = np.repeat(np.arange(120), 10)
    values = 10 + np.repeat(DRAW.normal(0, 1, 120), 10) + DRAW.normal(0, 2, 1200)
    file, data = file_of(MEAN), outcomes_of(treated, shops, minutes=values)
    ours = estimate([influence(file.kpi[0], data)], [1.0], data, "")
    robust = sm.OLS(values, sm.add_constant(treated)).fit(
        cov_type="cluster", cov_kwds={"groups": shops, "use_correction": False}
    )
    assert ours.error == pytest.approx(robust.bse[1] * np.sqrt(60 / 59), rel=1e-9)
    assert ours.value == pytest.approx(robust.params[1], rel=1e-9)
    below = DRAW.integers(1, 9, 1200).astype(float)
    ratio = file_of({**MEAN, "kind": "ratio", "denominator": "sessions"})
    data = outcomes_of(treated, minutes=values, sessions=below)
    ours = estimate([influence(ratio.kpi[0], data)], [1.0], data, "")
    design = np.stack([below * (treated == 0), below * (treated == 1)], 1)  # the ratio as a weighted regression
    rooted = sm.OLS(values / np.sqrt(below), design / np.sqrt(below)[:, None]).fit(cov_type="HC0")
    assert ours.error == pytest.approx(np.sqrt(rooted.cov_params().trace() * 600 / 599), rel=1e-9)
    assert ours.value == pytest.approx(rooted.params[1] - rooted.params[0], rel=1e-9)
    before = DRAW.normal(0, 1, 1200)
    covered = file_of({**MEAN, "covariate": "before"})
    data = outcomes_of(treated, minutes=values + 3 * before, before=before)
    ours = estimate([influence(covered.kpi[0], data)], [1.0], data, "")
    fit = sm.OLS(values + 3 * before, sm.add_constant(np.stack([treated, before - before.mean()], 1))).fit(
        cov_type="HC2"
    )
    assert (ours.value, ours.error) == (pytest.approx(fit.params[1], abs=2e-2), pytest.approx(fit.bse[1], rel=1e-2))


@given(st.integers(5, 200), st.integers(5, 200), st.data())
def test_the_p_value_of_shares_is_statsmodels_and_the_interval_has_the_effect(control, treatment, data):
    """statsmodels 0.15.0, whose chi square lacks the factor (N - 1) / N of the score test."""
    events = data.draw(st.integers(0, control)), data.draw(st.integers(0, treatment))
    if 0 < sum(events) < control + treatment:
        values = [1] * events[0] + [0] * (control - events[0]) + [1] * events[1] + [0] * (treatment - events[1])
        file, found = file_of(SHARE), outcomes_of([0] * control + [1] * treatment, solved=values)
        one = influence(file.kpi[0], found)
        p, low, high = p_and_interval(file.kpi[0], file, found, one, 0.05)
        square, whole = proportions_chisquare(events, (control, treatment))[0], control + treatment
        assert p == pytest.approx(chi2.sf(square * (whole - 1) / whole, 1), rel=1e-9, abs=1e-15)
        assert -1 <= low <= one.effect + 1e-12
        assert one.effect - 1e-12 <= high <= 1


def test_the_interval_of_rare_shares_covers_the_truth():
    draw, file, covered = np.random.default_rng(3), file_of(SHARE), 0
    for _ in range(1500):
        data = outcomes_of(np.arange(600) < 300, solved=draw.random(600) < np.where(np.arange(600) < 300, 0.04, 0.02))
        _, low, high = p_and_interval(file.kpi[0], file, data, influence(file.kpi[0], data), 0.05)
        covered += low <= 0.02 <= high
    assert 0.93 < covered / 1500 < 0.98


def test_the_plan_is_statsmodels_and_grows_with_alpha_and_clusters():
    """statsmodels 0.15.0 solves the same equations."""
    assert plan_facts(file_of(MEAN))["groups"] == 2 * np.ceil(TTestIndPower().solve_power(0.5, power=0.8, alpha=0.05))
    pairs = plan_facts(file_of({**MEAN, "correlation": 0.5}, design="paired"))
    assert pairs["groups"] == np.ceil(TTestPower().solve_power(0.5, power=0.8, alpha=0.05))
    share = plan_facts(file_of({**SHARE, "smallest_effect": 0.05}, units_per_day=100))
    oracle = samplesize_proportions_2indep_onetail(0.05, 0.5, 0.8, alpha=0.05)
    assert share["groups"] == pytest.approx(2 * oracle, rel=2e-3)
    assert share["days"] == -(-share["units"] // 100)
    assert share["kpis"][0]["detectable"] == pytest.approx(0.05, rel=1e-3)
    several = plan_facts(file_of(MEAN, {**MEAN, "name": "b"}, {**MEAN, "name": "c"}))
    assert several["groups"] == np.ceil(2 * TTestIndPower().solve_power(0.5, power=0.8, alpha=0.05 / 3))
    shops = file_of(MEAN, cluster_size=10, cluster_correlation=0.1, columns={"cluster": "shop"})
    assert plan_facts(shops)["units"] > 1.8 * plan_facts(file_of(MEAN))["units"]
    with pytest.raises(ConfigError, match="larger effect"):
        plan_facts(file_of({**MEAN, "smallest_effect": 1e-7}))


@settings(max_examples=12)
@given(st.sampled_from([case.file for case in CASES]), st.integers(20, 2000))
def test_more_groups_detect_less_and_find_more(file, groups):
    one = file.kpi[0]
    assert power_of(one, file, 2 * groups, one.smallest_effect) >= power_of(one, file, groups, one.smallest_effect)
    effects = [detectable(one, file, count) or float("inf") for count in (groups, 2 * groups)]
    assert effects[1] <= effects[0]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_error_rates_are_those_of_the_plan(case):
    """A/A and A/B of each kind of test; `benchmarks/transfer.py statistics` has 20,000 repetitions."""
    alarms, power, planned = rates(case, 1_000, 11)
    assert abs(alarms - 0.05) < 0.02  # 3 standard errors of 1,000
    assert abs(power - planned) < 0.038


# Files


def test_the_file_of_the_page_is_a_kpi_file():
    page = (Path(__file__).parents[2] / "docs" / "kpi.md").read_text()
    validate(tomllib.loads(page.split("```toml\n")[1].split("```")[0]), KpiFile, "docs/kpi.md")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kpi": [{**SHARE, "baseline": None}]}, "has no baseline"),
        ({"kpi": [{key: SHARE[key] for key in SHARE if key != "baseline"}]}, "measure the metric without the model"),
        ({"kpi": [{**SHARE, "baseline": 62.0}]}, "write 62 % as 0.62"),
        ({"kpi": [{**MEAN, "standard_deviation": -4.0}]}, "standard_deviation = -4.0: must be above 0"),
        ({"kpi": [{**MEAN, "standard_deviation": None}]}, "measure it on past units"),
        ({"kpi": [SHARE, SHARE]}, "give each its own name"),
        ({"kpi": []}, "needs at least 1"),
        ({"kpi": [{**SHARE, "smallest_effect": 0}]}, "must be above 0"),
        ({"kpi": [{**MEAN, "kind": "ratio"}]}, "has a denominator column"),
        ({"money": {"price_per_kwh": 0.3, "cost_per_unit": 0.1, "served_units": 10}}, "no KPI has a value"),
        ({"experiment": {"name": "a", "control": "x", "treatment": "x"}}, "give each arm its own name"),
        ({"experiment": {"name": "a", "cluster_size": 4}}, "name the clusters' column"),
        ({"experiment": {"name": "a", "allocation": 1.0}}, "must be below 1"),
    ],
)
def test_a_kpi_file_that_plans_nothing_is_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        validate({"experiment": {"name": "trial"}, "kpi": [SHARE], **values}, KpiFile, "kpis.toml")


ROWS = [
    {"unit": f"u{n}", "arm": ("control", "treatment")[n % 2], "solved": n % 3 == 0, "minutes": 1.5 * n}
    for n in range(12)
]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_outcomes(tmp_path, suffix):
    found = read_outcomes(written(tmp_path / f"o{suffix}", [{**row, "solved": int(row["solved"])} for row in ROWS]),
                          file_of(SHARE, MEAN))  # fmt: skip
    assert found.treated.tolist() == [bool(n % 2) for n in range(12)]
    assert found.columns["solved"].tolist() == [float(n % 3 == 0) for n in range(12)]
    assert found.count == 12


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        (lambda rows: rows[::2], {}, "has no row of arm 'treatment'"),
        (lambda rows: [{**rows[0], "minutes": float("nan")}, *rows[1:]], {}, "row 1: minutes = nan"),
        (lambda rows: [{**rows[0], "minutes": None}, *rows[1:]], {}, "row 1: minutes is empty"),
        (lambda rows: [*rows, {**rows[0], "arm": "treatment"}], {}, "is in both arms"),
        (lambda rows: [*rows, rows[0]], {}, "unit 'u0' has 2 rows"),
        (lambda rows: [{**rows[0], "arm": "c"}, *rows[1:]], {}, "arm 'c' is neither 'control'"),
        (lambda rows: [{**row, "solved": 2} for row in rows], {}, "a share counts 0 and 1"),
        (lambda rows: [{**row, "minutes": "long"} for row in rows], {}, "holds no numbers"),
        (
            lambda rows: [{key: row[key] for key in row if key != "solved"} for row in rows],
            {},
            "has no column 'solved'",
        ),
        (
            lambda rows: [{**row, "pair": row["unit"]} for row in rows],
            {"design": "paired"},
            "pair 'u0' has 1 .* a pair has one of each",
        ),
        (lambda rows: [{**rows[0], "unit": " "}, *rows[1:]], {}, "row 1: unit is empty"),
        (
            lambda rows: [{**row, "shop": "a" if n else ""} for n, row in enumerate(rows)],
            {"columns": {"cluster": "shop"}},
            "row 1: shop is empty",
        ),
        (
            lambda rows: [{**row, "pair": f"p{n // 2}", "shop": f"s{n}"} for n, row in enumerate(rows)],
            {"design": "paired", "columns": {"cluster": "shop"}},
            "pair 'p0' is in two clusters of 'shop', of 6 such pairs",
        ),
        (lambda rows: [{**row, "day": "May"} for row in rows], {"columns": {"day": "day"}}, "written YYYY-MM-DD"),
        (
            lambda rows: [{**row, "day": "2031-99-01"} for row in rows],
            {"columns": {"day": "day"}},
            "'2031-99-01' is no",
        ),
        (lambda rows: [{**row, "day": "2031-01-01x"} for row in rows], {"columns": {"day": "day"}}, "is not written"),
        (lambda rows: [{**row, "solved": True} for row in rows], {}, "nothing to test"),
    ],
)
def test_outcomes_that_decide_nothing_are_refused(tmp_path, change, settings, words):
    path, file = written(tmp_path / "o.jsonl", change([dict(row) for row in ROWS])), file_of(SHARE, MEAN, **settings)

    def tested():
        data = read_outcomes(path, file)
        return p_and_interval(file.kpi[0], file, data, influence(file.kpi[0], data), 0.05)

    with pytest.raises(ConfigError, match=words):
        tested()


def test_names_in_csv_are_texts(tmp_path):
    """01 and 1 are two clusters, and True is not a truth value."""
    rows = [{"unit": f"{n:03}", "arm": str(n % 2 == 0), "solved": n % 3 // 2, "shop": "0" * (n % 2) + "1"}
            for n in range(12)]  # fmt: skip
    file = file_of(control="False", treatment="True", columns={"cluster": "shop"})
    found = read_outcomes(written(tmp_path / "o.csv", rows), file)
    assert (found.count, found.treated.tolist()) == (2, [n % 2 == 0 for n in range(12)])


def test_a_strange_file_is_refused(tmp_path):
    with pytest.raises(MissingInput, match=r"o\.csv"):
        read_outcomes(tmp_path / "o.csv", file_of())
    (tmp_path / "o.xls").write_text("")
    (tmp_path / "o.parquet").write_text("no parquet")
    for name in ("o.xls", "o.parquet"):
        with pytest.raises(ConfigError, match="o\\."):
            read_outcomes(tmp_path / name, file_of())


# Plan, test and decision


def manifest_of(stage, stats):
    return Manifest(stage=stage, version=1, key="c" * 64, config={}, inputs=(), outputs=(), stats=stats, run={})


ENERGY = ModelEnergy(3.6e6, 1.8e6, 7.2e6)


class Trial:
    """A root with a journal, and outcomes of a trial."""

    def __init__(self, folder):
        self.root = folder / "root"
        self.root.mkdir()
        create_key(folder / "key.pem")
        key = private_key(folder / "key.pem")
        self.journal = Journal(self.root, lambda: key, lambda: [key.public_key()])
        self.runtime = Runtime(self.root, hooks=Hooks(attest=self.journal.state_artifact))
        self.model = manifest_of("checkpoint", {})
        self.folder = folder

    def test(self, file, data, early=False, energy=ENERGY):
        plan = find_plan(file, self.folder / "kpis.toml", self.runtime)
        asked = KpiRequest(file, data, plan, self.model, energy, early)
        return make_test(asked, self.journal.verified(), self.runtime).stats

    def outcomes(self, name, count, effect=0.4, seed=5, **more):
        draw = np.random.default_rng(seed)
        rows = [
            {"unit": n, "arm": ("control", "treatment")[n % 2], "solved": int(draw.random() < 0.5 + effect * (n % 2)),
             **{key: value(n) for key, value in more.items()}}
            for n in range(count)
        ]  # fmt: skip
        return written(self.folder / name, rows)


@pytest.fixture
def trial(tmp_path):
    return Trial(tmp_path)


MONEY = {"price_per_kwh": 0.5, "cost_per_unit": 0.1, "served_units": 1000, "one_off": 50.0}


def test_a_test_decides_once_at_the_planned_size(trial):
    file = file_of({**SHARE, "value": 2.0}, money=MONEY, units_per_day=10)
    with pytest.raises(MissingInput, match="Sign it before"):
        find_plan(file, trial.folder / "kpis.toml", trial.runtime)
    planned = make_plan(file, trial.runtime).stats["groups"]
    few = trial.outcomes("few.csv", planned - 20)
    with pytest.raises(GateClosed, match=rf"has {planned - 20} of the {planned} planned units, about 2 more"):
        trial.test(file, few)
    looked = trial.test(file, few, early=True)
    assert (looked["decision"], looked["earlier_looks"]) == ("undecided", 0)
    assert "an early look" in looked["faults"][0]
    assert trial.test(file, few, early=True) == looked  # found again
    whole = trial.outcomes("whole.csv", planned)
    decided = trial.test(file, whole)
    money = decided["money"]
    assert (decided["decision"], decided["earlier_looks"], decided["faults"]) == ("paid", 1, [])
    assert money["gain"] == pytest.approx(1000 * 2.0 * decided["kpis"][0]["effect"])
    assert money["net"] == pytest.approx(money["gain"] - 100 - 50 - 0.5)  # serving, one-off, 1 kWh
    assert money["net_low"] == pytest.approx(money["gain_low"] - 151)  # 2 kWh at most
    assert money["net_high"] == pytest.approx(money["gain_high"] - 150.25)
    again = trial.test(file, trial.outcomes("again.csv", planned, seed=6))
    assert again["decision"] == "undecided"
    assert "tested this plan before, and its decision counts: paid" in again["faults"][0]
    for test in trial.root.glob("kpi_test/*/manifest.json"):
        test.unlink()
    assert "is gone or altered" in trial.test(file, trial.outcomes("third.csv", planned, seed=7))["faults"][0]
    changed = file_of({**SHARE, "value": 2.0, "smallest_effect": 0.1}, money=MONEY, units_per_day=10)
    with pytest.raises(GateClosed, match=r"kpi solved\.smallest_effect 0\.2 there, 0\.1 here"):
        trial.test(changed, whole)


def test_a_test_signs_the_digest_of_the_outcomes_that_it_has_tested(trial, monkeypatch):
    file = file_of()
    data = trial.outcomes("o.csv", make_plan(file, trial.runtime).stats["groups"])
    tested = sha256_file(data)

    def read(path, file):
        found = read_outcomes(path, file)
        path.write_bytes(b"others")
        return found

    monkeypatch.setattr("governance.kpi.kpi_evidence.read_outcomes", read)
    trial.test(file, data)
    [test] = map(read_manifest, trial.root.glob("kpi_test/*/manifest.json"))
    assert [item.digest for item in test.inputs if item.stage == "file"] == [tested]


def test_a_plan_without_statement_and_outcomes_that_do_not_fit_it_decide_nothing(trial):
    file = file_of(columns={"day": "day"})
    planned = make_plan(file, trial.runtime).stats["groups"]
    early = trial.outcomes("past.csv", planned, day=lambda n: "2020-01-01")
    assert "before the plan was signed" in trial.test(file, early)["faults"][0]
    arms = ["control" if n % 3 == 0 else "treatment" for n in range(900)]
    rows = [{"unit": n, "arm": arm, "solved": n % 2, "day": "2099-01-01"} for n, arm in enumerate(arms)]
    lost = written(trial.folder / "lost.csv", rows)
    found = trial.test(file, lost)
    assert found["sample_ratio_p"] < 1e-9
    assert "sample-ratio mismatch: 600 units with the model and 300" in found["faults"][0]
    plan = make_plan(file, trial.runtime)
    with pytest.raises(GateClosed, match="no line of the journal states this plan"):
        make_test(KpiRequest(file, lost, plan, trial.model, ModelEnergy(None, None, None), False), (), trial.runtime)
    altered = plan.model_copy(update={"stats": {**plan.stats, "groups": 2}})
    with pytest.raises(GateClosed, match="make it again: with the command that made it"):  # no corpus to prepare again
        require_chain([altered], trial.root, trial.journal)


def test_a_plan_that_was_signed_after_a_test_needs_new_outcomes(trial):
    """A changed file cannot be planned again for outcomes that are known."""
    old = file_of({**SHARE, "value": 2.0}, money=MONEY)
    planned = make_plan(old, trial.runtime).stats["groups"]
    outcomes = trial.outcomes("whole.csv", planned)
    assert trial.test(old, outcomes)["decision"] == "paid"
    better = {**SHARE, "value": 20.0}
    make_plan(file_of(better, money=MONEY), trial.runtime)
    again = trial.test(file_of(better, money=MONEY), outcomes)
    assert again["decision"] == "undecided"
    assert "tested these outcomes before the plan was signed" in again["faults"][0]
    copied = trial.outcomes("copied.csv", planned, seed=6)
    assert "have no days" in trial.test(file_of(better, money=MONEY), copied)["faults"][0]
    renamed = file_of({**better, "column": "won"}, money=MONEY, name="another")
    with pytest.raises(ConfigError, match=r"kpi_test/\w+ tested outcomes already.*\[columns\] day"):
        make_plan(renamed, trial.runtime, trial.journal.verified())
    make_plan(renamed, trial.runtime)
    altered = trial.outcomes("altered.csv", planned, seed=8, won=lambda n: n % 3 // 2)
    assert "have no days" in trial.test(renamed, altered)["faults"][0]  # a name can be changed
    dated = file_of(better, money=MONEY, columns={"day": "day"})
    make_plan(dated, trial.runtime, trial.journal.verified())
    fresh = trial.outcomes("fresh.csv", planned, seed=7, day=lambda n: "2099-01-01")
    found = trial.test(dated, fresh)
    assert found["faults"] == []
    assert [other["decision"] for other in found["other_plans"]] == [""]  # the first had decided before this was signed


def test_plans_for_one_experiment_or_metric_share_its_error_probability(trial):
    """The best of several tests would be found by chance more often than one."""
    first = file_of(SHARE)
    same_metric = file_of({**SHARE, "name": "won", "smallest_effect": 0.25}, name="other")
    same_name = file_of({**SHARE, "column": "minutes"}, name=" TRIAL")
    apart = file_of({**SHARE, "column": "minutes"}, name="apart")
    plans = [make_plan(file, trial.runtime) for file in (first, same_metric, same_name, apart)]
    planned = plans[0].stats["groups"]
    data = trial.outcomes("whole.csv", planned, minutes=lambda n: n % 3 // 2)
    found = trial.test(first, data)
    assert [other["plan"] for other in found["other_plans"]] == [plan.folder for plan in plans[1:3]]
    assert found["alpha"] == pytest.approx(0.05 / 3)
    assert found["confidence"] == pytest.approx(1 - 0.05 / 3)
    alone = facts_of_test(
        KpiRequest(first, data, plans[0], trial.model, ENERGY, False),
        read_outcomes(data, first),
        KpiTestSection(planned_at="2026", looks=(), joules=None, low_joules=None, high_joules=None),
        {},
    )
    assert alone["kpis"][0]["upper"] < found["kpis"][0]["upper"]
    assert "3 signed plans could decide this" in answer(found)
    assert f"{plans[1].folder} (other): no test decided" in "".join(paid_folded({"kpi": {"test": found}}))
    second = trial.test(same_metric, data)
    assert [other["decision"] for other in second["other_plans"]] == [found["decision"]]
    assert second["faults"] == []
    hidden = trial.test(apart, trial.outcomes("cut.csv", planned, seed=9, minutes=lambda n: n % 3 // 2))
    assert any("% of these units as 'trial', and its decision counts" in fault for fault in hidden["faults"])
    (trial.root / plans[2].path).unlink()
    gone = next(other for other in rival_plans(first, plans[0], trial.journal.verified(), trial.root)
                if other.plan == plans[2].folder)  # fmt: skip
    assert gone.experiment == ""


def test_the_best_of_several_plans_is_no_more_often_a_false_alarm_than_one():
    """Three plans on the same outcomes without an effect: their shares of alpha hold it, and whole ones would not."""
    draws, trials, plan = np.random.default_rng(11), 400, manifest_of("kpi_plan", {"groups": 80})
    files = [file_of({**MEAN, "name": column, "column": column}) for column in "abc"]
    others = tuple(OtherPlan(plan=f"kpi_plan/{name}", experiment="trial", decision="") for name in "bc")
    alarms = dict.fromkeys((False, True), 0)
    for _ in range(trials):
        data = outcomes_of(np.arange(80) % 2, **{column: draws.normal(10, 4, 80) for column in "abc"})
        for shared in alarms:
            section = KpiTestSection(
                planned_at="2026", looks=(), other_plans=others if shared else (), joules=None, low_joules=None,
                high_joules=None,
            )  # fmt: skip
            found = [
                facts_of_test(KpiRequest(file, Path(), plan, plan, ENERGY, False), data, section, {}) for file in files
            ]
            alarms[shared] += any(one["kpis"][0]["finding"] not in ("none", "open") for one in found)
    most = 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5
    assert 0.02 < alarms[True] / trials <= most < alarms[False] / trials


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 300))
def test_the_share_of_common_units_is_estimated(one, other, common):
    names = [sha256_bytes(str(name).encode())[:12] for name in range(one + other + common)]
    sketches = [sorted(part)[:64] for part in (names[: one + common], names[one:])]
    truth = common / len(names)
    assert abs(common_units(*sketches) - truth) <= 5 * (0.25 / 64) ** 0.5
    assert common_units(sketches[0], sketches[0]) == 1


@pytest.mark.parametrize(
    ("effect", "error", "finding"),
    [(0.5, 0.1, "reached"), (0.25, 0.1, "improved"), (0.1, 0.02, "small"), (0.0, 0.02, "none"), (0.1, 0.2, "open"),
     (-0.5, 0.1, "worse")],
)  # fmt: skip
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_finding_is_read_off_the_interval(effect, error, finding, direction):
    kpi = file_of({**SHARE, "direction": direction}).kpi[0]
    ends = sorted(kpi.sign * end for end in (effect - 2 * error, effect, effect + 2 * error))
    assert kpi_evidence._finding(kpi, ends, abs(effect) > 2 * error) == finding


JOULES = ("joules", "low_joules", "high_joules")


@given(st.tuples(*[st.none() | st.floats(0, 1e12)] * 3), st.floats(0, 10))
def test_energy_that_is_unknown_is_at_least_none_and_has_no_upper_bound(joules, price):
    """The net value at each end is that of the energy which it names, and unknown with it."""
    low, known, high = joules
    file = file_of({**SHARE, "value": 2.0}, money=MONEY | {"price_per_kwh": price})
    data = outcomes_of(np.arange(40) % 2, solved=(np.arange(40) % 3 == 0).astype(float))
    section = KpiTestSection(planned_at="", looks=(), joules=known, low_joules=low, high_joules=high)
    money = kpi_evidence.money_facts(file, file.money, data, [influence(kpi, data) for kpi in file.kpi], section)
    ends = (("net", "gain", known), ("net_low", "gain_low", high), ("net_high", "gain_high", low or 0.0))
    for net, gain, spent in ends:
        if spent is None and price:
            assert money[net] is None
        else:
            costs = 150 + (spent or 0.0) / 3.6e6 * price
            assert money[net] == pytest.approx(money[gain] - costs, abs=1e-5, rel=1e-6)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e5))
def test_it_paid_where_the_whole_interval_is_above_zero(net, half):
    word = kpi_evidence.decision([], {"net_low": net - half, "net_high": net + half})
    assert word == ("paid" if net - half > 0 else "lost" if net + half < 0 else "open")


def test_money_covers_its_truth_with_the_covariance_of_kpis():
    """Two KPIs of the same units: the interval of their value holds the truth 95 % of the time."""
    file = file_of(
        {**MEAN, "name": "a", "column": "a", "value": 1.0}, {**MEAN, "name": "b", "column": "b", "value": 2.0}
    )
    draw, treated, covered = np.random.default_rng(1), np.arange(200) < 100, 0
    for _ in range(1500):
        shared = draw.standard_normal(200)
        data = outcomes_of(treated, a=shared + treated, b=draw.standard_normal(200) - shared + 0.5 * treated)
        low, high = estimate([influence(kpi, data) for kpi in file.kpi], [1.0, 2.0], data, "").interval(0.05)
        covered += low <= 2.0 <= high
    assert 0.93 < covered / 1500 < 0.97


def test_each_answer_has_its_words_and_its_page():
    rows = pd.DataFrame({"t": np.arange(400) % 2, "y": np.random.default_rng(2).random(400)})
    for effect, money, unknown, word in (
        (0.3, MONEY, False, "Yes"),
        (-0.3, MONEY, False, "No"),
        (0.08, MONEY, False, "Not shown"),
        (0.3, MONEY, True, "Not shown"),
        (-0.3, MONEY, True, "No"),
        (0.3, MONEY | {"price_per_kwh": 0.0}, False, "Yes"),
        (0.3, None, False, "Yes"),
        (0.0, None, False, "No"),
    ):
        file = file_of({**SHARE, "value": 2.0}, money=money)
        data = outcomes_of(rows.t, solved=(rows.y < 0.5 + effect * rows.t).astype(float))
        plan = manifest_of("kpi_plan", {"groups": 4})
        known = {name: None if unknown or (money and not money["price_per_kwh"]) else 0.0 for name in JOULES}
        section = KpiTestSection(planned_at="2026-01-01T00:00:00Z", looks=(), **known)
        asked = KpiRequest(file, None, plan, None, None, False)
        stats = facts_of_test(asked, data, section, {})
        found = {"kpi": {"plan": None, "test": stats}}
        assert answer(stats).startswith(f"Did it pay? {word}. ")
        assert ("has no known upper bound" in answer(stats)) == unknown
        html = paid(found) + "".join(paid_folded(found))
        assert f">{word}<" in html
        Page(html)
