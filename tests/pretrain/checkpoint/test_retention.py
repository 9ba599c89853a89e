from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from governance.manifest import FILE_NAME, write_manifest
from pretrain.checkpoint.format import require_step
from pretrain.checkpoint.load import newest_whole
from pretrain.checkpoint.retention import kept_steps, remove_old
from pretrain.config.training import CheckpointConfig
from tests.manifests import manifest_of
from tests.pretrain.checkpoint_ranks import save, store_in


def standing(store, count: int) -> list[int]:
    return [step for step in range(1, count + 1) if store.folder(step).exists()]


def rows(**losses) -> list[dict]:
    return [{"step": int(name[1:]), "loss": loss} for name, loss in losses.items()]


def test_old_ones_are_removed_and_so_are_leftovers(tmp_path):
    store = store_in(tmp_path)
    save(store, 1, 2, 3, 4)
    (store.folder(2) / FILE_NAME).unlink()  # a kill during a removal, or during a save
    remove_old(store, CheckpointConfig(keep_last=2), 4, [])
    assert standing(store, 4) == [3, 4]
    assert newest_whole(store)[0].step == 4


def test_each_rule_keeps_its_own():
    steps = [10, 20, 30, 40, 50, 60]
    validations = rows(s10=3.0, s20=1.0, s25=0.1, s30=2.0, s40=1.0)
    assert kept_steps(steps, CheckpointConfig(keep_last=1), validations) == {60: "last"}
    lost = [*validations, {"step": 60, "loss": None}]
    assert set(kept_steps(steps, CheckpointConfig(keep_last=1, keep_best=9), lost)) == {10, 20, 30, 40, 60}
    assert set(kept_steps(steps, CheckpointConfig(keep_last=2, keep_every_steps=20), [])) == {20, 40, 50, 60}
    assert set(kept_steps(steps, CheckpointConfig(keep_last=1, keep_best=1), validations)) == {20, 60}
    assert set(kept_steps(steps, CheckpointConfig(keep_last=1, keep_best=3), validations)) == {20, 30, 40, 60}
    assert set(kept_steps(steps, CheckpointConfig(keep_last=1, keep_best=9), [])) == {60}


@given(
    st.lists(st.integers(1, 60), unique=True, min_size=1).map(sorted),
    st.integers(1, 5),
    st.integers(0, 7),
    st.integers(0, 4),
    st.dictionaries(st.integers(1, 60), st.floats(0, 9)),
)
def test_removed_checkpoints_are_kept_by_no_rule(steps, last, every, best, losses):
    config = CheckpointConfig(keep_last=last, keep_every_steps=every, keep_best=best)
    validations = [{"step": step, "loss": loss} for step, loss in losses.items()]
    kept = kept_steps(steps, config, validations)
    assert set(steps[-last:]) <= set(kept) <= set(steps)
    assert all(step in kept for step in steps if every and step % every == 0)
    for step in set(steps) & set(losses) - set(kept):
        assert sum(losses[other] <= losses[step] for other in kept if other in losses) >= best


def test_one_that_another_artifact_names_stays(tmp_path, monkeypatch):
    """A save reads the manifests that are new since the last one, and none of its own run's."""
    store = store_in(tmp_path)
    save(store, 1, 2, 3)
    audit = manifest_of("model_audit", key="f", inputs=(require_step(store, 1).as_input(),))
    write_manifest(audit, tmp_path)
    other = store_in(tmp_path, train_key="b" * 64)
    save(other, 1)
    remove_old(store, CheckpointConfig(keep_last=1), 3, [])
    assert standing(store, 3) == [1, 3]
    save(store, 4, 5)
    another = manifest_of("model_audit", key="e", inputs=(require_step(store, 3).as_input(),))
    write_manifest(another, tmp_path)
    read, plain = [], Path.read_text

    def noted(path, *given, **named):
        read.append(path)
        return plain(path, *given, **named)

    monkeypatch.setattr(Path, "read_text", noted)
    remove_old(store, CheckpointConfig(keep_last=1), 5, [])
    assert standing(store, 5) == [1, 3, 5]
    assert [path for path in read if path.name == FILE_NAME] == [tmp_path / another.path]


def test_another_run_s_are_not_touched(tmp_path):
    store, other = store_in(tmp_path), store_in(tmp_path, train_key="b" * 64)
    save(other, 1, 2)
    save(store, 1, 2, config=CheckpointConfig(keep_last=1))
    assert standing(store, 2) == [2]
    assert standing(other, 2) == [1, 2]
