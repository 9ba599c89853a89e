from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from governance.errors import CheckpointError
from governance.manifest import read_manifest
from pretrain.config import EngineConfig
from pretrain.dataset import open_rows
from pretrain.evaluate import bits_per_byte, evaluate, load_decoder, measure


def test_bits_per_byte_of_a_uniform_guess_over_bytes():
    # 256 equally likely tokens of one byte each: 8 bits a byte.
    assert bits_per_byte(math.log(256), tokens=1000, document_bytes=1000) == pytest.approx(8.0)


def test_the_mean_is_over_tokens_for_any_split(tmp_path, make_tokens):
    rows = open_rows(make_tokens(tmp_path), "validation", tmp_path, 32)

    def loss_of(batch):  # the sum of the ids of the targets: exact in fp64
        return batch.targets[batch.targets >= 0].double().sum()

    results = set()
    for micro, world in ((1, 1), (3, 1), (4, 1), (64, 1)):
        measured = measure(loss_of, rows, rows.count, micro, (0, world), lambda values: values)
        results.add(measured)
    assert len(results) == 1
    [measured] = results
    assert measured.tokens == rows.targets
    parts = [[], []]
    for rank in range(2):
        measure(loss_of, rows, rows.count, 3, (rank, 2), lambda values, rank=rank: parts[rank].extend(values) or values)
    assert sum(part[0] for part in parts) / sum(part[1] for part in parts) == measured.loss


def test_a_checkpoint_measures_as_in_training(finished, make_tokens):
    root, run = finished
    last = read_manifest(root / run.stats["checkpoint"]["path"])
    tokens = make_tokens(root)
    measured = evaluate(root / last.folder, tokens, EngineConfig(micro_batch_size=4, threads=1), root)
    rows = open_rows(tokens, "validation", root, 32)
    assert measured.rows == rows.count
    # Against plain sums: nats over all targets, over the documents' bytes.
    model, nats = load_decoder(last, root), 0.0
    with torch.no_grad():
        for number in range(rows.count):
            batch = rows.batch([number])
            logits = model.logits(batch)[0]
            nats += F.cross_entropy(logits, batch.targets[0], reduction="sum").item()
    size = sum(int(np.sum(shard.document_bytes)) for shard in rows.shards)
    assert measured.loss == pytest.approx(nats / rows.targets, rel=1e-6)
    assert measured.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-6)


def test_a_damaged_checkpoint_is_refused(tmp_path, run_training, make_tokens):
    run = run_training(tmp_path, steps=1, warmup_steps=0, decay_steps=0)
    last = read_manifest(tmp_path / run.stats["checkpoint"]["path"])
    path = last.files("weights", tmp_path)[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=path.name):
        evaluate(tmp_path / last.folder, make_tokens(tmp_path), EngineConfig(), tmp_path)


def test_weights_of_the_run_are_listed_by_it(finished):
    root, run = finished
    last = read_manifest(root / run.stats["checkpoint"]["path"])
    assert {output.path for output in last.outputs} < {output.path for output in run.outputs}
    assert json.loads(last.model_dump_json())["stats"]["step"] == 10
