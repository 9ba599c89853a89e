"""Span corruption: texts come back, rates are exact, no micro batch decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from assay.config import load_run
from governance.errors import ConfigError
from governance.files import write_text
from governance.manifest import FILE_NAME, describe, read_manifest, write_manifest
from pretrain.checkpoint.format import identity_of, read_state
from pretrain.config.training import EngineConfig, SpanCorruptionConfig
from pretrain.data.corrupted_rows import corrupted_rows
from pretrain.data.dataset import open_rows
from pretrain.data.loader import seeds_of
from pretrain.encoder_decoder.model_of_pairs import EncoderDecoder
from pretrain.encoder_decoder.span_corruption import SpanCorruption, lost_tokens, sentinels_of
from pretrain.evaluation.validation import evaluate, load_decoder
from pretrain.export.huggingface import export
from pretrain.model.decoder import Batch
from pretrain.model.flops import flops_per_token
from tests.conftest import write_project
from tests.manifests import manifest_of
from tests.pretrain.encoder_decoder.pair_models import small

END, SENTINELS = 0, np.arange(1, 101)
T5 = SpanCorruptionConfig()
CONFIGS = st.builds(SpanCorruptionConfig, share=st.floats(0.01, 0.99), mean_length=st.floats(1, 12))
TEXTS = st.lists(st.integers(101, 400), min_size=1, max_size=60)


def restored(source: list[int], target: list[int]) -> list[int]:
    """The text, by someone who knows nothing but the two."""
    spans: dict[int, list[int]] = {}
    for token in target[:-1]:
        if token <= 100:
            spans[token] = []
        else:
            spans[list(spans)[-1]].append(token)
    return [held for token in source[:-1] for held in (spans.pop(token) if token <= 100 else [token])]


@given(TEXTS, CONFIGS, st.integers(0, 2**64 - 1))
def test_a_text_comes_back_from_its_source_and_target(text, config, word):
    source, target = SpanCorruption(config, SENTINELS, END).pair(np.array(text), np.uint64(word))
    lost, spans = config.sizes(len(text))
    assert restored(source.tolist(), target.tolist()) == text
    assert [token for token in source if token <= 100] == [*range(1, spans + 1), END]
    assert len(source) == len(text) - lost + spans + 1
    assert len(target) == lost + spans + 1


def test_rates_are_those_asked_for_at_every_place():
    """Places are uniform but at the ends, which T5 fixes too."""
    masks = np.stack([lost_tokens(512, T5, np.uint64(word)) for word in range(400)])
    assert set(masks.sum(1)) == {77}
    assert {int((row[1:] & ~row[:-1]).sum()) for row in masks} == {26}
    rates = masks[:, 26:-26].reshape(400, 10, -1).mean((0, 2))
    assert np.abs(rates - 0.15).max() < 0.02
    assert not masks[:, 0].any()
    assert masks[:, -1].all()
    sizes = [sum(row[first:][: np.argmin(np.append(row[first:], False))])
             for row in masks for first in np.flatnonzero(row[1:] & ~row[:-1]) + 1]  # fmt: skip
    assert np.mean(sizes) == pytest.approx(77 / 26)
    assert len(set(sizes)) > 8  # of all sizes, not of one


def rows_of(rows: list[list[list[int]]], length: int) -> Batch:
    """Packed rows of texts, whose last places aim at the end."""
    shape = (len(rows), length)
    tokens, targets, segments = np.zeros(shape, np.int64), np.full(shape, -100), np.zeros(shape, np.int64)
    for row, texts in enumerate(rows):
        at = 0
        for number, text in enumerate(texts):
            place = slice(at, at := at + len(text))
            tokens[row, place], targets[row, place], segments[row, place] = text, [*text[1:], END], number
        segments[row, at:] = len(texts)
    origins = np.where(targets < 0, -1, segments % 3)
    read = [torch.from_numpy(column) for column in (tokens, targets, segments, segments, origins)]
    return Batch(read[0], read[1], read[2].int(), read[3].int(), read[4])


@settings(max_examples=30)
@given(st.lists(st.lists(TEXTS, max_size=3), min_size=1, max_size=4), st.integers(0, 99))
def test_rows_hold_the_pairs_of_their_texts_in_any_micro_batch(rows, seed):
    corrupt, seeds = SpanCorruption(T5, SENTINELS, END), seeds_of(seed, range(len(rows)))
    whole = corrupt(rows_of(rows, 200), seeds)
    for number, texts in enumerate(rows):
        alone = corrupt(rows_of([texts], 200), seeds[number : number + 1])
        width = alone.tokens.shape[1]
        for column in ("tokens", "targets", "segments", "positions", "origins"):
            held = getattr(whole, column)[number]
            assert torch.equal(held[:width], getattr(alone, column)[0])
        assert (whole.targets[number, width:] == -100).all()
        for place, text in enumerate(texts):
            mine = alone.segments[0] == place
            tokens, targets = alone.tokens[0][mine].tolist(), alone.targets[0][mine].tolist()
            begins = targets.index(next(one for one in targets if one >= 0))
            assert restored(tokens[: begins + 1], targets[begins:]) == text
            assert tokens[begins + 1 :] == targets[begins:-1]
            assert alone.positions[0][mine].tolist() == list(range(len(tokens)))
            assert set(alone.origins[0][mine].tolist()) == {place % 3}


def test_a_removed_document_and_a_lone_end_leave_no_pair():
    batch = rows_of([[[101, 102], [103, 104, 105]]], 8)
    batch.targets[0, :2] = -100  # removed
    batch.targets[0, 4] = -100  # a stretch that ends with its document's end
    made = SpanCorruption(T5, SENTINELS, END)(batch, seeds_of(0, [0]))
    assert made.tokens[0].tolist() == [103, 1, END, 1, 104]
    assert made.targets[0].tolist() == [-100, -100, 1, 104, END]
    assert set(made.segments[0].tolist()) == {1}


def test_the_next_epoch_hides_other_spans():
    rows, corrupt = rows_of([[list(range(101, 181))] * 2], 200), SpanCorruption(T5, SENTINELS, END)
    one, two = (corrupt(rows, seeds_of(0, [place])) for place in (0, 50))
    assert one.tokens.shape == two.tokens.shape
    assert not torch.equal(one.tokens, two.tokens)
    [first, second] = one.tokens[0].reshape(2, -1)
    assert not torch.equal(first, second)  # nor do two pieces of a row lose the same ones


def test_too_few_sentinels_are_refused_with_the_number():
    names = {f"<extra_id_{number}>": 5 + number for number in range(25)}
    with pytest.raises(ConfigError, match=r"has 25 sentinels .* can lose 26 spans.*sentinels = 26"):
        sentinels_of(names, T5, 512)
    assert sentinels_of({**names, "<extra_id_25>": 3}, T5, 512).tolist() == [*range(5, 30), 3]


ENCODER = {
    "encoder_layers": 1, "num_hidden_layers": 1, "num_key_value_heads": 4, "position_embedding": "sinusoidal",
    "norm_position": "post", "dropout": 0.1, "span_corruption": {},
}  # fmt: skip


@pytest.fixture
def texts(make_tokens):
    """`texts(root, sentinels, config)`: token shards, with so many sentinels."""

    def make(root, sentinels=4, config=None):
        special = {f"<extra_id_{number}>": 199 - number for number in range(sentinels)}
        stats = {"vocabulary_size": 200, "end_of_document": 0, "special_tokens": special}
        words = {"<|endoftext|>": 0, **{f"w{number}": number for number in range(1, 200 - sentinels)}, **special}
        file = Tokenizer(models.WordLevel(words, unk_token="w1"))
        file.add_special_tokens(["<|endoftext|>", *special])
        path = root / "tokenizer" / ("f" * 16) / "tokenizer.json"
        write_text(path, file.to_str())
        tokenizer = manifest_of("tokenizer", (describe(path, root),), key="f", stats=stats)
        write_manifest(tokenizer, root)
        made = make_tokens(root).model_copy(update={"inputs": (tokenizer.as_input(),), "config": config or {}})
        (root / made.folder / FILE_NAME).unlink()
        write_manifest(made, root)
        return made

    return make


def test_a_killed_run_hides_what_an_uninterrupted_one_hides(tmp_path, texts, run_training, losses_of, kill_at):
    for name in ("whole", "killed", "halves"):
        texts(tmp_path / name)
    given = {**ENCODER, "steps": 12, "learning_rate": 2e-2}
    whole = run_training(tmp_path / "whole", **given)

    kill_at(7, tmp_path / "killed", **given)
    assert run_training(tmp_path / "killed", **given).digest == whole.digest
    losses = losses_of(whole, tmp_path / "whole")
    assert losses[-1] < 0.9 * losses[0]
    halves = run_training(tmp_path / "halves", **given, micro_batch_size=2)
    assert losses_of(halves, tmp_path / "halves") == pytest.approx(losses, rel=1e-3)
    states = [
        read_state(read_manifest(tmp_path / name / made.stats["checkpoint"]["path"]), tmp_path / name)
        for name, made in (("whole", whole), ("halves", halves))
    ]
    assert states[0].stream == states[1].stream

    root = tmp_path / "whole"
    checkpoint = (root / whole.stats["checkpoint"]["path"]).parent
    tokens = read_manifest(root / "encode" / ("e" * 16) / FILE_NAME)
    found = evaluate(checkpoint, tokens, EngineConfig(device="cpu", threads=1), root)[0]
    recipe = identity_of(read_manifest(checkpoint / FILE_NAME)).recipe
    model = load_decoder(read_manifest(checkpoint / FILE_NAME), root)
    rows = corrupted_rows(open_rows(tokens, "validation", root, 32), tokens, recipe.train, root)
    nats = count = 0.0
    for number in range(rows.count):
        batch = rows.corrupted(rows.batch([number]), seeds_of(0, [number]))
        with torch.no_grad():
            nats += float(model(batch.tokens, batch.targets, batch.segments, batch.positions)[1].sum())
        count += int((batch.targets >= 0).sum())
    assert found.tokens == count < 0.4 * rows.targets
    assert found.loss == pytest.approx(nats / count, rel=1e-5)

    export(checkpoint, read_manifest(root / tokens.inputs[0].path), tmp_path / "folder", root)
    begun = run_training(
        root, **{**ENCODER, "learning_rate": 1e-9, "dropout": 0.0}, initial_weights=str(tmp_path / "folder")
    )
    assert begun.stats["validation_loss"] == pytest.approx(whole.stats["validation_loss"], rel=1e-4)
    with pytest.raises(ConfigError, match=r"train\.adapter or trained"):
        run_training(root, **ENCODER, initial_weights=str(tmp_path / "folder"), adapter={})


def test_flops_count_both_sides_of_a_corrupted_row():
    """Sources are .9 tokens and targets .2; halves are pairs."""
    made = small()
    source, target = T5.sides
    assert (source, target) == pytest.approx((0.9, 0.2))
    only = {side: flops_per_token(made, 96, 0, sides) for side, sides in (("e", (1.0, 0.0)), ("d", (0.0, 1.0)))}
    assert flops_per_token(made, 96, 0, T5.sides) == pytest.approx(0.9 * only["e"] + 0.2 * only["d"], abs=2)
    assert flops_per_token(made, 96, 0) == (only["e"] + only["d"]) // 2
    model = EncoderDecoder(made, 96)
    assert only["e"] == 6 * sum(value.numel() for value in model.model.encoder.parameters())


@pytest.mark.parametrize(("sentinels", "config", "message"), [
    (1, {}, r"has 1 sentinels .* data\.tokenizer\.sentinels = 2"),
    (4, {"loss_on": "answers"}, "Remove one of the two"),
])  # fmt: skip
def test_texts_that_cannot_be_corrupted_are_refused(tmp_path, texts, run_training, sentinels, config, message):
    texts(tmp_path, sentinels, config)
    with pytest.raises(ConfigError, match=message):
        run_training(tmp_path, **ENCODER)


def test_a_run_file_without_sentinels_is_refused_before_the_corpus_is_made(tmp_path):
    folder = write_project(tmp_path / "project")
    (folder / "spans.toml").write_text(
        'base = "run.toml"\n[model]\nencoder_layers = 1\nnum_key_value_heads = 2\nposition_embedding = "sinusoidal"\n'
        'norm_position = "post"\n[train.span_corruption]\n[data.tokenizer]\nsentinels = 2\n'
    )
    with pytest.raises(ConfigError, match=r"up to 3 spans .*sentinels is 2\. Set it to 3"):
        load_run(folder / "spans.toml", [])
    run = load_run(folder / "spans.toml", ["data.tokenizer.sentinels=3"])
    assert run.config.data.tokenizer.every_special_token[1:] == ("<extra_id_0>", "<extra_id_1>", "<extra_id_2>")
    with pytest.raises(ConfigError, match=r"set model\.encoder_layers"):
        load_run(folder / "run.toml", ["train.span_corruption={}"])
