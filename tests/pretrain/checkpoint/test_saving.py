"""Saving in the background: durable before it counts, faults reported on every rank, kills at every moment."""

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch

from governance import files
from governance.errors import PipelineError, StorageError
from governance.manifest import FILE_NAME, verify, write_manifest
from pretrain.checkpoint import save as saving
from pretrain.checkpoint.format import moments, read_state, require_step, weights
from pretrain.checkpoint.load import newest_whole
from pretrain.checkpoint.native import STAGE as NATIVE
from pretrain.checkpoint.native import find_native, identity, native_folder, read_shard, reader, shard_path
from pretrain.config.training import CheckpointConfig
from pretrain.engine import engine as door
from pretrain.model.decoder import Decoder
from tests.pretrain.checkpoint_ranks import (
    KEEP,
    KINDS,
    SHAPES,
    fragments_at,
    save,
    saver_of,
    state_at,
    store_in,
    together,
    values_at,
)


def holds(store, step: int) -> bool:
    """True for a checkpoint that holds the live values of its step, bit for bit."""
    manifest = require_step(store, step)
    with weights(manifest, store.root) as masters, moments(manifest, store.root) as others:
        return all(
            torch.equal(masters.read(name), values["master"])
            and all(torch.equal(others.read(f"{name}.{kind}"), values[kind]) for kind in KINDS[1:])
            for name, values in values_at(step).items()
        )


@pytest.fixture
def gate(monkeypatch):
    """The background thread waits before its first file until the gate is opened."""
    opened, write = threading.Event(), saving.write_checkpoint

    def held(*arguments):
        assert opened.wait(300)
        write(*arguments)

    monkeypatch.setattr(saving, "write_checkpoint", held)
    return opened


def test_save_returns_before_a_file_is_written_and_keeps_that_moment(tmp_path, gate):
    store = store_in(tmp_path)
    fragments = fragments_at(3)
    saver = saving.Saver(store, saving.CheckpointSource(lambda: fragments, SHAPES, 1), KEEP, {})
    with saver:
        saver.save(state_at(3))
        assert not store.folder(3).exists()
        for fragment in fragments:  # training goes on, in place
            for tensor in fragment.tensors.values():
                tensor.zero_()
        gate.set()
    assert holds(store, 3)


def test_the_next_save_waits_for_the_one_before(tmp_path, gate):
    store, live = store_in(tmp_path), {"step": 1}
    with saver_of(store, live) as saver:
        saver.save(state_at(1))
        threading.Timer(0.5, gate.set).start()
        live["step"] = 2
        saver.save(state_at(2))
        assert (store.folder(1) / FILE_NAME).exists()
    assert holds(store, 1)
    assert holds(store, 2)


def test_waiting_in_the_loop_is_durable_at_return(tmp_path):
    store = store_in(tmp_path)
    config = KEEP.model_copy(update={"asynchronous": False})
    with saver_of(store, {"step": 2}, config=config) as saver:
        saver.save(state_at(2))
        assert holds(store, 2)


def test_what_is_in_the_making_is_finished_when_training_fails(tmp_path, gate):
    store = store_in(tmp_path)
    with pytest.raises(ZeroDivisionError), saver_of(store, {"step": 4}) as saver:  # noqa: PT012
        saver.save(state_at(4))
        threading.Timer(0.2, gate.set).start()
        raise ZeroDivisionError
    assert holds(store, 4)


def test_a_fault_is_raised_at_the_next_save_or_the_end(tmp_path, monkeypatch):
    def full(*arguments):
        raise StorageError("no space left")

    store, live = store_in(tmp_path), {"step": 1}
    save(store, 1)
    monkeypatch.setattr(saving, "write_canonical", full)
    with pytest.raises(StorageError), saver_of(store, live) as saver:  # noqa: PT012
        saver.save(state_at(2))
        while not saver.failed:
            time.sleep(0.01)
        with pytest.raises(StorageError):
            saver.save(state_at(3))
    with pytest.raises(StorageError), saver_of(store, live) as saver:
        saver.save(state_at(2))
    assert newest_whole(store)[0].step == 1


@pytest.mark.parametrize("bad", [0, 1])
def test_a_fault_of_one_rank_is_raised_on_all(tmp_path, monkeypatch, bad):
    store, write = store_in(tmp_path), saving.write_shard

    def full(folder, root, rank, fragments):
        if rank == bad:
            raise StorageError("no space left")
        return write(folder, root, rank, fragments)

    monkeypatch.setattr(saving, "write_shard", full)

    def act(peers):
        with pytest.raises(StorageError, match="no space left"):
            save(store, 2, peers=peers)
        return True

    assert together(2, act) == [True, True]
    assert newest_whole(store)[0] is None


def test_a_defect_of_one_rank_is_reported_to_the_others(tmp_path, monkeypatch):
    def broken(*arguments):
        if arguments[4][0] == 1:
            raise KeyError("ours")
        return []

    monkeypatch.setattr(saving, "write_canonical", broken)

    def act(peers):
        with pytest.raises(KeyError if peers["ranks"].rank else PipelineError, match="ours"):
            save(store_in(tmp_path), 2, peers=peers)
        return True

    assert together(2, act) == [True, True]


@pytest.mark.parametrize("small_disk", ["96k"], indirect=True)  # room for some of the tiny checkpoints, not for all
def test_a_full_disk_stops_the_run_and_keeps_finished_work(small_disk):
    store, live, steps = store_in(small_disk), {"step": 0}, []
    with pytest.raises(StorageError, match="no space left") as error, saver_of(store, live) as saver:  # noqa: PT012
        for step in range(1, 30):
            live["step"] = step
            saver.save(state_at(step))
            steps.append(step)
    assert error.value.exit_code == 74
    newest = newest_whole(store)[0].step
    assert 1 <= newest < 29
    assert holds(store, newest)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_step_may_be_saved_anew_with_a_later_validation(tmp_path, world_size):
    store = store_in(tmp_path)
    together(world_size, lambda peers: save(store, 3, peers=peers))
    row = {"step": 3, "loss": 1.0}

    def anew(peers):
        with saver_of(store, {"step": 3}, peers) as saver:
            saver.save(state_at(3, validations=[row]))

    together(world_size, anew)
    assert read_state(require_step(store, 3), tmp_path).validations == [row]
    assert holds(store, 3)
    found = together(world_size, lambda peers: newest_whole(replace(store, **peers), 1)[0])
    assert all((item.native is not None) == (world_size > 1) for item in found)


def test_a_state_that_no_file_can_hold_takes_nothing_away(tmp_path):
    store = store_in(tmp_path)
    save(store, 3)
    with pytest.raises(ValueError, match="JSON compliant"), saver_of(store, {"step": 3}) as saver:
        saver.save(state_at(3, validations=[{"step": 3, "loss": math.nan}]))
    assert newest_whole(store)[0].step == 3


def test_native_shards_count_next_to_their_checkpoint_only(tmp_path):
    store = store_in(tmp_path)
    together(2, lambda peers: save(store, 1, 2, peers=peers))
    shards = list((tmp_path / NATIVE).glob(f"*/{FILE_NAME}"))
    assert len(shards) == 1  # of the newest alone
    checkpoint = require_step(store, 2)
    of = identity(store, 2, 2, 1)
    native = find_native(store, of, checkpoint)
    assert native is not None
    assert not verify(native, tmp_path)
    assert find_native(store, of, checkpoint.model_copy(update={"stats": {}})) is None
    assert find_native(store, identity(store, 2, 3, 1), checkpoint) is None
    write_manifest(native.model_copy(update={"config": {**native.config, "train_key": "b" * 64}}), tmp_path)
    assert find_native(store, of, checkpoint) is None
    assert find_native(store, identity(store, 2, 2, 2), checkpoint) is None
    for rank in range(2):
        read = reader(read_shard(shard_path(native_folder(store, of), rank)))
        for fragment in fragments_at(2, rank, 2):
            values = read(fragment.name, fragment.start, fragment.length)
            assert all(torch.equal(values[kind], fragment.tensors[kind]) for kind in KINDS)
    assert not (tmp_path / "checkpoint" / "records").exists()


def test_no_shards_are_left_where_they_are_switched_off(tmp_path, monkeypatch):
    store, lying = store_in(tmp_path), []
    config = KEEP.model_copy(update={"native": False})
    remove = saving.remove_native

    def measured(*given):
        files = [(tmp_path / stage).rglob("*.safetensors") for stage in ("checkpoint", NATIVE)]
        lying.append([sum(path.stat().st_size for path in some) for some in files])
        remove(*given)

    monkeypatch.setattr(saving, "remove_native", measured)
    together(2, lambda peers: save(store, 1, peers=peers, config=config))
    assert holds(store, 1)
    assert not list((tmp_path / NATIVE).glob("*"))
    [(files, shards)] = lying  # of the save itself: each needs the room of the state (`node_checks.save_bytes`)
    assert shards > 0.9 * files > 0


def test_torn_shards_are_reported_and_the_canonical_form_is_read(tmp_path, caplog):
    store = store_in(tmp_path)
    together(2, lambda peers: save(store, 1, 2, peers=peers))
    found = together(2, lambda peers: newest_whole(replace(store, **peers), 1)[0])
    assert [item.native is not None for item in found] == [True, True]
    path = shard_path(native_folder(store, identity(store, 2, 2, 1)), 1)
    path.write_bytes(path.read_bytes()[:-1])
    found = together(2, lambda peers: newest_whole(replace(store, **peers), 1)[0])
    assert [(item.step, item.native) for item in found] == [(2, None), (2, None)]
    assert "shards/00001.safetensors" in caplog.text
    assert "canonical" in caplog.text
    path = store.folder(2) / "weights" / "00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert [item.step for item in together(2, lambda peers: newest_whole(replace(store, **peers), 1)[0])] == [1, 1]


OPERATIONS = ("replace", "fsync", "open", "unlink", "rmdir", "mkdir")


def killed_at(moment: int, act) -> bool:
    """Run `act` in a child that is killed before its `moment`-th operation on files; whether it was killed."""
    child = os.fork()
    if child == 0:
        seen = 0

        def counted(call):
            def do(*arguments, **named):
                nonlocal seen
                seen += 1
                if seen == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **named)

            return do

        try:
            for name in OPERATIONS:
                setattr(os, name, counted(getattr(os, name)))
            files.open = counted(open)  # the bytes of every file go through it
            act()
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_killed_at_any_operation_on_files_something_whole_is_left(tmp_path, world_size):
    config = CheckpointConfig(keep_last=1)
    digests = {}
    for step in (1, 2):
        root = tmp_path / f"whole{step}"
        digests[step] = save(store_in(root), step).digest

    def act_in(store, *steps):
        return lambda: together(world_size, lambda peers: save(store, *steps, peers=peers, config=config))

    act_in(store_in(tmp_path / "begun"), 1)()
    moment, stood = 0, set()
    while True:
        moment += 1
        store = store_in(shutil.copytree(tmp_path / "begun", tmp_path / str(moment)))
        killed = killed_at(moment, act_in(store, 2))
        found = newest_whole(store)[0]
        assert found.manifest.digest == digests[found.step]
        assert holds(store, found.step)
        stood.add(found.step)
        act_in(store, 2)()  # the work of the next attempt, whatever was left behind
        assert newest_whole(store)[0].manifest.digest == digests[2]
        assert not store.folder(1).exists()
        assert len(list((store.root / NATIVE).glob("*"))) == world_size - 1
        if not killed:
            break
    assert stood == {1, 2}
    assert moment > 20


@pytest.mark.slow
def test_killed_while_a_step_is_saved_again_with_its_validation_it_stays_whole(tmp_path):
    """With `keep_last = 1` there is no other checkpoint to go back to."""
    without, measured = state_at(1), state_at(1, validations=[{"step": 1, "loss": 2.5}])

    def save_in(root, state):
        store = store_in(root)
        with saver_of(store, {"step": 1}, config=CheckpointConfig(keep_last=1)) as saver:
            saver.save(state)
        return require_step(store, 1).digest

    digests = [save_in(tmp_path / "without", without), save_in(tmp_path / "measured", measured)]
    moment, found, killed = 0, set(), True
    while killed:
        moment += 1
        root = shutil.copytree(tmp_path / "without", tmp_path / str(moment))
        killed = killed_at(moment, lambda root=root: save_in(root, measured))
        whole, damaged = newest_whole(store_in(root))
        assert not damaged
        state = without if whole.manifest.digest == digests[0] else measured
        assert read_state(whole.manifest, root).validations == state.validations
        found.add(whole.manifest.digest)
        assert save_in(root, measured) == digests[1]
        assert {path.name for path in store_in(root).folder(1).iterdir()} == {
            "manifest.json",
            "moments",
            "state.json",
            "weights",
        }
    assert found == set(digests)


def test_a_training_with_frozen_parameters_is_refused_before_its_first_step(tmp_path, run_training, monkeypatch):
    """Checkpoints would lack them."""

    class Frozen(Decoder):
        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            self.model.norm.requires_grad_(False)

    monkeypatch.setattr(door, "Decoder", Frozen)
    with pytest.raises(PipelineError, match=r"1 of the .* the first is model\.norm\.weight"):
        run_training(tmp_path)
    assert not list(tmp_path.glob("checkpoint/*"))
