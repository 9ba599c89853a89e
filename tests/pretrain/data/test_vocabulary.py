"""Another tokenizer of the same size is refused everywhere, because its ids mean other texts."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from assay.cli.main import main
from assay.config import load_run
from assay.pipeline import corpus
from data_pipeline.tokens.pack import PackConfig, pack
from governance.errors import CheckpointError, ManifestError
from governance.manifest import Input, Manifest, read_manifest, write_manifest
from governance.stage import Runtime
from pretrain.checkpoint.format import identity_of
from pretrain.config.model import ModelConfig
from pretrain.config.optim import OptimConfig
from pretrain.config.training import CheckpointConfig, EngineConfig, Settings, TrackingConfig, TrainConfig, TrainRecipe
from pretrain.data.dataset import open_rows
from pretrain.data.tokenizer_check import refuse_foreign_tokenizer, refuse_foreign_vocabulary, tokenizer_of
from pretrain.evaluation.model_bias import ModelAuditConfig, audit_model
from pretrain.evaluation.validation import evaluate, load_decoder
from pretrain.export.huggingface import export
from pretrain.initial_weights.start import initial_weights_of
from pretrain.train import train

SIZE, LENGTH = 300, 32
ENGINE = EngineConfig(micro_batch_size=4, threads=1)


def settings_of(name: str, *more: str) -> list[str]:
    """Overrides: the corpus of one file, and a tokenizer of `SIZE`."""
    source = f'data.sources=[{{type="jsonl",name="tales",licence="CC0-1.0",paths=["{name}.jsonl"]}}]'
    return [source, f"data.tokenizer.vocabulary_size={SIZE}", "data.encode.validation_share=0.3", *more]


def prepared(root: Path, folder: Path, name: str, *more: str) -> SimpleNamespace:
    """The artifacts that determine the meaning of its ids."""
    made = corpus(load_run(folder / "run.toml", settings_of(name, *more)), Runtime(root))
    return SimpleNamespace(tokenizer=made["tokenizer"], tokens=made["encode"])


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two corpora of one root whose tokenizers have one size, and a checkpoint of the first, by way of packed rows."""
    from tests.conftest import write_run, write_tales

    folder = tmp_path_factory.mktemp("two")
    root = folder / "root"
    write_run(folder)
    (folder / "policy.toml").write_bytes((Path(__file__).parents[3] / "configs" / "policy.toml").read_bytes())
    write_tales(folder / "ours.jsonl", range(30))
    write_tales(folder / "theirs.jsonl", range(30, 60))
    ours, theirs = (prepared(root, folder, name) for name in ("ours", "theirs"))
    packed = pack(ours.tokens, PackConfig(sequence_length=LENGTH), Runtime(root))
    recipe = TrainRecipe(
        model=ModelConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
            max_position_embeddings=LENGTH,
        ),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=0, decay_steps=0),
        train=TrainConfig(sequence_length=LENGTH, global_batch_size=4, steps=1, precision="fp32"),
    )  # fmt: skip
    settings = Settings(CheckpointConfig(), ENGINE, TrackingConfig(mode="disabled"))
    run = train(packed, recipe, settings, Runtime(root))
    checkpoint = read_manifest(root / run.stats["checkpoint"]["path"])
    longer = recipe.train.model_copy(update={"steps": 2, "continue_from": checkpoint.folder})
    child = train(packed, recipe.model_copy(update={"train": longer}), settings, Runtime(root))
    return SimpleNamespace(
        folder=folder, root=root, ours=ours, theirs=theirs, packed=packed, checkpoint=checkpoint,
        place=root / checkpoint.folder, child=read_manifest(root / child.stats["checkpoint"]["path"]),
    )  # fmt: skip


def measured_on(two, tokens: Manifest, root: Path | None = None):
    return evaluate(two.place, tokens, ENGINE, root or two.root)[0]


def leanings(two, tokenizer: Manifest, root: Path | None = None) -> Manifest:
    runtime = Runtime(root or two.root)
    scorer = lambda: lambda texts: [SimpleNamespace(nats=0.0, mean=0.0) for _ in texts]  # noqa: E731
    return audit_model(two.checkpoint, tokenizer, scorer, ModelAuditConfig(), two.folder, runtime)


def warned(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_chain_ends_at_the_tokenizer_that_was_trained_with(two):
    ours = two.ours.tokenizer.as_input()
    assert two.ours.tokenizer.stats["vocabulary_size"] == two.theirs.tokenizer.stats["vocabulary_size"] == SIZE
    assert ours != two.theirs.tokenizer.as_input()
    for artifact in (two.checkpoint, two.child, two.packed, two.ours.tokens, two.ours.tokenizer):
        assert tokenizer_of(artifact, two.root) == ours
    assert tokenizer_of(two.theirs.tokens, two.root) == two.theirs.tokenizer.as_input()


def test_another_tokenizer_of_the_same_size_is_refused_by_all_that_use_one(two, tmp_path):
    wrong = f"trained with the tokenizer of digest {two.ours.tokenizer.digest[:16]}.*{two.theirs.tokenizer.digest[:16]}"
    for use in (
        lambda: measured_on(two, two.theirs.tokens),
        lambda: export(two.place, two.theirs.tokenizer, tmp_path / "out", two.root),
        lambda: leanings(two, two.theirs.tokenizer),
    ):
        with pytest.raises(CheckpointError, match=wrong):
            use()
    assert not (tmp_path / "out").exists()
    inputs = [read_manifest(path).inputs for path in two.root.glob("model_audit/*/manifest.json")]
    assert two.theirs.tokenizer.as_input() not in {item for made in inputs for item in made}


def test_so_do_the_commands(two, tmp_path, capsys):
    place = str(two.place)
    loaded = load_run(two.folder / "run.toml", settings_of("ours"))
    journal = loaded.journal(two.root)
    for path in sorted(two.root.glob("*/*/manifest.json")):
        journal.state_artifact(read_manifest(path))  # evaluate and export require it
    config = [str(two.folder / "run.toml"), "--root", str(two.root)]
    words = [["evaluate", place], ["export", place, str(tmp_path / "out")], ["governance", "audit-model", place],
             ["governance", "audit-memorisation", place]]  # fmt: skip
    for name, statuses in (("theirs", (65, 65, 65, 65)), ("ours", (0, 0))):
        given = [word for setting in settings_of(name) for word in ("--set", setting)]
        for command, status in zip(words, statuses, strict=False):
            assert main([*command, *config, *given, "--set", 'engine.device="cpu"']) == status
            assert ("trained with the tokenizer of digest" in capsys.readouterr().err) == (status == 65)
    assert not (two.root / "bias").exists()  # nothing was counted first


def test_its_own_tokenizer_is_taken_without_a_word(two, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert measured_on(two, two.packed).rows > 0
        assert measured_on(two, two.ours.tokens).rows > 0
        export(two.place, two.ours.tokenizer, tmp_path / "out", two.root)
        leanings(two, two.ours.tokenizer)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == the_file(two, two.ours).read_bytes()
    assert not [messages for messages in warned(caplog) if "tokenizer" in messages]


def the_file(two, corpus: SimpleNamespace) -> Path:
    return two.root / corpus.tokenizer.folder / "tokenizer.json"


def test_one_file_taken_over_for_two_corpora_is_one_tokenizer(two, caplog):
    other = prepared(two.root, two.folder, "theirs", f'data.tokenizer.path="{the_file(two, two.ours)}"')
    assert other.tokenizer.digest != two.ours.tokenizer.digest
    refuse_foreign_tokenizer(two.checkpoint, other.tokenizer, two.root)
    assert measured_on(two, other.tokens).rows > 0
    assert not warned(caplog)
    for key, name in (("7" * 64, "end_of_document"), ("8" * 64, "begin_of_document")):
        update = {"key": key, "stats": {**two.ours.tokenizer.stats, name: 7}}
        unlike = two.ours.tokenizer.model_copy(update=update)
        write_manifest(unlike, two.root)
        with pytest.raises(CheckpointError, match="other texts"):  # the same file; another id ends or begins a document
            refuse_foreign_tokenizer(two.checkpoint, unlike, two.root)


def test_a_checkpoint_that_was_copied_alone_is_used_with_a_warning(two, tmp_path, caplog):
    """The other root has one of the tokenizers, but none of the checkpoint's inputs."""
    for manifest in (two.checkpoint, two.theirs.tokenizer, two.theirs.tokens):
        shutil.copytree(two.root / manifest.folder, tmp_path / manifest.folder)
    with caplog.at_level(logging.WARNING):
        for use in (
            lambda: evaluate(tmp_path / two.checkpoint.folder, two.theirs.tokens, ENGINE, tmp_path),
            lambda: export(tmp_path / two.checkpoint.folder, two.theirs.tokenizer, tmp_path / "out", tmp_path),
            lambda: leanings(two, two.theirs.tokenizer, tmp_path),
        ):
            caplog.clear()
            use()
            [messages] = warned(caplog)
            assert "cannot verify" in messages
            assert str(tmp_path / two.packed.path) in messages  # missing artifacts
    small = two.theirs.tokenizer.model_copy(update={"stats": {**two.theirs.tokenizer.stats, "vocabulary_size": 299}})
    write_manifest(small, tmp_path)
    with pytest.raises(
        CheckpointError, match=r"a vocabulary of 300 tokens, .* has 299"
    ):  # a size can still be compared
        refuse_foreign_tokenizer(two.checkpoint, small, tmp_path)


def test_a_chain_is_believed_only_as_far_as_its_digests_fit(two, tmp_path, caplog):
    shutil.copytree(two.root, tmp_path / "root")
    root, trained = tmp_path / "root", two.ours.tokenizer
    shutil.rmtree(root / trained.folder)  # its digest remains in the shards that it encoded
    refuse_foreign_tokenizer(two.checkpoint, two.packed, root)
    assert not warned(caplog)
    with pytest.raises(CheckpointError, match=f"restore {trained.path}"):
        refuse_foreign_tokenizer(two.checkpoint, two.theirs.tokenizer, root)
    another = two.packed.model_copy(update={"inputs": (two.theirs.tokens.as_input(),)})
    write_manifest(another, root)  # in place of those that it learned from
    refuse_foreign_tokenizer(two.checkpoint, two.theirs.tokenizer, root)
    assert "cannot verify" in caplog.text


def test_exported_weights_start_a_run_on_shards_of_their_tokenizer_only(two, tmp_path):
    export(two.place, two.ours.tokenizer, tmp_path / "exported", two.root)
    recipe = identity_of(two.checkpoint).recipe
    train = recipe.train.model_copy(update={"initial_weights": str(tmp_path / "exported"), "continue_from": ""})
    recipe = recipe.model_copy(update={"train": train})
    weights = initial_weights_of(recipe, two.packed, Runtime(two.root))
    weights.check(SIZE)
    trained = load_decoder(two.checkpoint, two.root)
    for name, parameter in trained.named_parameters():
        assert torch.equal(weights.weight(name, parameter.shape), parameter.detach())
    with pytest.raises(CheckpointError, match="another tokenizer than that of the token shards"):
        initial_weights_of(recipe, two.theirs.tokens, Runtime(two.root))


def test_a_tokenizer_that_was_altered_is_not_used(two, tmp_path):
    shutil.copytree(two.root, tmp_path / "root")
    path = tmp_path / "root" / two.ours.tokenizer.folder / "tokenizer.json"
    path.write_bytes(the_file(two, two.theirs).read_bytes())
    for given in (two.ours.tokenizer, two.ours.tokens, two.packed):
        with pytest.raises(ManifestError, match=r"tokenizer\.json: has"):
            refuse_foreign_tokenizer(two.checkpoint, given, tmp_path / "root")


def test_a_tokenizer_that_did_not_make_the_shards_is_reported(tmp_path, make_tokens):
    tokens = make_tokens(tmp_path)
    rows = open_rows(tokens, "train", tmp_path, 32)
    refuse_foreign_vocabulary(tokens, rows, tmp_path)
    with pytest.raises(ManifestError, match=r"shards have vocabulary_size 200, encode/e+ says 300"):
        refuse_foreign_vocabulary(tokens.model_copy(update={"stats": {"vocabulary_size": 300}}), rows, tmp_path)
    tokenizer = tokens.model_copy(
        update={"stage": "tokenizer", "outputs": (), "stats": {"vocabulary_size": 200, "end_of_document": 1}}
    )
    write_manifest(tokenizer, tmp_path)
    made = tokens.model_copy(update={"inputs": (tokenizer.as_input(),)})
    with pytest.raises(ManifestError, match=r"have end_of_document 0, tokenizer/e+ says 1: .*assay data prepare"):
        refuse_foreign_vocabulary(made, rows, tmp_path)
    other = tokens.model_copy(update={"inputs": (Input(stage="tokenizer", digest="0" * 64, path=tokenizer.path),)})
    with pytest.raises(ManifestError, match="encoded by the tokenizer of digest 0000000000000000"):
        refuse_foreign_vocabulary(other, rows, tmp_path)
