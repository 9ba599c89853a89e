"""The probe counts copies exactly, finds planted repeats, and its rate rises with the copies."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from data_pipeline.tokens.pack import PackConfig, pack
from data_pipeline.tokens.token_shards import EncodedDocument, TokenShard, write_token_shard
from governance.errors import CheckpointError, ConfigError
from governance.manifest import Manifest, describe, read_manifest, write_manifest
from governance.stage import Runtime
from pretrain.config.training import EngineConfig, MixtureConfig, TrainConfig
from pretrain.data.dataset import open_rows
from pretrain.data.sampler import sampler_of
from pretrain.inference.generation import generate
from pretrain.inference.loaded_model import LoadedModel, load_model
from pretrain.inference.memorisation import MemorisationConfig, draw, probe, probe_memorisation, rows_of, trend
from pretrain.inference.read_targets import read_targets, rows_read, tokens_read
from pretrain.inference.window_counts import bound_of, copies_of, distinct, read_window, sample_windows
from tests.pretrain.small_models import config as model_config
from tests.pretrain.small_models import model_of

WHOLE = bound_of(0)


def shards_of(folder: Path, parts, vocabulary=200) -> list[TokenShard]:
    """A shard of each list of documents, given without their end-of-document token 0."""
    shards = []
    for number, texts in enumerate(parts):
        documents = [EncodedDocument(f"{number}/{n}", np.array([*ids, 0]), 3 * len(ids)) for n, ids in enumerate(texts)]
        path = folder / f"{number:05d}.tokens"
        write_token_shard(path, documents, vocabulary, 0)
        shards.append(TokenShard.open(path))
    return shards


def plain_counts(parts, length) -> Counter:
    """Documents of each window."""
    return Counter(
        window
        for texts in parts
        for ids in texts
        for window in {tuple(ids[at : at + length]) for at in range(len(ids) - length + 1)}
    )


DOCUMENT = st.lists(st.integers(1, 3), min_size=1, max_size=14)
PARTS = st.lists(st.lists(DOCUMENT, min_size=1, max_size=5), min_size=1, max_size=3)


@settings(max_examples=60)
@given(PARTS, st.integers(1, 6), st.sampled_from((WHOLE, WHOLE // 3)))
def test_copies_are_those_of_a_plain_count(tmp_path_factory, parts, length, bound):
    """Each window of the sample with all its copies; with the highest bound all windows, in no two documents."""
    shards = shards_of(tmp_path_factory.mktemp("shards"), parts)
    windows, expected = copies_of(sample_windows(shards, length, bound)), plain_counts(parts, length)
    found = {}
    for first, copies in zip(*distinct(windows), strict=True):
        window = read_window(shards, windows, int(first), int(copies))
        assert shards[window.shard].tokens[window.offset : window.offset + length].tolist() == window.tokens.tolist()
        found[tuple(window.tokens.tolist())] = window.copies
    assert found == ({key: expected[key] for key in found} if bound != WHOLE else dict(expected))


def test_the_sample_is_bounded_and_even():
    tokens, most = 1 << 40, 1 << 20
    assert bound_of(tokens, most) / (1 << 64) == pytest.approx(most / tokens)
    assert bound_of(10, 20) == (1 << 64) - 1


def test_a_share_of_the_windows_is_a_share_of_the_copies(tmp_path):
    draws = np.random.default_rng(0)
    shards = shards_of(tmp_path, [[draws.integers(1, 200, 4000).tolist() for _ in range(5)]])
    kept = len(sample_windows(shards, 8, WHOLE // 4).hashes)
    total = 5 * (4000 - 7)
    assert abs(kept - total / 4) < 5 * math.sqrt(total * 3 / 16)


def test_a_run_of_one_token_is_one_copy(tmp_path):
    """Such a run overlaps itself, and a model that only repeats its last token would reproduce it."""
    draws = np.random.default_rng(0)
    texts = [[*draws.integers(1, 200, 20).tolist(), *[n + 1] * 60, *draws.integers(1, 200, 20)] for n in range(9)]
    settings = MemorisationConfig(prefix_tokens=4, continuation_tokens=4)
    drawn, _ = draw({"train": shards_of(tmp_path, [[*texts, texts[0]]]), "validation": []}, settings, WHOLE)
    assert {window.copies for _, window in drawn} == {1, 2}


def test_only_answers_are_continuations(tmp_path):
    draws = np.random.default_rng(0)
    answers = np.arange(60) // 10 % 2 == 1
    made = [EncodedDocument(f"d{n}", np.append(draws.integers(1, 200, 59), 0), 90, answers=answers) for n in range(30)]
    write_token_shard(tmp_path / "0.tokens", made, 200, 0)
    shard = TokenShard.open(tmp_path / "0.tokens")
    settings = MemorisationConfig(prefix_tokens=6, continuation_tokens=5)
    drawn, populations = draw({"train": [shard], "validation": [shard]}, settings, WHOLE)
    assert len(drawn) == 30
    assert all(shard.answers[window.offset + 6 : window.offset + 11].all() for _, window in drawn)
    assert populations[1] == 30 * (6 + 6 + 5)  # the end-of-document token is in no window
    assert populations[0] == 0  # prompts of the training shards are not unseen


def test_windows_that_differ_under_one_hash_are_not_copies(tmp_path):
    shards = shards_of(tmp_path, [[[1, 2, 3]] * 5000, [[1, 2, 3]] * 5000, [[1, 2, 4]]])
    windows = copies_of(sample_windows(shards, 3, WHOLE))
    found = {copies: int(first) for first, copies in zip(*distinct(windows), strict=True)}
    assert read_window(shards, windows, found[10_000], 10_000).copies == 10_000
    forged = dataclasses.replace(windows, places=np.sort(windows.places))
    assert read_window(shards, forged, 0, 10_000) is not None
    assert read_window(shards, forged, 0, 10_001) is None


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mixture", [(), (MixtureConfig(from_step=1, weights={"web": 1.0, "books": 9.0}),)])
def test_what_was_read_is_what_the_steps_read(tmp_path, packed, mixture):
    """The targets of each row that the sampler names, by tokens that occur once."""
    ids, outputs = iter(range(1, 60_000)), []
    for number in range(2):
        path = tmp_path / "encode" / ("e" * 16) / "train" / f"{number}.tokens"
        made = [
            EncodedDocument(f"{number}/{n}", np.array([*itertools.islice(ids, n), 0]), 9,
                            f"{('web', 'books')[n % 2]}/en", np.arange(n + 1) % 20 > 4)
            for n in range(1, 30)
        ]  # fmt: skip
        write_token_shard(path, made, 60_000, 0)
        outputs.append(describe(path, tmp_path))
    tokens = manifest_of(outputs, tmp_path)
    if packed:
        tokens = pack(tokens, PackConfig(sequence_length=32), Runtime(tmp_path))
    train = TrainConfig(sequence_length=32, global_batch_size=8, steps=2, mixture=mixture)
    rows = open_rows(tokens, "train", tmp_path, 32)
    order = sampler_of(rows, train)
    expected = Counter()
    for number in {row for step in (1, 2) for row in order.rows(step)}:
        targets = rows.batch([number]).targets
        expected.update(targets[targets >= 0].tolist())
    found = Counter()
    for shard, marks in zip(rows.shards, read_targets(rows, rows_read(rows, train, 2)), strict=True):
        found.update(shard.tokens[marks == 1].tolist())
    assert found == expected
    assert 0 < found.total() < rows.targets
    whole = read_targets(rows, np.ones(rows.count, dtype=bool))
    assert sum(int(marks.sum(dtype=int)) for marks in whole) == rows.targets


def test_windows_that_were_not_read_are_not_drawn(tmp_path):
    draws = np.random.default_rng(2)
    text = draws.integers(1, 200, 40).tolist()
    shards = shards_of(tmp_path, [[text, text], [text, draws.integers(1, 200, 40).tolist()]])
    marks = [np.zeros(82, np.int8), np.ones(82, np.int8)]
    marks[0][:20] = 1
    settings = MemorisationConfig(prefix_tokens=5, continuation_tokens=5)
    drawn, populations = draw({"train": shards, "validation": shards[:1]}, settings, WHOLE, marks)
    assert {(window.copies, window.offset < 20) for _, window in drawn} == {(2, True), (1, False)}
    assert (populations[0], populations[1], populations[2]) == (0, 31 + 20, 11)


def test_a_checkpoint_of_other_shards_is_refused(tmp_path, make_tokens):
    ours = make_tokens(tmp_path)
    packed = pack(ours, PackConfig(sequence_length=32), Runtime(tmp_path))
    theirs = ours.model_copy(update={"stats": {"documents": 1}})
    for read in (ours, packed):
        checkpoint = ours.model_copy(update={"stage": "checkpoint", "inputs": (read.as_input(),)})
        assert tokens_read(checkpoint, ours, tmp_path).digest == read.digest
        with pytest.raises(CheckpointError, match=f"was trained on {read.path} .* has not read these texts"):
            tokens_read(checkpoint, theirs, tmp_path)


def test_drawn_sequences_are_of_different_documents_and_unseen_ones_of_none(tmp_path):
    draws = np.random.default_rng(1)
    once = [draws.integers(1, 200, 40).tolist() for _ in range(6)]
    twice = [draws.integers(1, 200, 40).tolist() for _ in range(4)]
    unseen = [draws.integers(1, 200, 40).tolist() for _ in range(3)]
    train = shards_of(tmp_path / "train", [[*once, *twice], twice])
    validation = shards_of(tmp_path / "validation", [[*unseen, once[0]]])
    settings = MemorisationConfig(prefix_tokens=5, continuation_tokens=5)
    drawn, populations = draw({"train": train, "validation": validation}, settings, WHOLE)
    counts = Counter(window.copies for _, window in drawn)
    assert counts == {0: 3, 1: 6, 2: 4}
    assert [populations[n] for n in (0, 1, 2)] == [3 * 31, 6 * 31, 4 * 31]
    fewer = draw({"train": train, "validation": []}, settings.model_copy(update={"sequences": 2}), WHOLE)[0]
    assert Counter(window.copies for _, window in fewer) == {1: 2, 2: 2}


def test_one_pass_extracts_what_generation_repeats(tmp_path):
    """Texts that the model itself continued, and the same with a changed token."""
    model = LoadedModel(model_of(model_config()).eval(), 64, 100)
    draws = torch.Generator().manual_seed(4)
    prompts = [torch.randint(1, 100, (6,), generator=draws).tolist() for _ in range(12)]
    made = generate(model, prompts, 100, 6)  # no token ends a text
    texts = [[*prompt, *one.ids] for prompt, one in zip(prompts, made, strict=True)]
    texts += [[*text[:-1], text[-1] % 99 + 1] for text in texts[:5]]
    texts = [text for text in texts if 0 not in text]
    settings = MemorisationConfig(prefix_tokens=6, continuation_tokens=6)
    drawn, populations = draw({"train": shards_of(tmp_path, [texts], 100), "validation": []}, settings, WHOLE)
    probed = probe(model, drawn, settings)
    assert len(probed) == len(texts)
    for one in probed:
        ids = one.window.tokens.tolist()
        [again] = generate(model, [ids[:6]], 100, 6)
        assert (one.right == 6) == (list(again.ids) == ids[6:])
    [row] = rows_of(probed, populations, settings)
    assert row["extracted"] == sum(texts.count(text) for text in texts[:12] if text in texts) > 0


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60)), min_size=2, max_size=6))
def test_the_trend_is_the_weighted_correlation(pairs):
    """z^2 / N is the squared correlation of extraction and score over all sequences."""
    rows = [
        {"copies_from": 2**n, "sequences": count, "extracted": min(hits, count)}
        for n, (count, hits) in enumerate(pairs)
    ]
    scores = np.repeat(range(len(rows)), [row["sequences"] for row in rows])
    hits = np.concatenate([np.arange(row["sequences"]) < row["extracted"] for row in rows])
    found = trend([{"copies_from": 0, "sequences": 9, "extracted": 4}, *rows])
    if hits.all() or not hits.any():
        assert found == {"z": None, "direction": "none"}
    else:
        r = stats.pearsonr(scores, hits).statistic
        assert found["z"] == pytest.approx(r * math.sqrt(len(hits)), abs=1e-5)
        assert found["direction"] == ("none" if abs(found["z"]) < 1.959964 else "rises" if r > 0 else "falls")


def manifest_of(outputs, root: Path) -> Manifest:
    manifest = Manifest(
        stage="encode", version=1, key="e" * 64, config={}, inputs=(), outputs=tuple(outputs), stats={}, run={}
    )
    write_manifest(manifest, root)
    return manifest


def plant(root: Path) -> Manifest:
    """Random documents, some of which are in the shards 2, 4, 16 and 64 times; nothing else can be predicted."""
    draws = np.random.default_rng(7)

    def fresh(count):
        return [draws.integers(1, 200, 24).tolist() for _ in range(count)]

    train = fresh(160) + [text for copies in (2, 4, 16, 64) for text in fresh(6) for _ in range(copies)]
    draws.shuffle(train)
    folder = root / "encode" / ("e" * 16)
    outputs = []
    for split, texts in (("train", train), ("validation", fresh(20))):
        [shard] = shards_of(folder / split, [texts])
        outputs.append(describe(shard.path, root))
    return manifest_of(outputs, root)


@pytest.mark.slow
def test_the_extraction_rate_rises_with_planted_copies(tmp_path, run_training):
    tokens = plant(tmp_path)
    changes = {"hidden_size": 64, "intermediate_size": 128, "learning_rate": 4e-3, "steps": 150, "every_steps": 150}
    run = run_training(tmp_path, global_batch_size=16, micro_batch_size=16, validate_every_steps=0, **changes)
    checkpoint = read_manifest(tmp_path / run.stats["checkpoint"]["path"])
    settings = MemorisationConfig(prefix_tokens=8, continuation_tokens=8, sequences=100)
    runtime = Runtime(tmp_path)

    def model():
        return load_model(checkpoint, EngineConfig(threads=1), tmp_path)

    made = probe_memorisation(checkpoint, tokens, settings, model, runtime)
    rows = {row["copies_from"]: row for row in made.stats["rows"]}
    assert [(n, row["sequences"]) for n, row in rows.items()] == [(0, 20), (1, 100), (2, 6), (3, 6), (9, 6), (33, 6)]
    assert rows[0]["extracted"] == rows[1]["extracted"] == 0
    assert rows[33]["rate"] == 1.0
    assert rows[33]["lower"] > rows[1]["upper"]
    assert made.stats["trend"]["direction"] == "rises"
    assert (made.stats["read_share"], made.stats["epochs"] > 1) == (1.0, True)
    nats = [row["nats"] for row in rows.values()]
    assert nats[-1] < nats[1]
    lines = json.loads((tmp_path / made.folder / "sequences.json").read_bytes())
    assert sum(line["extracted"] for line in lines) == sum(row["extracted"] for row in rows.values())
    shard = TokenShard.open(tmp_path / lines[-1]["shard"])
    assert shard.tokens[lines[-1]["offset"] :][:16].tolist() in [
        text[at : at + 16]
        for start, end in zip([0, *shard.document_ends.astype(int)], shard.document_ends.astype(int), strict=False)
        for text in [shard.tokens[start:end].tolist()]
        for at in range(len(text))
    ]
    assert probe_memorisation(checkpoint, tokens, settings, pytest.fail, runtime).digest == made.digest
    with pytest.raises(ConfigError, match=r"prefix_tokens \+ continuation_tokens = 64 is above .* = 32"):
        probe_memorisation(checkpoint, tokens, MemorisationConfig(), model, runtime)
