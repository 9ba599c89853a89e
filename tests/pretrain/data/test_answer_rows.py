"""Training on answers: the loss is the mean over their tokens, and nothing is learned from prompts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_pipeline.tokens.token_shards import EncodedDocument, write_token_shard
from governance.manifest import describe, write_manifest
from pretrain.data.dataset import NO_ORIGIN, open_rows
from pretrain.model.decoder import Decoder
from pretrain.model.init import initial_weight
from tests.manifests import manifest_of
from tests.pretrain.conftest import VOCABULARY

LENGTH, PROMPT, ANSWER = 32, 9, 6
BYTES = 3 * ANSWER


def chats(generator, count):
    """Prompts without a rule; each answer counts down from the prompt's first token."""
    for number in range(count):
        prompt = generator.integers(20, VOCABULARY, PROMPT)
        answer = prompt[0] - 1 - np.arange(ANSWER)
        marks = np.repeat([False, True, False], [PROMPT, ANSWER, 1])
        yield EncodedDocument(f"c{number}", np.concatenate([prompt, answer, [0]]), BYTES, "chats/en", marks)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    root, generator, outputs = tmp_path_factory.mktemp("answers"), np.random.default_rng(0), []
    for role, count in (("train", 120), ("validation", 12)):
        path = root / "encode" / ("e" * 16) / role / "00000.tokens"
        write_token_shard(path, list(chats(generator, count)), VOCABULARY, 0)
        outputs.append(describe(path, root))
    manifest = manifest_of("encode", outputs, key="e")
    write_manifest(manifest, root)
    return root, manifest


def test_rows_predict_answers_and_count_them_and_their_bytes(tokens):
    root, manifest = tokens
    rows = open_rows(manifest, "train", root, LENGTH)
    assert (rows.targets, rows.document_bytes) == (120 * ANSWER, 120 * BYTES)
    batch = rows.batch(list(range(rows.count)))
    predicted = batch.targets >= 0
    assert int(predicted.sum()) == rows.targets
    assert bool((batch.origins[~predicted] == NO_ORIGIN).all())
    assert bool((batch.targets[predicted] > 0).all())  # never the end of a document


def test_the_loss_is_the_mean_over_the_tokens_of_answers(tokens, run_training, losses_of):
    root, manifest = tokens
    run = run_training(root, steps=3, warmup_steps=0, decay_steps=0, seed=3)
    from pretrain.checkpoint.format import identity_of, read_checkpoint
    from pretrain.data.sampler import sampler_of

    [last] = sorted(root.glob("checkpoint/*/"))
    recipe = identity_of(read_checkpoint(last, root)).recipe
    rows = open_rows(manifest, "train", root, LENGTH)
    numbers = sampler_of(rows, recipe.train).rows(1)
    model = Decoder(recipe.model, VOCABULARY)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_weight(name, parameter.shape, recipe.model, 3))
        batch = rows.batch(list(numbers))
        logits = model.logits(batch)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())  # ignores -100
    assert losses_of(run, root)[0] == pytest.approx(float(expected), abs=1e-5)
    assert run.stats["tokens"] < 3 * 8 * LENGTH / 2
