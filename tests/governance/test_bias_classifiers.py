"""A classifier of sentences as an instrument of tone: planted tone, any workers, its own bias, bad scores."""

from __future__ import annotations

import json
import math
import multiprocessing
import random
import shutil
import struct
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from assay.cli.main import main
from assay.corpus_audit import _classifiers
from data_pipeline.documents import DOCUMENT_SCHEMA
from data_pipeline.filters.classifier import ClassifierConfig, scores_of, train_classifier
from governance.checks.bias.bias import BiasConfig, bias_audit, sentence_scorers
from governance.checks.bias.count_tables import schema_of
from governance.checks.bias.examples import priorities_of
from governance.checks.bias.instrument_check import TOLERANCE, load_templates
from governance.checks.bias.interval_choice import TOO_FEW
from governance.checks.bias.provenance_columns import bucket_of
from governance.checks.bias.sentence_tables import SentenceScorer, sentence_scores
from governance.checks.bias.sentiment import tone_rows
from governance.checks.bias.word_lists.lexicons import load_lexicons
from governance.config import validate
from governance.errors import ConfigError, PipelineError
from governance.kernels.buffers import text_buffers
from governance.kernels.mentions import count_texts, pack
from governance.manifest import Input
from governance.reports.facts.report_facts import instruments_of
from governance.reports.sections.group_sections import groups_folded
from governance.stage import Runtime
from governance.workers import take_turns
from tests.conftest import write_run, write_tales
from tests.data_pipeline import test_fasttext_scores as fasttext_models
from tests.data_pipeline.test_classifier import save_classifier
from tests.governance.test_bias_stage import artifact, tables_of
from tests.governance.test_reports_groups import FOUND

NAME = "sentiment:polarity"
TERMS = """version = 1
[en.gender]
female = ["she", "her"]
male = ["he", "his"]
[en.age]
old = ["old"]
young = ["young"]
[de.gender]
female = ["frau"]
"""
POINT = round(1000 * math.tanh(1.0))
"""Thousandths of a sentence with one word of weight 2."""
COUNT = 300
"""Documents; the last is of another language."""
FAVOURED = {"female": 0.75, "male": 0.45}
SUBJECTS = {"female": ["She", "Her aunt", "An old neighbour of her friends"], "male": ["He", "The uncle of his friend"]}


def model_file(
    path: Path, weights: dict[str, float], end: float = 0.0, outputs: tuple[float, float] = (1.0, -1.0)
) -> None:
    """A fastText model whose P(l0) - P(l1) is tanh of the mean weight of a text's known words and its end."""
    arrays = iter([np.array([end, *weights.values()]), np.array(outputs)])

    def matrix(draw, rows, columns):
        return struct.pack("<qq", rows, columns) + next(arrays).astype("<f4").tobytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fasttext_models, "WORDS", ["</s>", *weights])
        patch.setattr(fasttext_models, "matrix", matrix)
        path.write_bytes(fasttext_models.model_bytes(dimensions=1))


def sentences(seed: int) -> list[tuple[str, str, int]]:
    """(group or "", sentence, tone) of a document."""
    chance = random.Random(seed)
    found = []
    for _ in range(chance.randint(1, 6)):
        group = chance.choice(["female", "male", ""])
        if not group:
            found.append(("", "It was a terrible storm.", 0))
            continue
        tone = 1 if chance.random() < FAVOURED[group] else -1
        word = "wonderful" if tone > 0 else "terrible"
        found.append((group, f"{chance.choice(SUBJECTS[group])} had\na {word} day.", tone))
    return found


def documents(number: int, a_shard: int) -> list[list[dict[str, object]]]:
    rows = [
        {
            **dict.fromkeys(DOCUMENT_SCHEMA.names, ""), "id": f"s/f#{seed}", "source": "s", "language": "en",
            "text": " ".join(sentence for _, sentence, _ in sentences(seed)), "position": seed,
            "url": f"https://site{seed % 97}.example/{seed}",
        }
        for seed in range(number)
    ]  # fmt: skip
    rows[-1] = {**rows[-1], "language": "de"}  # a language that the classifier does not read
    return [rows[start : start + a_shard] for start in range(0, number, a_shard)]


def project(root: Path, weights: dict[str, float], number: int = COUNT, a_shard: int = 100):
    """The corpus, the settings and the model."""
    root.mkdir(exist_ok=True)
    (root / "terms.toml").write_text(TERMS)
    model_file(root / "tone.bin", weights)
    labels = {"model": "tone.bin", "positive": ["l0"], "negative": ["__label__l1"]}
    own = {"polarity": {**labels, "languages": ["en"]}}
    config = validate({"lists": {"terms": "terms.toml"}, "classifiers": own}, BiasConfig, "run.toml")
    model = train_classifier(
        validate({"name": "polarity", **labels}, ClassifierConfig, "run.toml"), root, Runtime(root)
    )
    tone = {"polarity": (model, partial(scores_of, model, root))}
    return {"redact": artifact(root, "redact", "documents", documents(number, a_shard))}, config, tone


def measured(root: Path, made) -> tuple[dict, list]:
    tables, findings = (
        json.loads((root / made.folder / f"{name}.json").read_bytes()) for name in ("tables", "findings")
    )
    return tables, findings


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    root = tmp_path_factory.mktemp("alone")
    artifacts, config, tone = project(root, {"wonderful": 2.0, "terrible": -2.0})
    return root, bias_audit(artifacts, config, Runtime(root), folder=root, tone=tone), tone["polarity"][0]


def test_the_tone_that_was_planted_is_measured(alone):
    """Sums of integers equal those of the truth, and the gap is the difference of its means."""
    root, made, _ = alone
    truth = Counter()
    for seed in range(COUNT - 1):
        for group, _, tone in sentences(seed):
            if group:
                truth["sentences", bucket_of(f"site{seed % 97}.example"), group] += 1
                truth["total", bucket_of(f"site{seed % 97}.example"), group] += tone * POINT
    rows = [row for row in tables_of(made, root)["scores"].to_pylist() if row["instrument"] == NAME]
    mine = [row for row in rows if row["axis"] == "gender"]
    assert {(row["language"], row["source"]) for row in rows} == {("en", "s")}
    assert (
        Counter({(name, row["bucket"], row["group"]): row[name] for row in mine for name in ("sentences", "total")})
        == truth
    )
    assert all(row["squares"] == row["sentences"] * POINT**2 and row["hits"] == row["sentences"] for row in rows)
    assert {row["axis"] for row in rows} == {"gender", "age", "age x gender"}, "and nobody's sentences are not scored"
    of = {group: [sum(number for (name, _, who), number in truth.items() if (name, who) == (part, group))
                  for part in ("total", "sentences")] for group in FAVOURED}  # fmt: skip
    mean = {group: total / 1000 / n for group, (total, n) in of.items()}
    tables, findings = measured(root, made)
    tone = {row["group"]: row for row in tables["tone"] if row["instrument"] == NAME and row["axis"] == "gender"}
    assert set(tone) == {"female", "male"}
    for group, other in (("female", "male"), ("male", "female")):
        row = tone[group]
        assert (row["metric"], row["against"], row["n"]) == ("sentiment_gap", "other groups", of[group][1])
        assert row["value"] == pytest.approx(mean[group] - mean[other], abs=1e-8)
        planted = 2 * (FAVOURED[group] - FAVOURED[other]) * POINT / 1000
        assert row["lower"] < planted < row["upper"]
        assert row["q"] < 0.001
    [found] = [
        one for one in findings if one["instrument"] == NAME and (one["suite"], one["group"]) == ("tone", "female")
    ]
    words = found["effect"]["words"]
    assert words.startswith("higher by ")
    assert words.endswith(f"points of {NAME} per sentence")
    assert (found["terms"]["words"], found["terms"]["group"][0]["term"]) == ([], "her")
    praised = [
        seed for seed in range(COUNT - 1) if any(group == "female" and tone > 0 for group, _, tone in sentences(seed))
    ]
    ranks = priorities_of(pa.chunked_array([pa.array([f"s/f#{seed}" for seed in praised], pa.large_string())]))
    least = [f"s/f#{praised[place]}" for place in np.argsort(ranks)[:3]]
    assert [one["id"] for one in found["examples"]] == least
    assert all("wonderful" in one["text"] and "er" in one["text"] for one in found["examples"])
    [covered] = [row for row in tables["representation"] if row["metric"] == "coverage" and row["instrument"] == NAME]
    assert covered["value"] == pytest.approx(1 - 1 / COUNT)
    assert f"no {NAME} classifier covers: de" in covered["note"]


def test_the_report_names_the_model(alone):
    root, made, model = alone
    instruments = instruments_of({"bias": made})
    assert instruments[NAME] == {"kind": "classifier", "digest": model.digest}
    assert instruments["sentiment"] == {"kind": "word list", "digest": made.config["lists"]["sentiment"]}
    tables, _ = measured(root, made)
    page = "".join(map(str, groups_folded({**FOUND, "bias": tables, "instruments": instruments})))
    assert f"{NAME} (classifier, digest {model.digest[:12]})" in page
    assert made.config["classifiers"] == {NAME: {"model": model.digest, "languages": ["en"]}}
    assert model.digest in [item.digest for item in made.inputs]


def _one_of_three(root: Path, worker: int, given) -> None:
    artifacts, config, tone = given
    take_turns(
        Runtime(root, worker=(worker, 3)), lambda turn: bias_audit(artifacts, config, turn, folder=root, tone=tone)
    )


@pytest.mark.slow
def test_three_workers_and_other_shards_give_the_same_tables(tmp_path, alone):
    root = tmp_path / "array"
    given = artifacts, config, tone = project(root, {"wonderful": 2.0, "terrible": -2.0})
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_one_of_three, args=(root, worker, given)) for worker in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    look = Runtime(root, make=False)
    assert bias_audit(artifacts, config, look, folder=root, tone=tone).digest == alone[1].digest
    root = tmp_path / "other"
    artifacts, config, tone = project(root, {"wonderful": 2.0, "terrible": -2.0}, a_shard=77)
    other = bias_audit(artifacts, config, Runtime(root), folder=root, tone=tone)
    for one, same in zip(alone[1].files("counts", alone[0]), other.files("counts", root), strict=True):
        assert one.read_bytes() == same.read_bytes(), one.name


def test_a_model_that_scores_the_group_itself_is_biased_and_finds_nothing(tmp_path):
    weights = {f"{word}{end}": 2.0 for word in ("She", "she", "Her", "her") for end in ("", ".")}
    artifacts, config, tone = project(tmp_path, weights, number=150)
    made = bias_audit(artifacts, config, Runtime(tmp_path), folder=tmp_path, tone=tone)
    tables, findings = measured(tmp_path, made)
    checked = {row["group"]: row for row in tables["instruments"] if row["instrument"] == NAME}
    assert checked["female"]["note"].startswith("biased: ")
    assert checked["female"]["value"] > 0.5
    rows = [row for row in tables["tone"] if row["instrument"] == NAME and row["axis"] == "gender"]
    assert rows
    assert all(f"biased instrument: {NAME}" in row["note"] for row in rows)
    assert [one for one in findings if one["instrument"] == NAME] == []
    other = {**tone, "polarity": (tone["polarity"][0].model_copy(update={"stats": {"x": 1}}), tone["polarity"][1])}
    assert bias_audit(artifacts, config, Runtime(tmp_path), folder=tmp_path, tone=other).key != made.key


def test_few_sentences_of_a_group_have_no_interval_where_blame_is_rare():
    """A classifier that praises 95 of 100 sentences: a group of 60 has an exact interval, one of 12 none."""
    rows = []
    for group, number, blamed in (("large", 2000, 100), ("some", 60, 0), ("few", 12, 0)):
        tones = np.array([-930] * blamed + [930] * (number - blamed))
        for bucket in range(10):
            mine = tones[bucket::10]
            counts = (len(mine), int(mine.sum()), int((mine**2).sum()), len(mine))
            rows.append(("en", "s", bucket, "x", group, NAME, *counts))
    columns = zip(*rows, strict=True)
    schema = schema_of("scores")
    table = pa.table([pa.array(of, field.type) for of, field in zip(columns, schema, strict=True)], schema=schema)
    found = {row["group"]: row for row in tone_rows(table)}
    assert found["few"]["note"] == TOO_FEW
    assert (found["few"]["lower"], found["few"]["p"]) == (None, None)
    some = found["some"]
    assert some["lower"] < 0 < some["value"] == pytest.approx(0.093, abs=0.001)
    assert some["p"] > 0.05, "no blame among 60 is not a finding, though the group's own sentences do not vary"


def test_spans_are_the_sentences_that_mention_a_group():
    text = "He came. Nobody knows. She saw her aunt!\n\nThe end"
    packed = pack({("he",): [(0, 0, 0)], ("she",): [(0, 1, 0)], ("her",): [(0, 1, 0)]}, {}, (2, 0, 0, 0), {})
    data, offsets = text_buffers(pa.array(["x", text], pa.large_string()))
    rows, zeros = np.array([1]), np.zeros(1, np.int64)
    found = count_texts((data, offsets), rows, zeros, packed, None, spans=True)
    shown = [(n, group, bytes(data[start:end]).decode().strip()) for n, group, start, end in found.spans.tolist()]
    assert shown == [(0, 0, "He came."), (0, 1, "She saw her aunt!")]
    assert len(count_texts((data, offsets), rows, zeros, packed, None).spans) == 0


@pytest.mark.parametrize("score", [math.nan, math.inf, 1000.5])
def test_a_score_that_is_no_number_ends_the_audit(score):
    data, _ = text_buffers(pa.array(["He came."], pa.large_string()))
    scorer = SentenceScorer(NAME, ("en",), lambda texts: [0.0, score])
    spans = np.array([[0, 0, 0, 8], [0, 1, 0, 3]])
    with pytest.raises(PipelineError, match=f"{NAME}: 1 of 2 sentences have a score that is not a number from -1000"):
        sentence_scores(scorer, spans, data)


def test_a_model_that_cannot_be_used_is_reported_before_the_corpus_is_read(tmp_path, capsys):
    """A missing or wrong file, a label that does not exist, a score that is not a number, a language without terms."""
    write_run(tmp_path)
    shutil.copy(Path(__file__).parents[2] / "configs" / "policy.toml", tmp_path / "policy.toml")
    write_tales(tmp_path / "a.jsonl", range(3))
    model_file(tmp_path / "tone.bin", {"wonderful": 2.0})
    model_file(tmp_path / "huge.bin", {"wonderful": 2.0}, end=3e38, outputs=(3e38, 3e38))
    (tmp_path / "weights").mkdir()
    for model, label, language, status, words in (
        ("no.bin", "l1", "en", 66, "classifier p: model"),
        ("a.jsonl", "l1", "en", 78, "is neither a fastText model (.bin, .ftz) nor a folder of transformers"),
        ("weights", "l1", "en", 66, "has no config.json"),
        ("tone.bin", "hq", "en", 78, "classifier p: negative = ['hq'], but the model's labels are ['l0', 'l1']"),
        ("huge.bin", "l1", "en", 1, "classifier p: the score of a plain sentence is nan"),
        ("tone.bin", "l1", "xq", 78, "audit.bias.classifiers.p: languages has 'xq', which has no identity terms"),
    ):
        of = f"model='{model}',positive=['l0'],negative=['{label}'],languages=['{language}']"
        words_of = [
            "data",
            "prepare",
            str(tmp_path / "run.toml"),
            "--root",
            str(tmp_path / "made"),
            "--data-workers",
            "1",
        ]
        assert main([*words_of, "--set", f"audit.bias.classifiers={{p={{{of}}}}}"]) == status
        assert words in capsys.readouterr().err
    assert not (tmp_path / "made" / "ingest").exists()


def test_settings_that_cannot_be_used_are_reported(tmp_path):
    of = {"model": "tone.bin", "positive": ["l0"], "negative": ["l1"], "languages": ["en"]}
    for values, words in (
        ({"classifiers": {"a": {**of, "negative": []}}}, "positive and negative"),
        ({"classifiers": {"a": {**of, "languages": []}}}, r"languages = \[\]: needs at least 1 item"),
        ({"classifiers": {"a": {**of, "model": ""}}}, "model"),
        ({"classifiers": {"a": of}, "sentiment": {"a": {"en": "a.txt"}}}, "both have the name 'a'"),
    ):
        with pytest.raises(ConfigError, match=words):
            validate(values, BiasConfig, "run.toml")
    (tmp_path / "terms.toml").write_text(TERMS)
    values = {"classifiers": {"a": {**of, "languages": ["en", "xx"]}}, "lists": {"terms": "terms.toml"}}
    config = validate(values, BiasConfig, "run.toml")
    with pytest.raises(ConfigError, match=r"audit.bias.classifiers.a: languages has 'xx', which has no identity terms"):
        sentence_scorers(config, load_lexicons(config, tmp_path), {})


@pytest.mark.parametrize("kind", ["fasttext", "transformers"])
def test_a_classifier_of_documents_is_checked_as_an_instrument(tmp_path, kind):
    """The models of `[[data.classifiers]]`: their scores of neutral sentences, for every group that the audit counts.

    The fastText model favours women by its words; the other one scores by chance, and its rows equal a direct check.
    """
    artifacts, config, _ = project(tmp_path, {"wonderful": 2.0}, number=12)
    if kind == "fasttext":
        words = [f"{word}{end}" for word in ("she", "her", "She", "Her") for end in ("", ".")]
        model_file(tmp_path / "q.bin", dict.fromkeys(words, 2.0))
        settings = ClassifierConfig(name="quality", model="q.bin", positive=("l0",), negative=("l1",), min_score=0.0)
    else:
        # With the usual deviation of 0.02, another word would change a score by rounding alone.
        _, tokenizer = save_classifier(tmp_path / "q", deviation=1.0)
        known = ("fox", "brown")  # of its small vocabulary, unlike the pronouns
        assert not {tokenizer.unk_token_id} & set(tokenizer(" ".join(known)).input_ids)
        text = (tmp_path / "terms.toml").read_text()
        (tmp_path / "terms.toml").write_text(text.replace('"she"', '"fox"').replace('"he"', '"brown"'))
        settings = ClassifierConfig(name="quality", model="q", positive=("LABEL_1",), min_score=0.0)
    model = train_classifier(settings, tmp_path, Runtime(tmp_path))
    judged = artifacts["redact"].model_copy(
        update={"stage": "classify", "inputs": (Input(stage="classifier", digest=model.digest, path=model.path),)}
    )
    models = _classifiers({"classify": judged}, tmp_path)
    made = bias_audit(artifacts, BiasConfig(lists=config.lists), Runtime(tmp_path), folder=tmp_path, models=models)
    rows = {row["group"]: row for row in measured(tmp_path, made)[0]["instruments"]
            if (row["instrument"], row["language"]) == ("classifier:quality", "en")}  # fmt: skip
    assert set(rows) == {"female", "male", "old", "young"}
    sentences = load_templates().languages["en"]

    def mean(*terms):
        texts = [line.replace("{term}", term) for term in terms for line in sentences]
        return np.mean(scores_of(model, tmp_path, texts))

    female, male = (("she", "her"), ("he", "his")) if kind == "fasttext" else (("fox", "her"), ("brown", "his"))
    assert rows["female"]["value"] == pytest.approx(mean(*female) - mean(*male), abs=1e-5)
    assert abs(rows["female"]["value"]) > 1e-5
    assert rows["female"]["n"] == 2 * len(sentences)
    if kind == "fasttext":
        assert rows["female"]["note"].startswith("biased: ")
        assert rows["female"]["value"] > TOLERANCE
