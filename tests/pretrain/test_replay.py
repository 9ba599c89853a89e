"""Takedown by replay: the same bits as a training on a corpus that never held the documents."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.tokens.token_shards import document_identity
from governance.errors import ConfigError, PipelineError
from pretrain.config.training import MixtureConfig, RampConfig, TrainConfig
from pretrain.data.batch_size import batch_sizes
from pretrain.data.dataset import without_removed
from pretrain.data.mixture import read_late
from pretrain.data.sampler import RowSampler, sampler_of
from tests.pretrain.rank_runs import run_ranks
from tests.pretrain.replays import checkpoint_at, holding, identities_of, learned, rows_of, train, write_tokens

KEPT = {"every_steps": 2, "keep_last": 9, "validate_every_steps": 0}
PLAIN = {"sequence_length": 32, "global_batch_size": 8, "steps": 10}


@settings(max_examples=8)
@given(st.integers(0, 99), st.sampled_from([0, 32]), st.integers(1, 6))
def test_a_row_without_a_document_keeps_all_else(tmp_path_factory, seed, packed, count):
    root, chance = tmp_path_factory.mktemp("rows"), random.Random(seed)
    tokens = write_tokens(root, seed, packed=packed)
    names = chance.sample([f"train{shard}/{index}" for shard in range(2) for index in range(30)], count)
    rows = rows_of(root, tokens)
    removed = frozenset(map(document_identity, names))
    masked = without_removed(rows, TrainConfig(**PLAIN, removed_documents=identities_of(names)))
    assert masked.holding(removed).tolist() == holding(rows, names)
    before, after = (each.batch(list(range(rows.count))) for each in (rows, masked))
    assert np.array_equal(before.segments, after.segments)
    assert np.array_equal(before.positions, after.positions)
    hidden = np.zeros(before.tokens.shape, bool)
    for number in range(rows.count):
        row, shards = rows._row(number)
        for piece, (document, shard) in enumerate(zip(row.documents, row.shards, strict=True)):
            mine = document >= 0 and shards[shard].identities[document].tobytes() in removed
            hidden[number, row.segments == piece] = mine
    for name, blank in (("tokens", 0), ("targets", -100), ("origins", -1)):
        ours, theirs = getattr(before, name).numpy(), getattr(after, name).numpy()
        assert (theirs[hidden] == blank).all()
        assert np.array_equal(ours[~hidden], theirs[~hidden])
    assert masked.targets == int((after.targets >= 0).sum())
    assert not set(masked.documents_of(range(rows.count))) & set(identities_of(names))


CASES = {
    "plain": {},
    "accumulated": {"micro_batch_size": 2, "seed": 3},
    "packed": {"packed": 32, "seed": 1},
    "mixed": {
        "batch_size_ramp": (RampConfig(until_step=3, global_batch_size=4),),
        "mixture": (MixtureConfig(from_step=3, weights={"web": 1.0, "books": 2.0}),),
    },
    "bf16": {"precision": "bf16", "seed": 5},
    "late": {"late_sources": ("books",)},
}


def late_documents(root, tokens, options, count=2, after=4):
    """Documents first read between step `after` + 2 and the end, and the first step that does."""
    rows = rows_of(root, tokens)
    fields = {name: value for name, value in options.items() if name in TrainConfig.model_fields}
    config = TrainConfig(**{**PLAIN, **fields})
    order = sampler_of(rows, config)
    found = []
    for name in (f"train{shard}/{index}" for index in range(30) for shard in range(2)):
        steps = order.steps_that_read(rows.holding(frozenset([document_identity(name)])), config.steps)
        if steps and steps[0] > after + 1:
            found.append((name, steps[0]))
    assert len(found) >= count, "the order of rows leaves no document for the end"
    return [name for name, _ in found[:count]], min(step for _, step in found[:count])


@pytest.mark.parametrize("case", CASES)
def test_a_replay_equals_a_training_that_never_held_the_documents(tmp_path, case):
    options = {**KEPT, **CASES[case]}
    packed = options.pop("packed", 0)
    ours, other = tmp_path / "ours", tmp_path / "other"
    tokens = write_tokens(ours, packed=packed)
    names, first = late_documents(ours, tokens, options)
    old = train(ours, tokens, **options)
    clean = (first - 1) // 2 * 2
    removed = {"removed_documents": identities_of(names), "continue_from": checkpoint_at(ours, old, clean)}
    new = train(ours, tokens, **options, **removed)
    assert new.key != old.key
    assert new.config["train"]["removed_documents"] == list(identities_of(names))
    # Never held: other tokens on disk, no mask, from step 1.
    never = train(other, write_tokens(other, without=names, packed=packed), **options)
    assert learned(ours, new) == learned(other, never) != learned(ours, old)
    read = [json.loads((root / run.folder / "losses.json").read_bytes())["losses"]
            for root, run in ((ours, old), (ours, new), (other, never))]  # fmt: skip
    assert read[1] == read[2]
    assert read[0][: first - 1] == read[1][: first - 1]
    assert read[0][first - 1] != read[1][first - 1]
    assert new.stats["stream_sha256"] == never.stats["stream_sha256"]
    # The whole training with the mask, and a replay that is stopped and resumed, are the same, too.
    masked = train(ours, tokens, **options, removed_documents=identities_of(names))
    assert learned(ours, masked) == learned(ours, new)


def test_no_bit_depends_on_what_stood_there(tmp_path):
    """Two corpora that differ in the removed documents alone give the same weights."""
    found = []
    for number in range(2):
        root = tmp_path / str(number)
        tokens = write_tokens(root)
        rows = rows_of(root, tokens)
        if number:  # other tokens at the same places, in the file itself
            shard = rows.shards[0]
            data = bytearray(shard.path.read_bytes())
            begin, end = (int(shard.document_ends[place]) for place in (6, 7))
            for token in range(begin, end - 1):
                data[64 + 2 * token] ^= 5
            shard.path.write_bytes(data)
            from governance.manifest import describe, write_manifest

            outputs = tuple(describe(root / output.path, root) for output in tokens.outputs)
            tokens = tokens.model_copy(update={"outputs": outputs})
            write_manifest(tokens, root)
        run = train(root, tokens, steps=6, validate_every_steps=0, removed_documents=identities_of(["train0/7"]))
        found.append((learned(root, run), run.stats["losses_sha256"]))
    assert found[0] == found[1]


def test_a_mask_is_part_of_the_run_and_is_never_taken_back(tmp_path):
    tokens = write_tokens(tmp_path)
    names, first = late_documents(tmp_path, tokens, {})
    old = train(tmp_path, tokens, **KEPT)
    late = checkpoint_at(tmp_path, old, 10)
    with pytest.raises(ConfigError, match=rf"had read a document of train\.removed_documents at step {first}"):
        train(tmp_path, tokens, **KEPT, steps=12, removed_documents=identities_of(names), continue_from=late)
    with pytest.raises(ConfigError, match="1 document\\(s\\) are not in the token shards, such as 0123"):
        train(tmp_path, tokens, **KEPT, removed_documents=("0123" * 8,))
    with pytest.raises(ValueError, match="'x' is not 32 hexadecimal digits"):
        TrainConfig(**PLAIN, removed_documents=("x",))
    masked = train(tmp_path, tokens, **KEPT, removed_documents=identities_of(names))
    with pytest.raises(ConfigError, match=r"lacks 2 document\(s\) here that were removed there"):
        train(tmp_path, tokens, **KEPT, steps=12, continue_from=checkpoint_at(tmp_path, masked, 10))
    assert "removed_documents" not in old.config["train"]  # keys of all other runs stay


def test_every_target_of_a_step_may_be_removed(tmp_path):
    """A step that only reads removed documents learns nothing, and trains on."""
    tokens = write_tokens(tmp_path)
    rows = rows_of(tmp_path, tokens)
    train_config = TrainConfig(**{**PLAIN, "global_batch_size": 1, "steps": 4})
    [number] = sampler_of(rows, train_config).rows(2)
    names = rows.documents_of([number])
    run = train(
        tmp_path, tokens, global_batch_size=1, micro_batch_size=1, steps=4, warmup_steps=1, decay_steps=1,
        validate_every_steps=0, removed_documents=tuple(names),
    )  # fmt: skip
    losses = json.loads((tmp_path / run.folder / "losses.json").read_bytes())["losses"]
    assert losses[1] == 0.0
    assert all(loss > 0 for place, loss in enumerate(losses) if place != 1)


RANKS = """
from pathlib import Path
import json, os
from tests.pretrain.replays import *
from governance.manifest import read_manifest
folder = Path({folder!r})
plan = json.loads((folder / "plan.json").read_text())
found = {{}}
for stage in (0, 1, 2, 3):
    for name in ("ours", "other"):
        root = folder / name
        tokens = read_manifest(root / "encode" / ("e" * 16) / "manifest.json")
        more = {{"removed_documents": tuple(plan["removed"])}} if name == "ours" else {{}}
        # Another length of decay for each stage, else the next one finds the finished run of this one.
        run = train(root, tokens, **plan["options"], zero_stage=stage, micro_batch_size=2, decay_steps=stage + 2,
                    continue_from=plan["clean"][name], **more)
        found[f"{{stage}} {{name}}"] = learned(root, run)
if os.environ["RANK"] == "0":
    (folder / "found.json").write_text(json.dumps(found))
"""


def test_it_holds_on_other_ranks_and_at_each_stage(tmp_path):
    """Checkpoints of one rank, continued by two at stages 0 to 3."""
    options = {**KEPT, "steps": 8}
    clean = {}
    ours, other = tmp_path / "ours", tmp_path / "other"
    tokens = write_tokens(ours)
    names, first = late_documents(ours, tokens, {"steps": 8}, after=2)
    step = (first - 1) // 2 * 2
    for root, made in ((ours, tokens), (other, write_tokens(other, without=names))):
        clean[root.name] = checkpoint_at(root, train(root, made, **options), step)
    plan = {"removed": identities_of(names), "options": options, "clean": clean}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    well, output = run_ranks(tmp_path / "ranks", ["-c", RANKS.format(folder=str(tmp_path))], 2)
    assert well, output[-6000:]
    found = json.loads((tmp_path / "found.json").read_bytes())
    for stage in range(4):
        assert found[f"{stage} ours"] == found[f"{stage} other"], stage


def test_a_stopped_replay_resumes_with_its_mask(tmp_path, at_step):
    from governance.errors import Preempted

    names, first = late_documents(tmp_path, tokens := write_tokens(tmp_path), {})
    old = train(tmp_path, tokens, **KEPT)
    wanted = {
        "removed_documents": identities_of(names),
        "continue_from": checkpoint_at(tmp_path, old, first // 2 * 2 - 2),
    }
    whole = tmp_path / "whole"
    alone = train(whole, write_tokens(whole), **KEPT, removed_documents=identities_of(names))

    def stop():
        raise Preempted("a stop in the middle of a step")

    at_step(first + 1, stop)
    with pytest.raises(Preempted):
        train(tmp_path, tokens, **KEPT, **wanted)
    assert learned(tmp_path, train(tmp_path, tokens, **KEPT, **wanted)) == learned(whole, alone)


def test_held_out_copies_are_not_measured(tmp_path):
    tokens = write_tokens(tmp_path)
    [name] = ["validation0/1"]
    rows = without_removed(
        rows_of(tmp_path, tokens, "validation"), TrainConfig(**PLAIN, removed_documents=identities_of([name]))
    )
    whole = replace(rows, removed=frozenset())
    assert rows.document_bytes < whole.document_bytes
    assert rows.targets == int((rows.batch(list(range(rows.count))).targets >= 0).sum()) < whole.targets
    with pytest.raises(PipelineError):
        rows_of(tmp_path, tokens, "test")


@settings(max_examples=60)
@given(st.integers(0, 1 << 30), st.integers(300, 3000), st.floats(0.002, 0.05), st.floats(0.3, 3.0))
def test_contested_text_makes_replays_short(seed, count, share, epochs):
    """Simulated runs with a checkpoint in each hundredth: a mean replay takes 5 % at most, and no row is read more."""
    chance = np.random.default_rng(seed)
    late = np.sort(chance.choice(count, max(1, int(count * share)), replace=False))
    batch = int(chance.choice([1, 2, 4]))
    steps = max(100, int(count * epochs) // batch)
    ramp = (RampConfig(until_step=steps // 3, global_batch_size=1),) if seed % 2 else ()
    config = TrainConfig(sequence_length=32, global_batch_size=batch, steps=steps, batch_size_ramp=ramp, seed=seed)
    sizes = batch_sizes(config)
    order = RowSampler(count, seed, sizes, read_late(config, count, late, sizes))
    rows = sizes.before(steps + 1)
    read = np.bincount(order.between(0, rows), minlength=count)
    assert abs(int(read[late].sum()) - rows * len(late) / count) < 1
    assert np.ptp(read[late]) <= 1
    assert np.ptp(np.delete(read, late)) <= 1
    each, replays = max(1, steps // 100), []
    for row in late.tolist():
        if seen := order.steps_that_read(np.array([row]), steps):
            replays.append((steps - (seen[0] - 1) // each * each) / steps)
    assert np.mean(replays) <= 0.05
    some = [steps // 3, int(sizes.steps_of(np.array([rows - int(read[late].sum())]))[0]), steps]
    found = order.steps_that_read(late, steps)
    assert [found.count(step) for step in some] == [int(np.isin(order.rows(step), late).sum()) for step in some]
