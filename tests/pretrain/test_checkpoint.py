from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from governance.errors import CheckpointError, MissingInput, StorageError
from governance.files import remove_tree
from governance.manifest import FILE_NAME, Input, read_manifest
from pretrain import checkpoint as module
from pretrain.checkpoint import (
    Peers,
    Store,
    TrainState,
    file_plan,
    identity_of,
    moments,
    newest_whole,
    read_checkpoint,
    read_state,
    remove_old,
    weights,
    write_checkpoint,
)
from pretrain.config import TrainConfig, TrainRecipe
from pretrain.model_config import ModelConfig
from pretrain.optim_config import OptimConfig

SHAPES = [("a.weight", torch.Size((3, 4))), ("b.weight", torch.Size((5,))), ("c.weight", torch.Size((2, 2)))]
ALONE = Peers(0, 1, lambda value: [value])


def store_in(root: Path) -> Store:
    model = ModelConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    train = TrainConfig(sequence_length=32, global_batch_size=8, steps=100)
    recipe = TrainRecipe(model=model, optim=OptimConfig(learning_rate=0.1), train=train)
    return Store(root, "a" * 64, 200, recipe, Input(stage="encode", digest="d" * 64, path="encode/x/manifest.json"))


def state_at(step: int):
    for index, (name, shape) in enumerate(SHAPES):
        generator = torch.Generator().manual_seed(100 * step + index)
        yield name, {key: torch.randn(shape, generator=generator) for key in ("master", "exp_avg", "exp_avg_sq")}


def save(store: Store, step: int, peers: Peers = ALONE, attempt: int = 1):
    state = TrainState(step, 10 * step, [1.5] * step, [])
    return write_checkpoint(store, state, state_at(step), SHAPES, peers, {"attempt": attempt})


def test_what_was_saved_is_read_back(tmp_path):
    store = store_in(tmp_path)
    manifest = save(store, 3)
    assert manifest == read_manifest(tmp_path / manifest.path)
    assert identity_of(manifest) == store.identity(3)
    assert read_state(manifest, tmp_path) == TrainState(3, 30, [1.5] * 3, [])
    with weights(manifest, tmp_path) as masters, moments(manifest, tmp_path) as others:
        assert masters.names() == [name for name, _ in SHAPES]
        for name, values in state_at(3):
            assert torch.equal(masters.read(name, values["master"].shape), values["master"])
            assert torch.equal(others.read(f"{name}.exp_avg"), values["exp_avg"])
            assert torch.equal(others.read(f"{name}.exp_avg_sq"), values["exp_avg_sq"])
        with pytest.raises(CheckpointError, match="another model"):
            masters.read("d.weight")
        with pytest.raises(CheckpointError, match="shape"):
            masters.read("a.weight", (4, 3))


def test_bytes_do_not_tell_the_attempt_or_the_ranks(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FILE_BYTES", 60)
    monkeypatch.setattr(module.file_plan, "__defaults__", (60,))
    first = save(store_in(tmp_path / "a"), 3)
    assert len(first.files("weights", tmp_path)) == 2

    # Two ranks, one after the other: each writes its own files, then rank 0 hears of all.
    store = store_in(tmp_path / "b")
    heard: list = []

    def gather_as_second(value):
        heard.append(value)
        return [value]

    save(store, 3, Peers(1, 2, gather_as_second))
    second_outputs = next(value for value in heard if isinstance(value, tuple))
    shutil.copytree(store.folder(3), tmp_path / "kept")

    def gather_as_first(value):
        if isinstance(value, tuple):
            shutil.copytree(tmp_path / "kept", store.folder(3), dirs_exist_ok=True)
            return [value, second_outputs]
        return [value, None]

    both = save(store, 3, Peers(0, 2, gather_as_first), attempt=2)
    assert both.digest == first.digest


def test_the_newest_whole_one_is_found(tmp_path, caplog):
    store = store_in(tmp_path)
    assert newest_whole(store) == 0
    for step in (1, 2, 3):
        save(store, step)
    assert newest_whole(store) == 3
    flipped = store.folder(3) / "moments" / "00000.safetensors"
    data = bytearray(flipped.read_bytes())
    data[-1] ^= 1
    flipped.write_bytes(data)
    assert newest_whole(store) == 2
    assert "moments/00000.safetensors" in caplog.text
    (store.folder(2) / FILE_NAME).write_text("{torn")
    assert newest_whole(store) == 1
    remove_tree(store.folder(1))
    assert newest_whole(store) == 0


def test_one_asked_for_by_name_must_be_whole(tmp_path, make_tokens):
    store = store_in(tmp_path)
    save(store, 1)
    assert read_checkpoint(store.folder(1), tmp_path).stats["step"] == 1
    (store.folder(1) / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"state\.json") as error:
        read_checkpoint(store.folder(1), tmp_path)
    assert error.value.exit_code == 65
    with pytest.raises(MissingInput):
        read_checkpoint(tmp_path / "nothing", tmp_path)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        read_checkpoint(tmp_path / make_tokens(tmp_path).folder, tmp_path)


def test_old_ones_are_removed_and_so_are_leftovers(tmp_path):
    store = store_in(tmp_path)
    for step in (1, 2, 3, 4):
        save(store, step)
    (store.folder(2) / FILE_NAME).unlink()  # a kill during a removal, or during a save
    remove_old(store, 2, 4)
    assert [step for step in (1, 2, 3, 4) if store.folder(step).exists()] == [3, 4]
    assert newest_whole(store) == 4


def test_a_damaged_one_is_replaced(tmp_path):
    store = store_in(tmp_path)
    first = save(store, 5)
    (store.folder(5) / "weights" / "00000.safetensors").write_bytes(b"torn")
    assert save(store, 5, attempt=2).digest == first.digest
    assert newest_whole(store) == 5


def test_a_full_disk_commits_nothing_and_no_rank_waits(tmp_path, monkeypatch):
    store = store_in(tmp_path)
    walked = []

    def walk():
        for item in state_at(1):
            walked.append(item[0])
            yield item

    def full(*arguments):
        raise StorageError("no space left")

    monkeypatch.setattr(module, "_write_pair", full)
    with pytest.raises(StorageError):
        write_checkpoint(store, TrainState(1, 1, [1.0], []), walk(), SHAPES, ALONE, {})
    assert len(walked) == len(SHAPES)  # a rank that stopped here would leave the others in a collective
    assert not (store.folder(1) / FILE_NAME).exists()


@given(st.lists(st.integers(1, 40), max_size=30))
def test_files_hold_every_parameter_once_and_in_order(elements):
    sizes = [(str(index), count) for index, count in enumerate(elements)]
    plan = file_plan(sizes, limit=100)
    assert [name for names in plan for name in names] == [name for name, _ in sizes]
    lookup = dict(sizes)
    for names in plan:
        assert len(names) == 1 or sum(4 * lookup[name] for name in names) <= 100


def test_the_state_is_plain_json(tmp_path):
    store = store_in(tmp_path)
    manifest = save(store, 2)
    values = json.loads((tmp_path / manifest.folder / "state.json").read_bytes())
    assert values == {
        "step": 2, "tokens": 20, "losses": [1.5, 1.5], "validations": [], "stream": "", "skipped": [],
    }  # fmt: skip
