"""Rows are a function of the step: ranks, micro batches and restarts never change them."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.tokens.pack import PackConfig, pack
from governance.errors import ManifestError
from governance.files import read_lines
from governance.stage import Runtime
from pretrain.config.training import TrainConfig
from pretrain.data.dataset import open_rows
from pretrain.data.loader import by_origin, chain, digest_words, read_ahead, read_step
from pretrain.data.sampler import sampler_of
from tests.pretrain.planted_faults import script
from tests.pretrain.rank_runs import run_ranks

CPU = torch.device("cpu")
MIXTURE = (
    {"from_step": 1, "weights": {"web": 3.0, "books": 1.0}},
    {"from_step": 4, "weights": {"web": 1.0, "books": 2.0}},
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, make_tokens):
    """The same documents as stretches of the stream and as packed rows."""
    root = tmp_path_factory.mktemp("corpus")
    tokens = make_tokens(root)
    packed = pack(tokens, PackConfig(sequence_length=32), Runtime(root))
    return [open_rows(made, "train", root, 32) for made in (tokens, packed)]


def added(digests):
    """The sum that a collective makes of digest_words: modulo 2^64."""
    return np.array(digests, dtype=np.int64).sum(axis=0, dtype=np.int64).tolist()


@settings(max_examples=40)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(1, 30), st.booleans())
def test_any_ranks_and_micro_batches_read_the_same_stream(corpus, world, micro, turns, step, mixed):
    size = world * micro * turns
    config = TrainConfig(
        sequence_length=32, global_batch_size=size, steps=40, mixture=MIXTURE if mixed else (), seed=step
    )
    for rows in corpus:
        order = sampler_of(rows, config)
        alone = read_step(rows, order, step, (size, 0, 1), CPU)
        shares = [read_step(rows, order, step, (micro, rank, world), CPU) for rank in range(world)]
        assert added([share.digest for share in shares]) == alone.digest
        assert sum(share.targets for share in shares) == alone.targets
        [whole] = alone.batches
        for column in ("tokens", "targets", "segments", "positions", "origins"):
            in_turn = [getattr(shares[rank].batches[turn], column) for turn in range(turns) for rank in range(world)]
            assert torch.equal(torch.cat(in_turn), getattr(whole, column))


def test_the_digest_knows_each_token_and_each_place():
    tokens = np.arange(12).reshape(3, 4)
    whole = digest_words([tokens], [5, 6, 7])
    assert added([digest_words([tokens[:1]], [5]), digest_words([tokens[1:]], [6, 7])]) == whole
    altered = tokens.copy()
    altered[1, 2] += 1
    others = (([altered], [5, 6, 7]), ([tokens[::-1]], [5, 6, 7]), ([tokens], [6, 7, 8]))
    streams = {chain("", 1, digest) for digest in (whole, *(digest_words(*other) for other in others))}
    streams |= {chain("", 2, whole), chain(chain("", 1, whole), 1, whole)}
    assert len(streams) == 6


def test_the_digest_is_the_one_of_the_docstring():
    import hashlib

    text = (7).to_bytes(8, "little") + b"\x01\0\0\0\x02\0\0\0"
    digest = hashlib.sha256(text).digest()
    wanted = [int.from_bytes(digest[at : at + 8], "little", signed=True) for at in range(0, 32, 8)]
    assert digest_words([np.array([[1, 2]])], [7]) == wanted


def test_rows_know_their_documents_and_origins(corpus, make_tokens):
    for rows in corpus:
        assert rows.origins == ("books/de", "books/en", "web/de", "web/en")
        assert sum(rows.origin_targets) == rows.targets
        batch = rows.batch(list(range(rows.count)))
        counts = np.bincount(batch.origins.flatten().numpy() + 1, minlength=5)
        assert tuple(counts[1:]) == rows.origin_targets
        assert torch.equal(batch.origins >= 0, batch.targets >= 0)
        for shard in rows.shards:  # by hand: each document against its group
            for place, end in enumerate(shard.document_ends.tolist()):
                start = int(shard.document_ends[place - 1]) if place else 0
                kind, code = ("web", "books")[(end - start) % 2], ("en", "de")[(end - start) % 3 > 0]
                assert shard.group_names[shard.groups[place]] == f"{kind}/{code}"
        everything = {identity.tobytes().hex() for shard in rows.shards for identity in shard.identities}
        assert set(rows.documents_of(range(rows.count))) == everything
        members = [set(rows.documents_of([number])) for number in range(rows.count)]
        segments = rows.batch(list(range(rows.count))).segments.numpy().max(axis=1) + 1
        assert all(len(held) in (pieces, pieces - 1) for held, pieces in zip(members, segments, strict=True))


def test_sources_are_those_of_the_first_tokens(corpus):
    for rows in corpus:
        batch = rows.batch(list(range(rows.count)))
        firsts = [rows.documents_of([number])[0] for number in range(rows.count)]
        of_document = {
            identity.tobytes().hex(): shard.group_names[group].split("/")[0]
            for shard in rows.shards
            for identity, group in zip(shard.identities, shard.groups, strict=True)
        }
        sources = rows.sources()
        assert [source.name for source in sources] == ["books", "web"]
        for source in sources:
            own = [number for number, first in enumerate(firsts) if of_document[first] == source.name]
            assert source.rows(np.arange(source.count)).tolist() == own
        assert len(batch.tokens) == sum(source.count for source in sources)


def test_losses_by_origin_are_those_of_a_loop():
    generator = torch.Generator().manual_seed(0)
    origins = torch.randint(-1, 3, (4, 9), generator=generator)
    nats = torch.rand(4, 9, generator=generator) * (origins >= 0)
    sums, counts = by_origin(nats, origins, 5)
    for origin in range(5):
        assert counts[origin] == (origins == origin).sum()
        assert float(sums[origin]) == pytest.approx(float(nats[origins == origin].double().sum()), abs=1e-12)


def test_it_reads_ahead_but_not_further_than_requested():
    made, requests = [], threading.Event()

    def make(step):
        made.append(step)
        if step == 4:
            requests.set()
        return step

    with read_ahead(make, range(1, 100), depth=2) as steps:
        assert next(steps) == 1
        assert next(steps) == 2
        assert requests.wait(300)
        time.sleep(0.05)
        assert made == [1, 2, 3, 4]
        assert [next(steps) for _ in range(3, 100)] == list(range(3, 100))
        assert next(steps, None) is None


def test_what_fails_in_the_thread_is_raised_at_its_step():
    def make(step):
        if step == 3:
            raise ManifestError("torn")
        return step

    with read_ahead(make, range(1, 9)) as steps:
        assert [next(steps), next(steps)] == [1, 2]
        with pytest.raises(ManifestError, match="torn"):
            next(steps)


def test_closing_waits_for_one_step_at_most():
    made, makers = [], set()

    def make(step):
        made.append(step)
        makers.add(threading.current_thread())  # threads of other tests may start and end meanwhile
        time.sleep(0.5)
        return step

    with read_ahead(make, range(100), depth=8) as steps:
        next(steps)
        before = len(made)
    assert len(made) <= before + 2  # the running one, and one that began while this line was read
    assert len(makers) == 1
    assert not makers.pop().is_alive()


def events(root, run, name):
    return [line for line in read_lines(root / run.folder / "metrics.jsonl") if line["event"] == name]


RAMP = ({"until_step": 1, "global_batch_size": 4}, {"until_step": 6, "global_batch_size": 16})


def config_of(values):
    from pretrain.config.training import MixtureConfig, RampConfig

    kinds = {"batch_size_ramp": RampConfig, "mixture": MixtureConfig}
    return {name: tuple(kinds[name](**item) for item in items) for name, items in values.items()}


def test_a_ramp_and_a_mixture_survive_a_crash_and_another_layout(tmp_path, run_training, losses_of, kill_at):
    schedule = config_of({"batch_size_ramp": RAMP, "mixture": MIXTURE})
    whole = run_training(tmp_path / "whole", **schedule)
    kill_at(6, tmp_path / "again", **schedule)
    again = run_training(tmp_path / "again", zero_stage=3, micro_batch_size=2, **schedule)
    assert again.stats["stream_sha256"] == whole.stats["stream_sha256"]
    assert again.stats["tokens"] == whole.stats["tokens"]
    assert losses_of(again, tmp_path / "again") == pytest.approx(losses_of(whole, tmp_path / "whole"), rel=1e-5)
    rows = [event["tokens_per_second"] * event["seconds"] / 32 for event in events(tmp_path / "whole", whole, "step")]
    assert rows == pytest.approx([4] + [16] * 5 + [8] * 4)
    messages = events(tmp_path / "whole", whole, "mixture")
    assert [(event["step"], event["weights"]) for event in messages] == [
        (1, {"books": 0.25, "web": 0.75}),
        (4, {"books": 2 / 3, "web": 1 / 3}),
    ]
    assert whole.stats["mixture"] == [{"from_step": event["step"], "weights": event["weights"]} for event in messages]


def test_a_ramp_begins_as_a_run_of_the_small_batch(tmp_path, run_training, losses_of):
    """The same rows and the same mean; a wrong weight of the gradient would show in its norm."""
    ramp = run_training(tmp_path / "ramp", **config_of({"batch_size_ramp": RAMP}))
    small = run_training(tmp_path / "small", global_batch_size=4)
    norms = [events(tmp_path / name, run, "step")[0]["grad_norm"] for name, run in (("ramp", ramp), ("small", small))]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    assert losses_of(ramp, tmp_path / "ramp")[0] == losses_of(small, tmp_path / "small")[0]


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "close"), [("fp32", {"rel": 1e-5}), ("bf16", {"rel": 1e-3})])
def test_one_rank_two_ranks_one_rank_is_one_stream(tmp_path, run_training, losses_of, kill_at, precision, close):
    whole = run_training(tmp_path / "whole", precision=precision)
    root = tmp_path / "changed"
    kill_at(6, root, precision=precision)
    dies = script(root, "at_step(10, lambda: os._exit(9))", precision=precision, zero_stage=2, micro_batch_size=2)
    assert not run_ranks(tmp_path, ["-c", dies], 2)[0]
    changed = run_training(root, precision=precision, zero_stage=3, micro_batch_size=2)
    worlds = [event["world_size"] for event in events(root, changed, "start")]
    assert worlds == [1, 2, 1]
    assert changed.stats["stream_sha256"] == whole.stats["stream_sha256"]
    assert losses_of(changed, root) == pytest.approx(losses_of(whole, tmp_path / "whole"), **close)
