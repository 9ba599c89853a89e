"""The probe counts copies exactly, finds planted repeats, and its rate rises with the copies."""

from __future__ import annotations

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

from data_pipeline.tokens.token_shards import EncodedDocument, TokenShard, write_token_shard
from governance.errors import ConfigError
from governance.manifest import Manifest, describe, read_manifest, write_manifest
from governance.stage import Runtime
from pretrain.config.training import EngineConfig
from pretrain.inference.generation import generate
from pretrain.inference.loaded_model import LoadedModel, load_model
from pretrain.inference.memorisation import MemorisationConfig, draw, probe, probe_memorisation, rows_of, trend
from pretrain.inference.window_counts import bound_of, distinct, read_window, sample_windows
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
    return Counter(
        tuple(ids[at : at + length]) for texts in parts for ids in texts for at in range(len(ids) - length + 1)
    )


DOCUMENT = st.lists(st.integers(1, 3), min_size=1, max_size=14)
PARTS = st.lists(st.lists(DOCUMENT, min_size=1, max_size=5), min_size=1, max_size=3)


@settings(max_examples=60)
@given(PARTS, st.integers(1, 6), st.sampled_from((WHOLE, WHOLE // 3)))
def test_copies_are_those_of_a_plain_count(tmp_path_factory, parts, length, bound):
    """Each window of the sample with all its copies; with the highest bound all windows, in no two documents."""
    shards = shards_of(tmp_path_factory.mktemp("shards"), parts)
    windows, expected = sample_windows(shards, length, bound), plain_counts(parts, length)
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
    """Of texts that the model itself continued, and of such texts with a changed token."""
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
    manifest = Manifest(
        stage="encode", version=1, key="e" * 64, config={}, inputs=(), outputs=tuple(outputs), stats={}, run={}
    )
    write_manifest(manifest, root)
    return manifest


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
