"""The format of a checkpoint, and the parts that do not depend on its writer."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from governance.errors import CheckpointError, MissingInput
from governance.files import remove_tree, sha256_file
from governance.manifest import FILE_NAME, read_manifest, write_manifest
from pretrain.checkpoint import canonical
from pretrain.checkpoint.canonical import file_plan
from pretrain.checkpoint.format import identity_of, moments, read_checkpoint, read_state, require_step, weights
from pretrain.checkpoint.load import newest_whole
from pretrain.checkpoint.safetensors_files import TensorEntry, map_tensors, write_rounded, write_tensors
from tests.altered_files import flip
from tests.pretrain.checkpoint_ranks import ALONE, SHAPES, save, state_at, store_in, together, values_at


def newest(store, peers=ALONE, zero_stage=None) -> int:
    found = newest_whole(replace(store, **peers), zero_stage)[0]
    return found.step if found else 0


def test_what_was_saved_is_read_back(tmp_path):
    store = store_in(tmp_path)
    manifest = save(store, 3)
    assert manifest == read_manifest(tmp_path / manifest.path)
    assert identity_of(manifest) == store.identity(3)
    assert read_state(manifest, tmp_path) == state_at(3)
    with weights(manifest, tmp_path) as masters, moments(manifest, tmp_path) as others:
        assert masters.names() == [name for name, _ in SHAPES]
        for name, values in values_at(3).items():
            assert torch.equal(masters.read(name, values["master"].shape), values["master"])
            assert torch.equal(others.read(f"{name}.exp_avg"), values["exp_avg"])
            assert torch.equal(others.read(f"{name}.exp_avg_sq"), values["exp_avg_sq"])
        with pytest.raises(CheckpointError, match="another model"):
            masters.read("d.weight")
        with pytest.raises(CheckpointError, match="shape"):
            masters.read("a.weight", (4, 3))


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_bytes_do_not_depend_on_the_attempt_or_the_ranks(tmp_path, monkeypatch, world_size):
    monkeypatch.setattr(canonical, "FILE_BYTES", 60)
    first = save(store_in(tmp_path / "a"), 3)
    assert len(first.files("weights", tmp_path)) == 2
    store = store_in(tmp_path / "b")
    for both in together(world_size, lambda peers: save(store, 3, peers=peers, attempt=2)):
        assert both.digest == first.digest
        assert both.run["attempt"] == 2


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
            lambda n: n != "__metadata__"
        ),
        st.lists(st.integers(1, 4), min_size=1, max_size=3),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 10),
)
def test_a_file_is_byte_for_byte_what_safetensors_writes(tmp_path_factory, shapes, cut):
    folder = tmp_path_factory.mktemp("files")
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    save_file(tensors, folder / "theirs")
    entries = []
    for name, tensor in tensors.items():
        flat = tensor.flatten()
        pieces = [flat[:cut], flat[cut:].numpy()]
        entries.append(TensorEntry(name, tuple(tensor.shape), pieces))
    write_tensors(folder / "ours", entries)
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()
    mapped, metadata = map_tensors(folder / "ours")
    assert metadata == {}
    assert mapped.keys() == tensors.keys()
    assert all(numpy.array_equal(mapped[name], tensors[name].flatten().numpy()) for name in tensors)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
            lambda n: n != "__metadata__"
        ),
        st.tuples(
            st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), st.lists(st.integers(0, 4), max_size=3)
        ),
        min_size=1,
        max_size=6,
    )
)
def test_rounded_weights_are_byte_for_byte_what_safetensors_writes(tmp_path_factory, kinds):
    """The digest is that of the file, and a transposed tensor is written in the order of its values."""
    folder = tmp_path_factory.mktemp("files")
    # the library orders bf16 and fp16 by a rule of its own; an export holds at most one of them
    narrow = {dtype for dtype, _ in kinds.values() if dtype != torch.float32}
    kinds = {
        name: (dtype if dtype == torch.float32 else sorted(narrow, key=str)[0], of)
        for name, (dtype, of) in kinds.items()
    }
    tensors = {name: torch.randn(shape).to(dtype) for name, (dtype, shape) in kinds.items()}
    save_file(tensors, folder / "theirs", metadata={"format": "pt"})
    digest = write_rounded(
        folder / "ours", {name: one.mT.contiguous().mT if one.dim() > 1 else one for name, one in tensors.items()}
    )
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()
    assert digest == sha256_file(folder / "ours")


def test_pieces_that_do_not_add_up_write_nothing(tmp_path):
    with pytest.raises(ValueError, match="add up"):
        write_tensors(tmp_path / "file", [TensorEntry("a", (3,), [torch.zeros(2)])])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-4], lambda data: data[:20], lambda data: b"", lambda data: b"x" * 99]
)
def test_a_torn_file_is_reported(tmp_path, damage):
    path = tmp_path / "file"
    write_tensors(path, [TensorEntry("a", (3,), [torch.zeros(3)])])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match="cannot be read"):
        map_tensors(path)


def test_the_newest_whole_one_is_found(tmp_path, caplog):
    store = store_in(tmp_path)
    assert newest(store) == 0
    save(store, 1, 2, 3)
    assert newest(store) == 3
    flipped = store.folder(3) / "moments" / "00000.safetensors"
    flip(flipped, -1)
    assert newest(store) == 2
    assert "moments/00000.safetensors" in caplog.text
    assert together(2, lambda peers: newest(store, peers)) == [2, 2]
    (store.folder(2) / FILE_NAME).write_text("{torn")
    assert newest(store) == 1
    remove_tree(store.folder(1))
    assert newest(store) == 0


def test_one_of_another_model_is_reported(tmp_path):
    store, other = store_in(tmp_path), store_in(tmp_path, train_key="b" * 64)
    save(store, 4)
    save(other, 4)
    remove_tree(store.folder(4))
    other.folder(4).rename(store.folder(4))
    for call in (lambda: newest_whole(store), lambda: require_step(store, 4)):
        with pytest.raises(CheckpointError, match="another run or model"):
            call()


def test_one_whose_manifest_names_another_training_is_not_loaded(tmp_path):
    """The check against the journal leaves the checkpoints of other trainings out."""
    store = store_in(tmp_path)
    made = save(store, 4)
    write_manifest(made.model_copy(update={"config": {**made.config, "train_key": "b" * 64}}), tmp_path)
    with pytest.raises(CheckpointError, match="another run or model"):
        newest_whole(store)


def test_one_requested_by_name_must_be_whole(tmp_path, make_tokens):
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


def test_a_damaged_one_is_replaced(tmp_path):
    store = store_in(tmp_path)
    first = save(store, 5)
    (store.folder(5) / "weights" / "00000.safetensors").write_bytes(b"torn")
    assert save(store, 5, attempt=2).digest == first.digest
    assert newest(store) == 5


@given(st.lists(st.integers(1, 40), max_size=30))
def test_files_hold_every_parameter_once_and_in_order(elements):
    shapes = [(str(index), (count,)) for index, count in enumerate(elements)]
    plan = file_plan(shapes, limit=100)
    assert [name for names in plan for name in names] == [name for name, _ in shapes]
    lookup = dict(shapes)
    for names in plan:
        assert len(names) == 1 or sum(4 * math.prod(lookup[name]) for name in names) <= 100


def test_the_state_is_plain_json(tmp_path):
    manifest = save(store_in(tmp_path), 2)
    values = json.loads((tmp_path / manifest.folder / "state.json").read_bytes())
    assert values == {
        "step": 2, "tokens": 20, "losses": [1.5, 1.5], "validations": [], "tasks": [], "stream": "", "skipped": [],
    }  # fmt: skip
