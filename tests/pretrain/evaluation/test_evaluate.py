from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from governance.errors import CheckpointError, ConfigError
from governance.manifest import read_manifest
from pretrain.config.training import EngineConfig
from pretrain.data.dataset import open_rows
from pretrain.evaluation.evaluation_table import table
from pretrain.evaluation.loglikelihood import Scored
from pretrain.evaluation.model_bias import scorer_of
from pretrain.evaluation.scores import figures
from pretrain.evaluation.tasks import Question
from pretrain.evaluation.validation import bits_per_byte, evaluate, load_decoder, measure, nats_with
from tests.altered_files import flip


def test_bits_per_byte_of_a_uniform_guess_over_bytes():
    # 256 equally likely tokens of one byte each: 8 bits per byte.
    assert bits_per_byte(math.log(256), tokens=1000, document_bytes=1000) == pytest.approx(8.0)


def test_the_mean_is_over_tokens_for_any_split(tmp_path, make_tokens):
    rows = open_rows(make_tokens(tmp_path), "validation", tmp_path, 32)

    def loss_of(batch):  # the ids of the targets: their sums are exact in fp64
        return batch.targets.clamp(min=0).double()

    results = []
    for micro, world in ((1, 1), (3, 1), (4, 1), (64, 1)):
        measured = measure(loss_of, rows, rows.count, micro, (0, world), lambda values: values)
        results.append(measured)
    assert all(result == results[0] for result in results)
    measured = results[0]
    assert measured.tokens == rows.targets
    parts = [[], []]
    for rank in range(2):
        measure(loss_of, rows, rows.count, 3, (rank, 2), lambda values, rank=rank: parts[rank].append(values) or values)
    summed = [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(*parts, strict=True)]
    assert measure(loss_of, rows, rows.count, 3, (0, 2), lambda values: summed.pop(0)) == measured


def test_the_error_of_the_loss_is_that_of_a_ratio_of_sums(tmp_path, make_tokens):
    rows = open_rows(make_tokens(tmp_path), "validation", tmp_path, 32)

    def nats_of(batch):
        return batch.targets.clamp(min=0).double() / 50

    measured = measure(nats_of, rows, rows.count, 4, (0, 1), lambda values: values)
    held = [rows.batch([number]) for number in range(rows.count)]
    nats = np.array([float(nats_of(batch).sum()) for batch in held])
    tokens = np.array([int((batch.targets >= 0).sum()) for batch in held])
    nats, tokens = nats[tokens > 0], tokens[tokens > 0]
    residue = nats - measured.loss * tokens
    plain = np.sqrt(len(nats) / (len(nats) - 1) * np.sum(residue**2)) / tokens.sum()
    assert measured.loss_stderr == pytest.approx(plain, rel=1e-9)
    # And the bootstrap over rows agrees, which does not use the formula.
    generator = np.random.default_rng(0)
    draws = generator.integers(0, len(nats), (4000, len(nats)))
    assert measured.loss_stderr == pytest.approx(np.std(nats[draws].sum(1) / tokens[draws].sum(1)), rel=0.15)


class Known:
    """Rows with the source and language of each token."""

    origins = ("books/en", "books/de", "news/en")
    origin_targets = (400, 300, 200)
    origin_bytes = (1000, 900, 800)
    targets, document_bytes, count = 900, 2700, 6

    def batch(self, numbers):
        generator = torch.Generator().manual_seed(1)
        shape = (6, 10)
        targets = torch.randint(0, 9, shape, generator=generator)
        targets[:, 0] = -100
        origins = torch.randint(0, 3, shape, generator=generator)
        columns = [column[numbers] for column in (targets, targets, torch.zeros(shape), torch.zeros(shape), origins)]
        return SimpleNamespace(
            **dict(zip(("tokens", "targets", "segments", "positions", "origins"), columns, strict=True))
        )

    def corrupted(self, batch, seeds):
        return batch


def test_losses_by_source_and_language_are_plain_sums():
    rows = Known()
    measured = measure(lambda b: b.targets.clamp(min=0).double(), rows, 6, 2, (0, 1), lambda values: values)
    whole = rows.batch(list(range(6)))
    predicted, nats = whole.targets >= 0, whole.targets.double()
    parts = {
        ("by_origin", "books/de"): (whole.origins == 1, 300, 900),
        ("by_source", "books"): (whole.origins < 2, 700, 1900),
        ("by_language", "en"): (whole.origins != 1, 600, 1800),
    }
    for (kind, name), (mine, targets, size) in parts.items():
        row = getattr(measured, kind)[name]
        values = nats[mine & predicted]
        assert row["tokens"] == len(values)
        assert row["loss"] == pytest.approx(float(values.mean()))
        assert row["bits_per_byte"] == pytest.approx(float(values.mean()) * targets / size / math.log(2))
        by_row = [(float(nats[r][(mine & predicted)[r]].sum()), int((mine & predicted)[r].sum())) for r in range(6)]
        residue = sum((n - row["loss"] * t) ** 2 for n, t in by_row)
        assert row["loss_stderr"] == pytest.approx(math.sqrt(6 / 5 * residue) / len(values))
    assert measured.tokens == sum(row["tokens"] for row in measured.by_source.values())
    assert list(measured.by_origin) == ["books/de", "books/en", "news/en"]


def test_batches_that_are_alike_measure_the_same():
    shapes = []

    def nats_of(batch):
        shapes.append(len(batch.targets))
        return batch.targets.clamp(min=0).double()

    found = [measure(nats_of, Known(), 6, 4, (0, 1), lambda values: values, alike) for alike in (False, True)]
    assert found[0] == found[1]
    assert shapes == [4, 2, 4, 4]


def test_a_checkpoint_measures_as_in_training(finished, make_tokens):
    root, run = finished
    last = read_manifest(root / run.stats["checkpoint"]["path"])
    tokens = make_tokens(root)
    measured, _ = evaluate(root / last.folder, tokens, EngineConfig(micro_batch_size=4, threads=1), root)
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


def test_a_device_that_is_requested_and_absent_is_refused(finished, make_tokens, monkeypatch):
    root, run = finished
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    last = read_manifest(root / run.stats["checkpoint"]["path"])
    with pytest.raises(ConfigError, match=r"engine\.device = 'cuda'"):
        evaluate(root / last.folder, make_tokens(root), EngineConfig(device="cuda", threads=1), root)
    with pytest.raises(ConfigError, match=r"engine\.device = 'cuda'"):
        scorer_of(last, lambda text: np.zeros(1, np.int64), 32, root, "cuda")


def test_each_precision_is_measured_in_what_it_was_trained_in(finished, make_tokens):
    root, run = finished
    last = read_manifest(root / run.stats["checkpoint"]["path"])
    batch = open_rows(make_tokens(root), "validation", root, 32).batch([0, 1])

    def nats(precision):
        with torch.no_grad():
            return nats_with(load_decoder(last, root), precision)(batch)

    rounded = load_decoder(last, root).bfloat16()
    with torch.no_grad():
        expected = rounded(batch.tokens, batch.targets, batch.segments, batch.positions)[1]
    for precision in ("bf16", "bf16_masters", "fp8"):
        assert torch.equal(nats(precision), expected), precision
    assert torch.equal(nats("fp16"), nats("fp32"))
    assert not torch.equal(nats("autocast"), nats("fp32"))
    assert not torch.equal(nats("autocast"), expected)
    assert torch.allclose(nats("autocast"), nats("fp32"), rtol=0.05, atol=0.05)


def test_a_damaged_checkpoint_is_refused(tmp_path, run_training, make_tokens):
    run = run_training(tmp_path, steps=1, warmup_steps=0, decay_steps=0)
    last = read_manifest(tmp_path / run.stats["checkpoint"]["path"])
    path = last.files("weights", tmp_path)[0]
    flip(path)
    with pytest.raises(CheckpointError, match=path.name):
        evaluate(tmp_path / last.folder, make_tokens(tmp_path), EngineConfig(), tmp_path)


def test_weights_of_the_run_are_listed_by_it(finished):
    root, run = finished
    last = read_manifest(root / run.stats["checkpoint"]["path"])
    assert {output.path for output in last.outputs} < {output.path for output in run.outputs}
    assert json.loads(last.model_dump_json())["stats"]["step"] == 10


def test_the_table_shows_every_figure_with_its_error():
    measured = measure(lambda b: b.targets.clamp(min=0).double(), Known(), 6, 2, (0, 1), lambda values: values)
    questions = (Question("a", (" b", " c"), 0, "one"), Question("a", (" b", " c"), 1, "two"))
    task = {"task": "mine", **figures(questions, [Scored(-value, 1) for value in (1.0, 2.0, 1.0, 2.0)])}
    lines = table(measured, [task])
    assert lines[0].startswith(f"loss {measured.loss:.4f} ± {measured.loss_stderr:.4f} nats/token")
    for rows in (measured.by_source, measured.by_language, measured.by_origin):
        for name, row in rows.items():
            [line] = [line for line in lines if line.split("  ")[0].strip() == name]
            assert f"{row['loss']:.4f} ± {row['loss_stderr']:.4f}" in line
    [line] = [line for line in lines if line.startswith("mine ")]
    assert line.split() == ["mine", "0.5000", "±", "0.5000", "0.5000", "±", "0.5000",
                            *f"{1.5 / math.log(2):.4f} ± {0.5 / math.log(2):.4f}".split(), "0.5000", "2"]  # fmt: skip
    assert "mean of acc over its 2 parts" in lines[-1]


def test_a_checkpoint_of_another_root_is_refused_with_that_root(finished, make_tokens, tmp_path):
    root, run = finished
    last = read_manifest(root / run.stats["checkpoint"]["path"])
    with pytest.raises(
        CheckpointError, match=f"is a checkpoint of the root {root.resolve()}, .*--root {root.resolve()}"
    ):
        evaluate(root / last.folder, make_tokens(tmp_path), EngineConfig(threads=1), tmp_path)
