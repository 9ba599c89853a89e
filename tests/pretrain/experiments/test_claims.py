"""Experiment on the Transformer's claims: sizes, planted recall, statistics, and the artifacts of its trainings."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from governance import workers
from governance.config import validate
from governance.errors import ConfigError, ManifestError, PipelineError
from governance.files import sha256_bytes
from governance.stage import Recipe, Runtime
from pretrain.experiments.claim_findings import HELD, NOT_HELD, UNDECIDED, findings, interval, law_holds, loss_by, slope
from pretrain.experiments.claim_training import position_ranges
from pretrain.experiments.claims import REPORT_VERSION, claims, plan, sized_models
from pretrain.experiments.claims_config import ARCHITECTURES, ClaimsConfig, Shape
from pretrain.experiments.claims_page import claims_page
from pretrain.experiments.planted_recall import FactForm, longest_distance, plant, row_length, trained_distances
from pretrain.experiments.recurrent import build, flops_of, model_config, parameters_of
from pretrain.model.flops import flops_per_token, parameter_count

SHAPE = Shape(width=16, layers=2, heads=2)
WITHOUT_PACKAGE = tuple(name for name in ARCHITECTURES if name != "xlstm")
TINY = {
    "architectures": ("transformer", "lstm", "lstm_attention"), "width": 16, "sequence_length": 16, "batch_rows": 4,
    "budgets": (128, 256), "seeds": 2, "validation_rows": 4, "evaluations": 2,
    "recall": {"distances": (4, 8), "slots": 4, "values": 2, "steps": 3, "batch_tokens": 32, "rows": 2},
}  # fmt: skip


def config_of(**changes):
    return ClaimsConfig.model_validate(json.loads(json.dumps({**TINY, **changes})))


def test_sizes_equal_closed_forms():
    vocabulary, length = 200, 32
    transformer = build("transformer", SHAPE, vocabulary)
    config = model_config(SHAPE, "rope")
    assert parameters_of(transformer) == parameter_count(config, vocabulary)
    norms = 16 * (2 * 2 + 1)  # a norm multiplies each channel: no product of the convention's N, but counted by it
    assert flops_of(transformer, length) == flops_per_token(config, vocabulary, length) - 6 * norms
    rows, width = 256, 16
    for name, gates in (("lstm", 4), ("gru", 3)):
        cell = gates * (2 * width * width + 2 * width)
        assert parameters_of(build(name, SHAPE, vocabulary)) == rows * width + 2 * (cell + width) + width
        attention = 4 * width * width + width
        assert parameters_of(build(f"{name}_attention", SHAPE, vocabulary)) == (
            rows * width + 2 * (cell + width) + width + attention
        )


def test_each_model_is_matched():
    pytest.importorskip("xlstm")
    models = sized_models(ClaimsConfig(), 1024)
    assert [(one.architecture, one.matching) for one in models] == list(ClaimsConfig().models())
    for one in models[1:]:
        size = one.parameters / models[0].parameters if one.matching == "parameters" else one.flops / models[0].flops
        assert 0.96 < size < 1.04, one


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_model_sees_what_comes_later(name):
    if name == "xlstm":
        pytest.importorskip("xlstm")
    model, draw = build(name, SHAPE, 50, seed=1), torch.Generator().manual_seed(0)
    for length in (1, 70, 130):
        tokens = torch.randint(50, (2, length), generator=draw)
        changed = tokens.clone()
        changed[:, length // 2 :] = 7
        with torch.no_grad():
            before, after = model(tokens), model(changed)
        assert torch.allclose(before[:, : length // 2], after[:, : length // 2], atol=1e-5)
        objective, nats = model.nats(tokens, torch.where(tokens < 25, tokens, -100))
        assert objective.item() == pytest.approx(nats.sum().item(), rel=1e-5)
        logits = before[tokens < 25] @ model.embed_tokens.weight.T
        assert torch.allclose(nats, torch.nn.functional.cross_entropy(logits, tokens[tokens < 25], reduction="none"))


def test_xlstm_in_chunks_equals_the_package_s_parallel_form():
    """xlstm 2.0.6 with mlstm_kernels 2.0.6."""
    pytest.importorskip("xlstm")
    from xlstm.blocks.mlstm.backends import parallel_stabilized_simple

    model, tokens = build("xlstm", SHAPE, 50, seed=1), torch.arange(150).view(1, 150) % 50
    with torch.no_grad():
        ours = model(tokens)
        for layer in model.body.layers:
            layer.xlstm.mlstm_cell.backend_fn = lambda **given: parallel_stabilized_simple(
                **{**given, "lower_triangular_matrix": None}
            )
        theirs = model(tokens)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_missing_package_is_named_with_its_mend(monkeypatch):
    monkeypatch.setitem(sys.modules, "xlstm", None)
    with pytest.raises(ConfigError, match=r"(?s)'xlstm', but its package cannot.*pip install .*or leave 'xlstm' out"):
        sized_models(ClaimsConfig(), 200)


def test_first_weights_depend_on_the_seed_alone():
    for name in WITHOUT_PACKAGE:
        weights = [list(build(name, SHAPE, 50, seed=seed).parameters()) for seed in (1, 1, 2)]
        assert all(torch.equal(*pair) for pair in zip(*weights[:2], strict=True))
        assert any(not torch.equal(*pair) for pair in zip(*weights[1:], strict=True))


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(2, 40), st.integers(2, 5), st.integers(1, 6))
def test_each_question_has_its_fact_at_its_distance(seed, slots, values, doublings):
    form, longest = FactForm(30, slots, values), 2 << doublings
    distances = trained_distances(longest)
    text = np.random.default_rng(seed).integers(30, size=(2, row_length(longest)))
    tokens, targets, asked = plant(text, form, distances, np.random.default_rng(seed))
    assert form.vocabulary_size == 30 + slots * values + slots > tokens.max()
    for row in range(2):
        facts = np.flatnonzero((tokens[row] >= 30) & (tokens[row] < 30 + slots * values))
        named = (tokens[row, facts] - 30) // values
        assert len(set(named.tolist())) == len(named)
        questions = np.flatnonzero(targets[row] >= 0)
        assert set(asked[row, questions].tolist()) <= set(distances)
        for place in questions:
            assert tokens[row, place - asked[row, place]] == targets[row, place]
            assert tokens[row, place] == 30 + slots * values + (targets[row, place] - 30) // values
        untouched = np.setdiff1d(np.arange(text.shape[1]), [*facts, *questions])
        assert np.array_equal(tokens[row, untouched], text[row, untouched])
        assert not asked[row, targets[row] < 0].any()


@given(st.integers(1, 400), st.lists(st.integers(2, 9000), min_size=2, max_size=6, unique=True))
def test_rows_grow_to_the_longest_distance(steps, distances):
    distances = sorted(distances)
    lengths = [longest_distance(step, steps, distances) for step in range(1, steps + 1)]
    assert max(lengths, default=0) <= distances[-1]
    half = lengths[: steps // 2]
    assert half == sorted(half)
    assert steps < 40 or distances[-1] in lengths
    assert distances[-1] in trained_distances(distances[-1])


def test_intervals_and_slopes_equal_those_of_libraries():
    """scipy 1.17.1, statsmodels 0.15.0, numpy."""
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    values = [0.31, 0.12, 0.4, 0.22, 0.05]
    found = interval(values)
    for low, high in (
        stats.ttest_1samp(values, 0).confidence_interval(),
        weightstats.DescrStatsW(values).tconfint_mean(),
    ):
        assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert found["n"] == 5
    assert interval([1.0]) is interval([1.0, None, 2.0]) is None
    rows = [{"distance": d, "asked": 50, "right": r} for d, r in ((128, 50), (512, 31), (8192, 12))]
    assert slope(rows) == pytest.approx(np.polyfit(np.log2([128, 512, 8192]), [1.0, 0.62, 0.24], 1)[0])


def test_the_law_of_recall_has_a_sign_for_each_architecture():
    def rows(*right):
        return [{"distance": 8 << index, "asked": 10, "right": one} for index, one in enumerate(right)]

    right = {
        "transformer": rows(10, 10, 9),
        "lstm": rows(9, 6, 3),
        "lstm_attention": rows(8, 8, 8),
        "xlstm": rows(9, 9, 8),
    }
    assert law_holds(right) == dict.fromkeys(right, True)
    wrong = {
        "transformer": rows(9, 8, 7),
        "lstm": rows(7, 7, 7),
        "lstm_attention": rows(7, 7, 7),
        "xlstm": rows(7, 8, 9),
    }
    assert law_holds(wrong) == dict.fromkeys(wrong, False)


def planted(model, budget, seed, *, loss, rate, watts=10.0):
    """A training whose loss falls linearly to `loss`."""
    curve = [{"step": n, "tokens": n * budget // 4, "loss": 6 - (6 - loss) * n / 4} for n in range(5)]
    for point in curve:
        seconds = point["tokens"] / rate
        point |= {"seconds": seconds, "joules": None if watts is None else watts * seconds}
    places = [{"from": low, "to": high, "targets": high - low, "loss": loss} for low, high in position_ranges(16)]
    seconds = budget / rate
    return {
        "architecture": model[0], "matching": model[1], "budget": budget, "seed": seed, "curve": curve,
        "positions": places, "seconds": seconds, "joules": None if watts is None else watts * seconds,
        "method": "model",
    }  # fmt: skip


def found_of(transformer, lstm):
    """Claims about two architectures by `seed -> (loss, rate, watts)`."""
    return {claim["id"]: claim for claim in findings_of(transformer, lstm)["claims"]}


def findings_of(transformer, lstm):
    """Everything that the report shows of two architectures."""
    config = config_of(architectures=("transformer", "lstm"), matching=("parameters",), seeds=5)
    models = [
        {"architecture": name, "matching": "parameters", "width": 16, "layers": 2, "heads": 2, "parameters": 7000,
         "flops": 40000, "learning_rate": 0.01}
        for name in ("transformer", "lstm")
    ]  # fmt: skip
    runs = [
        planted((name, "parameters"), budget, seed, **dict(zip(("loss", "rate", "watts"), of(seed), strict=True)))
        for name, of in (("transformer", transformer), ("lstm", lstm))
        for budget in config.budgets
        for seed in range(1, 6)
    ]
    return findings(config, models, runs, [])


def test_the_bytes_of_a_report_are_those_of_its_version():
    """A page or a `claims.json` that changes needs another `REPORT_VERSION`, or the old report would be found."""
    found = findings_of(lambda s: (3.0, 200.0 + s, 10.0), lambda s: (3.2, 100.0, 10.0))
    rounded = json.loads(json.dumps(found), parse_float=lambda text: float(f"{float(text):.6g}"))
    page = re.sub(r"<style>.*?</style>", "", claims_page(found), flags=re.DOTALL)  # the look is all reports'
    digest = sha256_bytes(json.dumps(rounded, sort_keys=True).encode() + page.encode())[:16]
    assert (REPORT_VERSION, digest) == (8, "e20b0482ae32ffb0")


def test_sizes_are_related_to_the_transformer_wherever_it_is_named():
    found = findings_of(lambda s: (3.0, 200.0 + s, 10.0), lambda s: (3.2, 100.0, 10.0))
    found["models"] = [{**found["models"][1], "parameters": 14000, "flops": 20000}, found["models"][0]]
    page = claims_page(found)
    assert "for models of 7,000 parameters" in page
    sizes = page.partition("<caption>Sizes")[2].partition("</table>")[0]
    assert re.findall(r">(\d\.\d{3})<", sizes) == ["2.000", "0.500", "1.000", "1.000"]
    order = config_of(architectures=("lstm", "transformer"), recall={"distances": ()})
    ratios = [re.findall(r"\((\d\.\d{3})\)", line) for line in plan(order, 200, 1)]
    assert ratios[2] == ["1.000", "1.000"] != ratios[0]


def test_a_rate_at_the_end_of_those_tried_is_noted():
    found = findings_of(lambda s: (3.0, 200.0 + s, 10.0), lambda s: (3.2, 100.0, 10.0))
    found["method"]["config"]["learning_rates"] = [0.001, 0.003, 0.01]
    assert "The highest rate is best for 2 of 2 models; one beyond it may be better." in claims_page(found)
    found["models"] = [
        {**row, "learning_rate": rate} for row, rate in zip(found["models"], (0.001, 0.003), strict=True)
    ]
    page = claims_page(found)
    assert "The lowest rate is best for 1 of 2 models" in page
    assert "The highest rate" not in page


def test_recall_is_drawn_over_the_logarithm_of_the_distance():
    found = findings_of(lambda s: (3.0, 200.0 + s, 10.0), lambda s: (3.2, 100.0, 10.0))
    about = {"mean": 0.5, "low": -0.1, "high": 1.1, "n": 5}
    rows = [{"distance": distance, "asked": 9, "recall": about} for distance in (4, 8, 64)]
    found["recall"] = [{"architecture": "lstm", "rows": rows, "slope": about, "follows_law": 5, "seeds": 5}]
    drawn = claims_page(found).partition("<b>Recall by distance")[2].partition("</figure>")[0]
    assert re.findall(r"([\d.]+) [\d.]+h", drawn) == ["0.0", "250.0", "1000.0"]
    assert claims_page(found).count("50.0 % [0.0 %,\u00a0100.0 %]") == 3


def test_no_interval_of_a_time_begins_below_zero():
    found = findings_of(lambda s: (3.0, (1.0, 900.0, 5.0, 400.0, 7.0)[s - 1], 10.0), lambda s: (3.2, 100.0, 10.0))
    assert min(row["tokens_per_second"]["low"] for row in found["figures"]) < 0
    figures = claims_page(found).partition("Validation loss, speed, time and energy")[2].partition("</table>")[0]
    assert "[0,\u00a0" in figures
    assert "[-" not in figures


def test_the_quick_form_is_a_valid_experiment_of_the_same_architectures():
    for config in (ClaimsConfig(), ClaimsConfig(architectures=WITHOUT_PACKAGE, recall={"distances": ()})):
        quick = config.quick()
        assert ClaimsConfig.model_validate(quick.model_dump()) == quick
        assert (quick.architectures, quick.optimizer) == (config.architectures, config.optimizer)
        assert bool(quick.recall.distances) == bool(config.recall.distances)


def test_planted_differences_are_found():
    noise = [0.0, 0.02, -0.01, 0.01, -0.02, 0.015]
    better = found_of(lambda s: (3.0 + noise[s], 200.0 + s, 10.0), lambda s: (3.2 - noise[s], 100.0, 10.0))
    assert {name: claim["verdict"] for name, claim in better.items()} == {
        "speed": HELD, "tokens": HELD, "time": HELD, "energy": HELD, "context": UNDECIDED,
    }  # fmt: skip
    assert better["speed"]["against"][0]["difference"]["mean"] == pytest.approx(2.03, abs=0.01)
    assert better["tokens"]["against"][0]["difference"]["mean"] == pytest.approx(0.2 - 2 * 0.003, abs=1e-6)
    worse = found_of(lambda s: (3.2 + noise[s], 100.0 + s, 10.0), lambda s: (3.0, 200.0, None))
    assert (worse["speed"]["verdict"], worse["tokens"]["verdict"], worse["time"]["verdict"]) == (NOT_HELD,) * 3
    assert (worse["energy"]["verdict"], worse["energy"]["against"][0]["difference"]) == (UNDECIDED, None)
    equal = found_of(lambda s: (3.0 + noise[s], 100.0 + s, 10.0), lambda s: (3.0, 102.0 + noise[s], 10.0))
    assert equal["tokens"]["verdict"] == UNDECIDED


@pytest.mark.parametrize(("spread", "verdict"), [(0.05, UNDECIDED), (0.01, NOT_HELD)])
def test_one_of_many_opponents_reverses_a_claim_by_a_wider_interval(spread, verdict):
    """One of 10 opponents is better, by t = 4.5 or 22: the bound of 95 % is 2.8, that of 99.5 % is 5.6."""
    others = [(name, how) for name in ARCHITECTURES if name != "transformer" for how in ("parameters", "flops")]
    config = config_of(architectures=list(ARCHITECTURES), matching=["parameters", "flops"], seeds=5)
    keys, noise = [("transformer", "parameters"), *others], [0, 1, -1, 1, -1, 0]
    runs = [
        planted(key, budget, seed, loss=loss + spread * noise[seed] * (key != keys[0]), rate=100.0)
        for key, loss in zip(keys, [3.0, 2.9, *[3.4] * 9], strict=True)
        for budget in config.budgets
        for seed in range(1, 6)
    ]
    models = [{"architecture": name, "matching": how} for name, how in keys]
    claim = next(one for one in findings(config, models, runs, [])["claims"] if one["id"] == "tokens")
    assert [row["verdict"] for row in claim["against"]] == [NOT_HELD, *[HELD] * 9]
    assert claim["verdict"] == verdict


@given(st.lists(st.floats(0, 40), min_size=2, max_size=8))
def test_a_loss_never_rises_with_time(amounts):
    runs = [planted(("lstm", "parameters"), budget, 1, loss=loss, rate=10) for budget, loss in ((128, 4.0), (256, 3.0))]
    losses = [loss_by(runs, "seconds", amount) for amount in sorted(amounts)]
    assert losses == sorted(losses, reverse=True)
    assert loss_by(runs, "seconds", 0) == 6.0
    assert loss_by(runs, "seconds", 12.8) == pytest.approx(4.0)
    assert loss_by(runs, "seconds", 1e9) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 1}, "1 seed(s) give no interval"),
        ({"budgets": [0, 64]}, "none below one step of 64"),
        ({"budgets": []}, "give increasing numbers of tokens"),
        ({"architectures": ["lstm", "gru"]}, "name 'transformer' and at least one other"),
        ({"learning_rates": []}, "one or more different numbers"),
        ({"width": 18}, "width = 18 is not a multiple of 2 x heads = 4"),
        ({"matching": []}, "name 'parameters', 'flops' or both"),
        ({"recall": {"distances": [8, 4]}}, "two or more increasing numbers"),
    ],
)
def test_settings_that_say_nothing_are_refused(changes, message):
    with pytest.raises(ConfigError) as raised:
        validate({**json.loads(json.dumps(TINY)), **changes}, ClaimsConfig, "run.toml: claims")
    assert message in str(raised.value)


def test_trainings_are_artifacts_that_a_kill_keeps(make_tokens, tmp_path, monkeypatch):
    """The same command goes on behind the last whole training, to the same losses; an altered file is refused."""
    from pretrain.experiments import claim_training
    from pretrain.experiments import claims as module

    tokens, runtime, config = make_tokens(tmp_path), Runtime(tmp_path), config_of()
    made, run_stage = [], module.run_stage

    def killed(recipe, inputs, runtime, make):
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(run_stage(recipe, inputs, runtime, make))
        return made[-1]

    monkeypatch.setattr(module, "run_stage", killed)
    with pytest.raises(KeyboardInterrupt):
        claims(tokens, config, 1, runtime)
    monkeypatch.setattr(module, "run_stage", run_stage)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("claim_*/*/losses.json")}
    assert len(kept) == 5
    checked = []
    report = claims(tokens, config, 1, runtime, checked.extend)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    trainings = len(list(tmp_path.glob("claim_*/*/manifest.json")))
    assert trainings == report.stats["trainings"] == 5 * 2 + 5 * 2 * 2 + 3 * 2  # rates, seeds x budgets, recall
    assert {one.path for one in checked} == {item.path for item in report.inputs}
    monkeypatch.setattr(claim_training, "train_language", pytest.fail)
    assert claims(tokens, config, 1, runtime).digest == report.digest
    found = json.loads((tmp_path / report.folder / "claims.json").read_bytes())
    assert [claim["id"] for claim in found["claims"]] == [
        "speed", "tokens", "time", "energy", "context", "recall", "attention", "attention_recall",
    ]  # fmt: skip
    for row in found["figures"]:
        assert row["loss"]["low"] <= row["loss"]["mean"] <= row["loss"]["high"]
        assert row["joules"] is None  # no meter: unknown, not zero
    firsts = {(row["architecture"], row["seed"]): row["curve"][0]["loss"] for row in found["seeds"]}
    assert all(math.log(256) * 0.9 < loss < math.log(256) * 1.1 for loss in firsts.values())
    page = (tmp_path / report.folder / "report.html").read_text()
    assert page == claims_page(found)
    for text in ("Claims", "LSTM with attention", "no meter measured the energy", "All seeds", "Only 2 seeds"):
        assert text in page
    assert "http" not in page.split("</style>")[1]
    times = next(tmp_path.glob("claim_language/*/times.json"))
    times.write_text(times.read_text().replace("0.0", "0.1"))
    (tmp_path / report.folder / "manifest.json").unlink()
    with pytest.raises(ManifestError, match=r"(?s)times\.json: .*Remove claim_language/"):
        claims(tokens, config, 1, runtime)


def test_two_equal_commands_at_once_make_a_training_once(make_tokens, tmp_path, monkeypatch):
    """The second waits; its own times would be others than the manifest of the first lists."""
    from pretrain.experiments import claims as module

    tokens, config, begun, waits, ended = make_tokens(tmp_path), config_of(), Event(), Event(), []
    recipe = Recipe("claim_language", 1, module._language(config, sized_models(config, 200)[0], 64, 0.01, 1))

    def train(advance):
        begun.set()
        assert waits.wait(300)
        ended.append(time.monotonic())
        return {"curve": [{"loss": 1.0}]}, [ended[-1]]

    def wait(lock, holder):
        waits.set()
        real(lock, holder)

    real = workers._wait
    monkeypatch.setattr(workers, "_wait", wait)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(module._made, recipe, tokens, Runtime(tmp_path), lambda *_, **__: None, train, 1)
        assert begun.wait(300)
        second = pool.submit(module._made, recipe, tokens, Runtime(tmp_path), lambda *_, **__: None, train, 1)
        assert first.result().digest == second.result().digest
    assert module._read(first.result(), tmp_path)["seconds"] == ended[0]
    assert len(ended) == 1


def test_a_seed_has_the_same_rows_for_all_models_and_the_same_losses_again(make_tokens, tmp_path):
    from pretrain.data.dataset import open_rows
    from pretrain.experiments.claim_training import arithmetic, train_language
    from pretrain.experiments.claims import _language

    tokens, config = make_tokens(tmp_path), config_of(architectures=("transformer", "lstm"))
    rows, validation = (open_rows(tokens, role, tmp_path, 16) for role in ("train", "validation"))
    seen = {}
    for one in sized_models(config, 200):
        for turn in range(2):
            read = []
            recipe = _language(config, one, 256, 0.01, 3)
            with arithmetic(1), pytest.MonkeyPatch.context() as patch:
                patch.setattr(type(rows), "batch", recording(type(rows).batch, rows, read))
                found, seconds = train_language(recipe, rows, validation, lambda *_: None)
            seen[one.architecture, one.matching, turn] = (read, found["curve"])
            assert len(seconds) == len(found["curve"]) == 3
    assert len({json.dumps(read) for read, _ in seen.values()}) == 1
    for name, matching, _ in seen:
        assert seen[name, matching, 0] == seen[name, matching, 1]


def recording(batch, rows, read):
    def recorded(self, numbers):
        if self is rows:
            read.append(numbers)
        return batch(self, numbers)

    return recorded


@pytest.mark.parametrize(("kind", "what"), [("train_language", "128 tokens"), ("train_recall", "planted facts")])
def test_a_training_that_diverges_ends_the_experiment_at_once(make_tokens, tmp_path, monkeypatch, kind, what):
    """No report is possible without it, so the others would be hours for nothing."""
    from pretrain.experiments import claim_training

    tokens, config, made = make_tokens(tmp_path), config_of(learning_rates=(0.01,)), []
    trained = getattr(claim_training, kind)

    def diverged(recipe, *given):
        made.append(recipe)
        found, seconds = trained(recipe, *given)
        return ({"recall": None} if kind == "train_recall" else {**found, "curve": [{"loss": None}]}), seconds

    monkeypatch.setattr(claim_training, kind, diverged)
    with pytest.raises(PipelineError, match=rf"Transformer diverged on {what} with seed 1 \(claim_.*lower the rates"):
        claims(tokens, config, 1, Runtime(tmp_path))
    assert len(made) == 1


def test_no_validation_documents_are_refused(make_tokens, tmp_path):
    tokens = make_tokens(tmp_path, validation=0)
    with pytest.raises(PipelineError, match="has no validation documents, so no loss could be compared"):
        claims(tokens, config_of(), 1, Runtime(tmp_path))


def test_a_plan_trains_nothing(tmp_path):
    lines = list(plan(config_of(), 200, 1))
    assert [line.split()[0] for line in lines] == [*["model"] * 5, "trainings", "time"]
    assert lines[-2].startswith(
        "trainings   20 on the run's tokens (2 seeds, budgets of 128, 256 tokens), 10 to choose"
    )
