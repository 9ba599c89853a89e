from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.tokens.pack import PackConfig, pack
from governance.errors import ConfigError, ManifestError, MissingInput, PipelineError
from governance.files import remove_tree
from governance.stage import Runtime
from pretrain.data.dataset import altered_shards, micro_batches, open_rows, refuse_altered, refuse_small, spread
from tests.altered_files import flip


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_ranks_share_a_batch_without_overlap(micro, world, accumulation):
    numbers = list(range(micro * world * accumulation))
    parts = [list(micro_batches(numbers, micro, rank, world)) for rank in range(world)]
    assert all(len(part) == accumulation for part in parts)
    assert sorted(n for part in parts for group in part for n in group) == numbers


@given(st.integers(1, 500), st.integers(1, 100))
def test_spread_rows_are_distinct_and_cover(count, most):
    numbers = spread(count, most)
    assert len(set(numbers)) == len(numbers) == min(count, most)
    assert set(numbers) <= set(range(count))
    if count <= most:
        assert numbers == list(range(count))


def test_every_target_is_seen_once(tmp_path, make_tokens):
    rows = open_rows(make_tokens(tmp_path), "train", tmp_path, 32)
    batch = rows.batch(list(range(rows.count)))
    assert int((batch.targets >= 0).sum()) == rows.targets
    assert batch.tokens.shape == (rows.count, 32)


def test_an_altered_shard_is_named_by_some_rank(tmp_path, make_tokens):
    manifest = make_tokens(tmp_path)
    assert not altered_shards(manifest, tmp_path, 0, 1)
    path = tmp_path / manifest.outputs[1].path
    flip(path, 70)
    (tmp_path / manifest.outputs[2].path).unlink()
    problems = [line for rank in range(3) for line in altered_shards(manifest, tmp_path, rank, 3)]
    with pytest.raises(ManifestError) as error:
        refuse_altered(problems)
    assert str(path) in str(error.value)
    assert "is missing" in str(error.value)
    assert len(problems) == 2


def test_too_few_rows_are_reported_with_numbers(tmp_path, make_tokens):
    rows = open_rows(make_tokens(tmp_path), "train", tmp_path, 32)
    with pytest.raises(
        PipelineError, match=f"{rows.count} rows of 32 tokens, fewer than one batch of {rows.count + 1}"
    ):
        refuse_small(rows.count, rows.sequence_length, rows.count + 1)


def test_no_shards_are_reported(tmp_path, make_tokens):
    manifest = make_tokens(tmp_path, validation=0)
    with pytest.raises(PipelineError, match="hold no token"):
        open_rows(manifest, "validation", tmp_path, 32)


def packed(root, make_tokens, length=32, **settings):
    return pack(make_tokens(root, **settings), PackConfig(sequence_length=length), Runtime(root))


def test_packed_rows_and_stretches_of_the_stream_predict_the_same(tmp_path, make_tokens):
    made = packed(tmp_path, make_tokens)
    for role in ("train", "validation"):
        seen = []
        for tokens in (make_tokens(tmp_path), made):
            rows = open_rows(tokens, role, tmp_path, 32)
            batch = rows.batch(list(range(rows.count)))
            used = batch.targets >= 0
            assert int(used.sum()) == rows.targets
            seen.append(sorted(zip(batch.tokens[used].tolist(), batch.targets[used].tolist(), strict=True)))
            facts = (rows.targets, rows.document_bytes, rows.vocabulary_size, rows.sequence_length)
            seen.append(facts)
        assert seen[:2] == seen[2:]
    assert made.stats["train_rows"] == open_rows(made, "train", tmp_path, 32).count


def test_packed_rows_survive_a_moved_root(tmp_path, make_tokens):
    made = packed(tmp_path / "here", make_tokens)
    (tmp_path / "here").rename(tmp_path / "there")
    assert not altered_shards(made, tmp_path / "there", 0, 1)
    assert open_rows(made, "train", tmp_path / "there", 32).count == made.stats["train_rows"]


def test_rows_packed_for_another_length_are_refused(tmp_path, make_tokens):
    with pytest.raises(ConfigError, match=r"train\.sequence_length = 64: .* were packed for 32"):
        open_rows(packed(tmp_path, make_tokens), "train", tmp_path, 64)


def test_the_shards_below_packed_rows_are_verified_too(tmp_path, make_tokens):
    made = packed(tmp_path, make_tokens)
    assert not altered_shards(made, tmp_path, 0, 1)
    path = make_tokens(tmp_path).files("train", tmp_path)[0]
    flip(path, 70)
    [problem] = [line for rank in range(2) for line in altered_shards(made, tmp_path, rank, 2)]
    assert str(path) in problem
    remove_tree(path.parents[1])
    with pytest.raises(MissingInput, match="indexes the token shards of encode/"):
        altered_shards(made, tmp_path, 0, 1)
    with pytest.raises(MissingInput, match="assay data prepare"):
        open_rows(made, "train", tmp_path, 32)


def test_a_role_without_packed_rows_is_reported(tmp_path, make_tokens):
    made = packed(tmp_path, make_tokens, validation=0)
    assert not made.files("validation", tmp_path)
    with pytest.raises(PipelineError, match="hold no token"):
        open_rows(made, "validation", tmp_path, 32)
