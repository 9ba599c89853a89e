"""A run that continues another's checkpoint equals an uninterrupted run from there on, and states its origin."""

from __future__ import annotations

import logging
import os
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.cli.main import main
from assay.config import load_run
from assay.impact import impact
from assay.training_recipe import pinned
from data_pipeline.tokens.token_shards import document_identity
from governance.energy.ancestry import read_trainings
from governance.energy.checkpoint_cost import ParentModel
from governance.errors import CheckpointError, ConfigError, MissingInput
from governance.files import read_lines
from governance.lineage.lineage_graph import read_graph
from governance.manifest import read_manifest
from pretrain.checkpoint.format import CheckpointStore, identity_of
from pretrain.checkpoint.load import _beginning
from pretrain.checkpoint.retention import remove_old
from pretrain.config.model import ModelConfig
from pretrain.config.optim import OptimConfig
from pretrain.config.training import CheckpointConfig, MixtureConfig, RampConfig, TrainConfig, TrainRecipe
from pretrain.data.batch_size import batch_sizes
from pretrain.data.dataset import open_rows
from pretrain.data.mixture import mix, sources_of
from pretrain.data.sampler import RowSampler, sampler_of
from tests.altered_files import flip
from tests.pretrain.planted_faults import script
from tests.pretrain.rank_runs import run_ranks

MIXTURE = (MixtureConfig(from_step=1, weights={"web": 1.0, "books": 1.0}),)
STABLE = {"steps": 20, "decay_steps": 4, "every_steps": 4, "keep_last": 9}  # falls from step 17 on
DECAYS = {"steps": 12, "decay_steps": 4}  # falls from step 9 on


def checkpoints_of(root: Path) -> dict[tuple[str, int], str]:
    """(key of the run, step) -> the checkpoint's folder below the root."""
    found = map(read_manifest, root.glob("checkpoint/*/manifest.json"))
    return {(str(item.config["train_key"]), int(item.config["step"])): item.folder for item in found}


@pytest.fixture(scope="module")
def stable(tmp_path_factory, run_training):
    """A root with a run whose rate falls late, and all of its checkpoints; tests use copies."""
    root = tmp_path_factory.mktemp("stable") / "root"
    return root, run_training(root, **STABLE)


@pytest.fixture
def begun(stable, tmp_path):
    """A copy of that root, and its checkpoint of step 8."""
    root = shutil.copytree(stable[0], tmp_path / "begun")
    return root, checkpoints_of(root)[stable[1].key, 8]


@pytest.fixture(scope="module")
def continued(stable, tmp_path_factory, run_training):
    """A copy of that root with a run that decays from step 8: root, parent, its checkpoint of step 8, the new run."""
    root = shutil.copytree(stable[0], tmp_path_factory.mktemp("continued") / "root")
    named = checkpoints_of(root)[stable[1].key, 8]
    return root, stable[1], named, run_training(root, continue_from=named, every_steps=2, keep_last=9, **DECAYS)


def sums(run, root: Path) -> dict[str, str]:
    """Digests of weights and moments of a run's last checkpoint."""
    made = read_manifest(root / run.stats["checkpoint"]["path"])
    return {Path(item.path).parent.name: item.sha256 for item in made.outputs if "state.json" not in item.path}


def test_what_goes_on_is_the_run_of_one_go_bit_for_bit(continued, tmp_path, run_training, losses_of):
    root, parent, _, child = continued
    whole = run_training(tmp_path, **DECAYS)
    assert losses_of(child, root) == losses_of(whole, tmp_path)
    assert sums(child, root) == sums(whole, tmp_path)
    for name in ("losses_sha256", "stream_sha256", "tokens", "validation_loss"):
        assert child.stats[name] == whole.stats[name], name
    assert losses_of(child, root)[:10] == losses_of(parent, root)[:8] + losses_of(child, root)[8:10]
    assert losses_of(child, root)[10:] != losses_of(parent, root)[10:12]  # the rate of step 9 shows in the loss of 10
    lines = read_lines(root / child.folder / "metrics.jsonl")
    assert [line["step"] for line in lines if line["event"] == "step"] == [9, 10, 11, 12]
    assert [line["step"] for line in lines if line["event"] == "start"] == [8]


def test_so_it_is_in_bf16(tmp_path, run_training, losses_of):
    parent = run_training(tmp_path / "a", precision="bf16", **STABLE)
    named = checkpoints_of(tmp_path / "a")[parent.key, 8]
    child = run_training(tmp_path / "a", precision="bf16", continue_from=named, **DECAYS)
    whole = run_training(tmp_path / "b", precision="bf16", **DECAYS)
    assert losses_of(child, tmp_path / "a") == losses_of(whole, tmp_path / "b")
    assert sums(child, tmp_path / "a") == sums(whole, tmp_path / "b")


def test_where_it_is_decides_nothing_and_what_it_is_does(continued, tmp_path, run_training):
    root, parent, named, child = continued
    copy = shutil.copytree(root / named, tmp_path / "carried" / named)
    elsewhere = run_training(tmp_path / "other", continue_from=str(copy / "manifest.json"), **DECAYS)
    assert elsewhere.digest == child.digest
    assert run_training(root, continue_from=named, make=False, **DECAYS) == child
    for other in ({}, {"continue_from": checkpoints_of(root)[parent.key, 4]}):
        with pytest.raises(MissingInput, match="not made yet"):
            run_training(root, make=False, **DECAYS, **other)
    assert "continue_from" not in child.config["train"]


def test_its_own_checkpoints_come_first(begun, continued, run_training, kill_at):
    root, named = begun
    settings = {"continue_from": named, "every_steps": 2, **DECAYS}
    kill_at(11, root, **settings)
    shutil.rmtree(root / named / "weights")  # so it cannot be the one that is read now
    child = run_training(root, **settings)
    assert child.digest == continued[3].digest
    starts = [line for line in read_lines(root / child.folder / "metrics.jsonl") if line["event"] == "start"]
    assert [line["step"] for line in starts] == [8, 10]


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_at_the_parent_again(
    begun, continued, run_training, kill_at
):
    root, named = begun
    kill_at(10, root, continue_from=named, **DECAYS)
    child = run_training(root, continue_from=named, **DECAYS)
    assert child.digest == continued[3].digest
    starts = [line for line in read_lines(root / child.folder / "metrics.jsonl") if line["event"] == "start"]
    assert [(line["step"], line["rolled_back"]) for line in starts] == [(8, 0), (8, 1)]


@pytest.mark.parametrize(
    ("settings", "output"),
    [
        ({"num_hidden_layers": 3}, r"model.num_hidden_layers is 2 there, 3 here"),
        ({"optimizer": "lion"}, r"optim.optimizer is 'adamw' there, 'lion' here"),
        ({"seed": 1}, r"train.seed is 0 there, 1 here"),
        ({"sequence_length": 16}, r"train.sequence_length is 32 there, 16 here"),
        ({"global_batch_size": 16}, r"batch size up to step 8 .* is \[\(0, 8\)\] there, \[\(0, 16\)\] here"),
        ({"mixture": MIXTURE}, r"train.mixture up to step 8 is 'none' there, \[\(1, "),
        ({"mixture": (MixtureConfig(from_step=9, weights={"web": 1.0}),)}, r"up to step 8 is 'none' there, \[\] here"),
        ({"steps": 8}, r"train.steps is 8 here: it must be more than the 8 steps already done"),
    ],
)
def test_what_is_not_the_beginning_of_this_run_is_refused(begun, run_training, settings, output):
    root, named = begun
    before = sorted(root.glob("train/*"))
    with pytest.raises(ConfigError, match=rf"continue_from = '{named}'.*\n(.*\n)*.*{output}"):
        run_training(root, continue_from=named, **{**DECAYS, **settings})
    assert sorted(root.glob("train/*")) == before


MODEL = ModelConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
                    num_key_value_heads=1, max_position_embeddings=8)  # fmt: skip
WEIGHTS = st.sampled_from([{"web": 1.0}, {"web": 1.0, "books": 2.0}])


def entries(draw, after: int, last: int = 7):
    """A ramp, a last batch size and a mixture whose entries are after step `after`."""
    ends, begins = (sorted(draw(st.sets(st.integers(after + 1, last), max_size=2))) for _ in range(2))
    size = st.integers(2, 3)
    ramp = [RampConfig(until_step=end, global_batch_size=draw(size)) for end in ends]
    return ramp, draw(size), [MixtureConfig(from_step=begin, weights=draw(WEIGHTS)) for begin in begins]


def train_of(ramp, size, mixture) -> TrainConfig:
    return TrainConfig(
        sequence_length=8, global_batch_size=size, batch_size_ramp=tuple(ramp), mixture=tuple(mixture), steps=9
    )


@st.composite
def pairs(draw):
    """Two trainings, a step, and whether the second was made as a branch of the first from there on."""
    step = draw(st.integers(1, 6))
    one = train_of(*entries(draw, 0))
    if not draw(st.booleans()):
        return one, train_of(*entries(draw, 0)), step, False
    ramp, size, mixture = entries(draw, step)
    kept = [stage for stage in one.batch_size_ramp if stage.until_step < step]
    kept.append(RampConfig(until_step=step, global_batch_size=batch_sizes(one).of(step)))
    begun = [phase for phase in one.mixture if phase.from_step <= step]
    return one, train_of([*kept, *ramp], size, [*begun, *mixture] if begun else one.mixture), step, True


@given(pairs())
def test_a_branch_is_let_through_and_what_is_let_through_reads_the_same_rows_up_to_there(pair):
    one, other, step, branch = pair
    sources = sources_of(("books", "web"), np.array([0, 0, 1, 1, 1, 0, 1]))

    def beginning(train):
        return _beginning(TrainRecipe(model=MODEL, optim=OptimConfig(learning_rate=1.0), train=train), "d", step)

    def rows(train):
        sizes = batch_sizes(train)
        order = RowSampler(7, train.seed, sizes, mix(train, sources, sizes) if train.mixture else None)
        return [order.rows(now) for now in range(1, step + 1)], sizes.before(step + 1)

    same = beginning(one) == beginning(other)
    assert same or not branch
    if same:
        assert rows(one) == rows(other)


def test_another_corpus_is_refused(begun, tmp_path, run_training, make_tokens):
    root, named = begun
    made = make_tokens(tmp_path / "other", documents=40)
    with pytest.raises(ConfigError, match=rf"token shards is '[0-9a-f]{{64}}' there, '{made.digest}' here"):
        run_training(tmp_path / "other", continue_from=str(root / named), **DECAYS)


def test_a_torn_one_is_refused_before_anything_is_loaded(begun, run_training):
    root, named = begun
    [path] = (root / named / "moments").iterdir()
    flip(path, -3)
    with pytest.raises(CheckpointError, match=rf"(?s){named}, which train.continue_from names.*moments/00000"):
        run_training(root, continue_from=named, **DECAYS)
    (root / named / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        run_training(root, continue_from=named, **DECAYS)


def test_what_is_no_checkpoint_is_refused(begun, stable, tmp_path, run_training):
    root, named = begun
    with pytest.raises(
        MissingInput, match=r"continue_from = 'nowhere'.*is not a checkpoint.*or checkpoint/<key> of this root"
    ):
        run_training(root, continue_from="nowhere", **DECAYS)
    with pytest.raises(CheckpointError, match="stage 'train', not a checkpoint"):
        run_training(root, continue_from=stable[1].folder, **DECAYS)
    shutil.copytree(root / named, tmp_path / "mine")
    with pytest.raises(CheckpointError, match=f"rename its folder, or the copy, to <some folder>/{named}"):
        run_training(root, continue_from=str(tmp_path / "mine"), **DECAYS)


def test_batch_size_and_mixture_of_later_steps_may_change(tmp_path, run_training, losses_of):
    """A branch in the mixture: other weights from step 9 on, and larger batches."""
    later = {
        "mixture": (*MIXTURE, MixtureConfig(from_step=9, weights={"web": 1.0, "books": 4.0})),
        "batch_size_ramp": (RampConfig(until_step=8, global_batch_size=8),),
        "global_batch_size": 16,
        **DECAYS,
    }
    parent = run_training(tmp_path / "a", mixture=MIXTURE, **STABLE)
    named = checkpoints_of(tmp_path / "a")[parent.key, 8]
    child = run_training(tmp_path / "a", continue_from=named, **later)
    whole = run_training(tmp_path / "b", **later)
    assert losses_of(child, tmp_path / "a") == losses_of(whole, tmp_path / "b")
    assert child.stats["stream_sha256"] == whole.stats["stream_sha256"]
    assert [phase["from_step"] for phase in child.stats["mixture"]] == [1, 9]
    lines = read_lines(tmp_path / "a" / child.folder / "metrics.jsonl")
    assert [(line["step"], line["weights"]) for line in lines if line["event"] == "mixture"] == [
        (9, {"books": 0.8, "web": 0.2})
    ]


def test_lineage_names_the_parent(continued, capsys):
    root, _, named, child = continued
    graph = read_graph(root)
    node = graph.find(child)
    assert named in {Path(item.path).parent.as_posix() for _, item in graph.ancestors(node)}
    own = [read_manifest(root / folder / "manifest.json") for (key, _), folder in checkpoints_of(root).items()
           if key == child.key]  # fmt: skip
    assert sorted(identity_of(item).step for item in own) == [10, 12]
    for made in own:
        assert [item.path for item in made.inputs][1:] == [f"{named}/manifest.json"]
    assert main(["governance", "trace", str(root / child.folder)]) == 0
    assert f"{named}/manifest.json" in capsys.readouterr().out
    assert main(["governance", "verify", str(root)]) == 0


def test_a_document_that_only_the_parent_saw_names_the_child(continued, make_tokens):
    root, _, named, child = continued
    tokens = make_tokens(root)
    rows = open_rows(tokens, "train", root, 32)
    order = sampler_of(rows, identity_of(read_manifest(root / named / "manifest.json")).recipe.train)

    def seen(steps):
        return set(rows.documents_of([row for step in steps for row in order.rows(step)]))

    only = seen(range(1, 9)) - seen(range(9, 13))
    names = {document_identity(name).hex(): name for name in (f"train{s}{n}" for s in (0, 1) for n in range(30))}
    name = names[min(only)]
    found = impact(name, [root])
    below = {node.path for _, node in found.children}
    assert child.path in below
    saw = {item.checkpoint.config["train_key"]: item for item in found.checkpoints if item.times}
    assert child.key in saw
    assert saw[child.key].first_step <= 8


def test_another_root_names_the_child_too(continued, tmp_path, run_training):
    root, _, named, _ = continued
    child = run_training(tmp_path, continue_from=str(root / named), **DECAYS)
    found = impact("train00", [root, tmp_path])
    assert (tmp_path, child.path) in {(place, node.path) for place, node in found.children}


def test_energy_counts_the_tokens_of_the_line_once(continued):
    root, parent, _, child = continued
    for known in ([child], [read_manifest(root / child.stats["checkpoint"]["path"]), child]):
        trainings, _ = read_trainings(known, root)
        mine, theirs = trainings[child.folder], trainings[parent.folder]
        assert mine.starts == (ParentModel(parent.folder, 8),)
        assert mine.before == theirs.used[8] == child.stats["continued"]["tokens"]
        assert mine.used[12] == child.stats["tokens"]
        held = 10 * child.stats["tokens"]
        mine, theirs = (type(one)(one.data, held, one.used, before=one.before) for one in (mine, theirs))
        assert theirs.share(8, "by tokens used") + mine.share(12, "by tokens used") == Fraction(1, 10)


def test_the_parent_is_kept_while_a_checkpoint_of_the_child_names_it(continued, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("assay"), "propagate", True)  # a command of this process may have ended it
    caplog.set_level(logging.INFO, "assay")
    root, parent, named, child = continued
    root = shutil.copytree(root, tmp_path / "root")
    (root / child.path).unlink()  # it is not finished
    manifest = read_manifest(root / named / "manifest.json")
    identity = identity_of(manifest)
    store = CheckpointStore(root, parent.key, identity.vocabulary_size, identity.recipe, manifest.inputs[:1])
    assert store.folder(8) == root / named
    remove_old(store, CheckpointConfig(keep_last=1), 20, [])
    assert {step for key, step in checkpoints_of(root) if key == parent.key} == {8, 20}
    assert "checkpoint of step 8 is kept: checkpoint/" in caplog.text


def test_a_path_starts_at_the_file_of_the_run(project):
    words = ["train.continue_from='before/checkpoint/0123456789abcdef'"]
    run = load_run(project / "run.toml", words)
    assert pinned(run).train.continue_from == "before/checkpoint/0123456789abcdef"  # of the root, or of no directory
    (project / "before" / "checkpoint" / "0123456789abcdef").mkdir(parents=True)
    assert pinned(run).train.continue_from == str(project / "before" / "checkpoint" / "0123456789abcdef")
    run = load_run(project / "run.toml", ["train.initial_weights='llama'"])
    assert pinned(run).train.initial_weights == str(project / "llama")  # never of the root, though it is missing
    run = load_run(project / "run.toml", ["train.initial_weights='~/llama'"])
    assert pinned(run).train.initial_weights == os.path.expanduser("~/llama")


@pytest.mark.slow
def test_other_ranks_and_another_stage_go_on_with_the_same_losses(begun, continued, run_training, losses_of):
    root, named = begun
    settings = {"continue_from": named, **DECAYS}
    well, output = run_ranks(root.with_suffix(".ranks"), ["-c", script(root, zero_stage=3, **settings)], 2)
    assert well, output[-6000:]
    assert "resuming from the checkpoint of step 8 (canonical form)" in output
    found = losses_of(run_training(root, make=False, **settings), root)
    assert found == pytest.approx(losses_of(continued[3], continued[0]), rel=1e-5)
