"""A classifier is the same model for `transformers`, starts from a decoder, and its figures equal scikit-learn's."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from governance.errors import CheckpointError, ConfigError
from pretrain.checkpoint.format import CheckpointIdentity
from pretrain.classification import classifier_scores
from pretrain.classification.calibration import (
    calibration_errors,
    cross_entropies,
    fit_temperature,
    probabilities,
    reliability,
)
from pretrain.classification.classifier_scores import confusion, effective_size, figures, logits_of, macro_f1
from pretrain.classification.folds import mean_of_folds
from pretrain.config.optim import OptimConfig
from pretrain.config.training import TrainConfig, TrainRecipe
from pretrain.evaluation.model_bias import wilson
from pretrain.export.architectures import classifier_of
from pretrain.export.huggingface import ExportVocabulary, write_folder
from pretrain.inference.loaded_model import LoadedModel
from pretrain.initial_weights.folder import open_folder
from pretrain.initial_weights.model_settings import read_model
from pretrain.initial_weights.start import InitialWeights
from pretrain.model.flops import parameter_count
from tests.manifests import manifest_of
from tests.pretrain.export.test_export import EVERY, write_tokenizer
from tests.pretrain.small_models import config, model_of, rows

transformers = pytest.importorskip("transformers", reason="needs transformers, from the extra `dev`")
VOCABULARY = 282  # of `write_tokenizer`
LABELS = ("storm", "calm", "fog")
NAMES = ("llama", "tied", "gpt2_heads", "neox", "mistral", "qwen3", "mixtral", "gemma2_rescaled", "gemma3")


def identity_of(model, labels: int) -> CheckpointIdentity:
    recipe = TrainRecipe(
        model=model.model_copy(update={"num_labels": labels}),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=0, decay_steps=0),
        train=TrainConfig(sequence_length=32, global_batch_size=1, steps=1),
    )
    return CheckpointIdentity(train_key="k" * 64, step=1, vocabulary_size=VOCABULARY, recipe=recipe)


@pytest.mark.parametrize("name", NAMES)
def test_transformers_has_equal_logits(name, tmp_path):
    identity = identity_of(config(**EVERY[name]), len(LABELS))
    model = model_of(identity.recipe.model, VOCABULARY)
    held = dict(model.named_parameters())
    assert sum(one.numel() for one in held.values()) == parameter_count(identity.recipe.model, VOCABULARY)
    tokenizer = ExportVocabulary(write_tokenizer(tmp_path / "tokenizer.json", VOCABULARY), 0)
    write_folder(lambda one: held[one].detach(), identity, tokenizer, tmp_path / "out", labels=LABELS)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", dtype=torch.float32
    ).eval()
    assert theirs.config.id2label == dict(enumerate(LABELS))
    texts = [torch.randint(1, 200, (length,)).numpy() for length in (3, 17, 9)]
    ours = logits_of(LoadedModel(model.eval(), 32, VOCABULARY), texts, rows=2)
    padded = torch.zeros((3, 17), dtype=torch.int64)
    for row, text in enumerate(texts):
        padded[row, : len(text)] = torch.from_numpy(text)
    with torch.no_grad():
        found = theirs(padded, attention_mask=(padded != 0).long()).logits
    np.testing.assert_allclose(found.numpy(), ours, atol=2e-5)


def test_a_model_without_such_a_class_is_refused():
    with pytest.raises(ConfigError, match="no AssayForSequenceClassification"):
        classifier_of(config(**EVERY["sinusoidal"], num_labels=3), LABELS)


@pytest.mark.parametrize("name", ["llama", "neox", "gpt2_tied_relu2"])
def test_a_decoder_becomes_a_classifier_with_a_new_head(name, tmp_path):
    """All but the head is the folder's; the head depends on the seed alone."""
    identity = identity_of(config(**EVERY[name]), 0)
    model = model_of(identity.recipe.model, VOCABULARY)
    held = dict(model.named_parameters())
    tokenizer = ExportVocabulary(write_tokenizer(tmp_path / "tokenizer.json", VOCABULARY), 0)
    write_folder(lambda one: held[one].detach(), identity, tokenizer, tmp_path / "out")
    folder = open_folder(tmp_path / "out")
    weights = InitialWeights(folder, read_model(folder.config).model_copy(update={"num_labels": 3}))
    weights.check(VOCABULARY)
    for one, parameter in held.items():
        if one != "lm_head.weight":
            torch.testing.assert_close(weights.weight(one, parameter.shape), parameter.detach())
    heads = [weights.weight("lm_head.weight", torch.Size((3, 32)), seed) for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_only_the_label_of_a_text_is_learned():
    """Loss and gradient of a row with two texts are those of plain torch at their last tokens."""
    model = model_of(config(num_labels=3))
    batch = rows([[5, 7]])
    targets = torch.full_like(batch.targets, -100)
    targets[0, 4], targets[0, 11] = 2, 0
    objective, nats = model(batch.tokens, targets, batch.segments, batch.positions)
    hidden, _ = model.model(batch.tokens, batch.segments, batch.positions)
    plain = torch.nn.functional.cross_entropy(
        hidden[0, [4, 11]] @ model.lm_head.weight.T, torch.tensor([2, 0]), reduction="sum"
    )
    torch.testing.assert_close(objective, plain)
    assert nats.count_nonzero() == 2
    torch.testing.assert_close(
        torch.autograd.grad(objective, model.lm_head.weight)[0], torch.autograd.grad(plain, model.lm_head.weight)[0]
    )


NUMBERS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=60)


@given(NUMBERS)
def test_figures_equal_those_of_scikit_learn(pairs):
    """scikit-learn 1.9.1."""
    from sklearn.metrics import confusion_matrix, f1_score

    true, predicted = np.array(pairs).T
    matrix = confusion(true, predicted, 3)
    assert (matrix == confusion_matrix(true, predicted, labels=[0, 1, 2])).all()
    expected = f1_score(true, predicted, labels=[0, 1, 2], average="macro", zero_division=0)
    assert float(macro_f1(matrix)) == pytest.approx(expected)


def planted(count: int, sharpness: float, seed: int = 0):
    """Logits of a classifier that is calibrated, times `sharpness`, and labels drawn from them."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(count, 3)) * 2
    chances = probabilities(logits)
    numbers = (generator.random((count, 1)) > chances.cumsum(1)).sum(1)
    return logits * sharpness, numbers


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_a_planted_temperature_is_found(sharpness):
    logits, numbers = planted(20_000, sharpness)
    assert fit_temperature(logits, numbers) == pytest.approx(sharpness, rel=0.05)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.2, 5))
def test_no_temperature_has_a_lower_loss(seed, sharpness):
    logits, numbers = planted(60, sharpness, seed)
    fitted = fit_temperature(logits, numbers)
    best = cross_entropies(logits, numbers, fitted).mean()
    grid = [cross_entropies(logits, numbers, value).mean() for value in np.exp(np.linspace(-3, 3, 61))]
    assert best <= min(grid) + 1e-9


def test_calibration_error_is_that_of_the_reliability_table():
    logits, numbers = planted(4000, 3.0)
    chances = probabilities(logits)
    table = reliability(chances, numbers)
    plain = sum(row["documents"] * abs(row["accuracy"] - row["probability"]) for row in table) / 4000
    ones = np.ones((1, 4000))
    assert calibration_errors(chances, numbers, ones)[0] == pytest.approx(plain, abs=1e-5)
    assert plain > 0.1
    assert calibration_errors(probabilities(logits, 3.0), numbers, ones)[0] < 0.03


def test_intervals_hold_the_values_and_groups_widen_them():
    logits, numbers = planted(400, 2.0)
    each, alone = np.repeat(np.arange(20), 20), [str(number) for number in range(400)]
    copied = np.repeat(logits[:20], 20, axis=0), np.repeat(numbers[:20], 20)
    plain = figures(*copied, alone, LABELS, 1.5)
    grouped = figures(*copied, [str(one) for one in each], LABELS, 1.5)
    for row in (plain["accuracy"], plain["macro_f1"], grouped["accuracy"], grouped["macro_f1"]):
        assert row["lower"] <= row["value"] <= row["upper"]
    widths = [one["accuracy"]["upper"] - one["accuracy"]["lower"] for one in (plain, grouped)]
    assert widths[1] > 3 * widths[0]
    sure = np.eye(3)[np.zeros(40, int)] * 9.0
    perfect = figures(sure, np.zeros(40, int), [str(number // 10) for number in range(40)], LABELS)
    assert perfect["accuracy"]["lower"] == pytest.approx(wilson(4, 4)[1])
    cells = [cell["documents"] for row in plain["confusion"].values() for cell in row.values()]
    assert sum(cells) == 400
    json.dumps(plain)


def clustered(generator, groups: int, *, share: float = 0.8, alike: float = 0.2):
    """Documents of 10 to 50 of each group, whose accuracies differ: labels, predictions, groups."""
    sizes = generator.integers(10, 50, groups)
    accuracies = generator.beta(share * (1 / alike - 1), (1 - share) * (1 / alike - 1), groups)
    place = np.repeat(np.arange(groups), sizes)
    numbers = generator.integers(0, 2, len(place))
    return numbers, np.where(generator.random(len(place)) < accuracies[place], numbers, 1 - numbers), place


@pytest.mark.parametrize("groups", [3, 5, 12])
def test_the_interval_of_few_groups_covers_the_truth(groups):
    """Percentiles of resamples of the groups, and the normal's quantile, cover 72 to 89 %."""
    generator, hits = np.random.default_rng(groups), 0
    for _ in range(400):
        numbers, predicted, place = clustered(generator, groups)
        right = (numbers == predicted).astype(float)
        effective = effective_size(right, place)
        _, lower, upper = wilson(right.mean() * effective, effective)
        hits += lower <= 0.8 <= upper
    assert hits / 400 > 0.9


def test_macro_f1_of_few_groups_covers_the_truth(monkeypatch):
    monkeypatch.setattr(classifier_scores, "_RESAMPLES", 150)
    generator, hits = np.random.default_rng(0), 0
    for _ in range(120):
        numbers, predicted, place = clustered(generator, 5)
        row = figures(np.eye(2)[predicted] * 2.0, numbers, place.astype(str).tolist(), ["a", "b"])["macro_f1"]
        assert row["lower"] <= row["value"] <= row["upper"]
        hits += row["lower"] <= 0.8 <= row["upper"]
    assert hits / 120 > 0.9


@given(st.lists(st.integers(0, 10), min_size=2, max_size=12).filter(lambda hits: 0 < sum(hits) < 10 * len(hits)))
def test_equal_groups_have_the_precision_of_their_shares(hits):
    """scipy: the variance of the mean of equally large groups is that of independent shares."""
    groups, shares = len(hits), np.array(hits) / 10
    right = np.concatenate([np.repeat([1.0, 0.0], [one, 10 - one]) for one in hits])
    spread = right.mean() * (1 - right.mean())
    error = max(stats.sem(shares), np.sqrt(spread / len(right)))  # never more precise than independent documents
    found = effective_size(right, np.repeat(range(groups), 10))
    assert stats.norm.ppf(0.975) * np.sqrt(spread / found) == pytest.approx(stats.t.ppf(0.975, groups - 1) * error)


def test_one_group_says_nothing_of_a_change():
    logits, numbers = planted(40, 3.0)
    found = figures(logits, numbers, ["one"] * 40, LABELS, 2.0)
    assert found["calibration"]["ece_change"]["lower"] is None
    for row in (found["accuracy"], found["macro_f1"]):
        assert row["upper"] - row["lower"] > 0.7
    rare = np.array([0] * 30 + [1])
    sure = figures(np.eye(3)[rare] * 9.0, rare, [str(one) for one in range(31)], LABELS)
    assert sure["macro_f1"]["lower"] < sure["macro_f1"]["value"] <= sure["macro_f1"]["upper"]


def test_the_interval_of_folds_covers_the_truth():
    """Least squares of 40 noisy points: a plain interval of the folds covers too seldom, the corrected one does not."""
    generator, hits, plain = np.random.default_rng(0), 0, 0
    for _ in range(400):
        x = generator.normal(size=(40, 5))
        y = x @ np.ones(5) + generator.normal(size=40)
        errors = []
        for fold in range(5):
            held = np.arange(40) % 5 == fold
            found = np.linalg.lstsq(x[~held], y[~held], rcond=None)[0]
            errors.append(float(((y[held] - x[held] @ found) ** 2).mean()))
        row = mean_of_folds(errors, 40, 160)
        truth = 1 + 5 / (32 - 5 - 1)  # noise, and the expected error of the fit on 32 points
        hits += row["lower"] <= truth <= row["upper"]
        margin = 2.776 * np.std(errors, ddof=1) / 5**0.5
        plain += abs(np.mean(errors) - truth) <= margin
    assert hits > plain
    assert hits / 400 > 0.93


@given(st.floats(0, 1), st.integers(2, 12))
def test_equal_folds_have_no_interval(value, count):
    """Whatever their mean is rounded to."""
    assert mean_of_folds([value] * count, 40, 160) == {"value": round(value, 6), "lower": None, "upper": None}


def test_a_language_model_is_no_classifier():
    from pretrain.classification.classifier_scores import require_classifier

    recipe = identity_of(config(), 0)
    values = {"train_key": recipe.train_key, "step": 1, "vocabulary_size": VOCABULARY}
    stored = manifest_of("checkpoint", key="c", config={**values, "recipe": recipe.recipe.model_dump(mode="json")})
    with pytest.raises(CheckpointError, match="no classification head"):
        require_classifier(stored, LABELS)


def test_the_mean_of_a_text_is_pooled():
    """Logits and gradients are those of plain means, in packed rows and for texts alone."""
    model = model_of(config(num_labels=3, pooling="mean"))
    batch = rows([[5, 7, 20]])
    targets = torch.full_like(batch.targets, -100)
    targets[0, 4], targets[0, 11] = 2, 0
    objective, _ = model(batch.tokens, targets, batch.segments, batch.positions)
    hidden, _ = model.model(batch.tokens, batch.segments, batch.positions)
    means = torch.stack([hidden[0, :5].mean(0), hidden[0, 5:12].mean(0)])
    plain = torch.nn.functional.cross_entropy(means @ model.lm_head.weight.T, torch.tensor([2, 0]), reduction="sum")
    torch.testing.assert_close(objective, plain)
    learned = [one for one in model.parameters() if one.requires_grad]
    for ours, theirs in zip(
        torch.autograd.grad(objective, learned, retain_graph=True), torch.autograd.grad(plain, learned), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    texts = [batch.tokens[0, :5].numpy(), batch.tokens[0, 5:12].numpy()]
    alone = logits_of(LoadedModel(model.eval(), 32, VOCABULARY), texts)
    np.testing.assert_allclose(alone, (means @ model.lm_head.weight.T).detach().numpy(), atol=2e-5)


def test_pooled_means_are_refused_where_they_cannot_be_read():
    with pytest.raises(ConfigError, match="read the last token"):
        classifier_of(config(**EVERY["llama"], num_labels=3, pooling="mean"), LABELS)
