"""Files outside the root count by the digest in the key: a change after it was taken makes no artifact."""

import json

import pytest

from data_pipeline.code.select_code import CodeConfig, select_code
from data_pipeline.decontamination.evaluation_sets import EvaluationSet, evaluation_sets
from data_pipeline.filters.blocklists import BlocklistsConfig, make_lists
from data_pipeline.filters.classifier import ClassifierConfig, train_classifier
from data_pipeline.synthetic.synthesize import list_answers, plan
from data_pipeline.tokens import tokenizer
from data_pipeline.tokens.encode import EncodeConfig, encode
from data_pipeline.tokens.labels import ClassificationConfig, split_documents
from data_pipeline.tokens.megatron import MegatronConfig, export_megatron, import_megatron, open_indexed
from data_pipeline.tokens.mix import mix
from data_pipeline.tokens.tokenizer import TokenizerConfig, train_tokenizer
from governance import file_digests
from governance.errors import AlteredFile, MissingInput
from governance.file_digests import Digests
from governance.files import sha256_file
from governance.parallel import once
from governance.stage import Runtime
from tests.altered_files import flip
from tests.data_pipeline.test_classifier import labels_file
from tests.data_pipeline.test_labels import LABELS, documents, notes
from tests.data_pipeline.test_megatron import END, encoded
from tests.data_pipeline.test_mix import CONFIG, corpus, rows
from tests.data_pipeline.test_synthetic import NEWS, SEEDS, source


def lists(folder, runtime):
    return make_lists(BlocklistsConfig(domains=("file",)), folder, runtime)


def code(folder, runtime):
    return select_code(corpus(runtime.root, [rows(3)]), CodeConfig(opt_out=("file",)), (), runtime, folder)


def items(folder, runtime):
    return evaluation_sets([EvaluationSet(name="s", paths=("file",), fields=("question",))], folder, runtime)


def classifier(folder, runtime):
    labels_file(folder / "file")
    return train_classifier(ClassifierConfig(name="rude", paths=("file",), buckets=1 << 14), folder, runtime)


def answers(folder, runtime):
    (folder / "retell.txt").write_text("Retell:\n{{text}}")
    digests = Digests(runtime)
    seeds = NEWS.model_copy(update={"paths": ("file",)})
    return list_answers(plan(source(), (seeds,), folder, digests, runtime), digests, runtime)


ROWS = json.dumps({"text": SEEDS[0], "question": "Why?"}) + "\n"


@pytest.mark.parametrize(
    ("stage", "content", "more"),
    [
        (lists, "a.example\n", "b.example\n"),
        (code, "owner\n", "other\n"),
        (items, ROWS, ROWS),
        (classifier, "", json.dumps({"text": "a", "label": True}) + "\n"),
        (answers, ROWS, json.dumps({"text": SEEDS[1]}) + "\n"),
    ],
)
def test_a_file_that_changed_after_its_digest_was_taken_makes_nothing(tmp_path, monkeypatch, stage, content, more):
    (tmp_path / "file").write_text(content)

    def then_written(path):
        digest = sha256_file(path)
        with path.open("a") as file:
            file.write(more)
        return digest

    with monkeypatch.context() as patch:
        taken = iter([then_written])
        patch.setattr(file_digests, "sha256_file", lambda path: next(taken, sha256_file)(path))
        with pytest.raises(MissingInput, match=f"{tmp_path / 'file'} was changed while it was read"):
            stage(tmp_path, Runtime(tmp_path / "root"))
    assert not [*(tmp_path / "root").glob("*/*/manifest.json")][stage is code :]


def test_sizes_that_were_altered_decide_no_mixture(tmp_path, monkeypatch):
    def altered(*arguments):
        flip(next(tmp_path.glob("mix/*/sizes/*.parquet")))
        return once(*arguments)

    monkeypatch.setattr("data_pipeline.tokens.mix.once", altered)
    with pytest.raises(AlteredFile, match="sizes/"):
        mix(corpus(tmp_path, [rows(120)]), CONFIG, Runtime(tmp_path))
    assert not [*tmp_path.glob("mix/records/*bucket_rules*")]


def test_documents_that_were_altered_and_put_back_give_no_labels(tmp_path, monkeypatch):
    labelled = documents(tmp_path, notes(20))
    [path, _] = labelled.files("documents", tmp_path)
    tokens = train_tokenizer(labelled, TokenizerConfig(vocabulary_size=300), Runtime(tmp_path))

    def altered(*arguments):
        data = path.read_bytes()
        path.write_bytes(labelled.files("documents", tmp_path)[1].read_bytes())
        found = split_documents(*arguments)
        path.write_bytes(data)
        return found

    monkeypatch.setattr("data_pipeline.tokens.encode.split_documents", altered)
    config = EncodeConfig(validation_share=0.0, classification=ClassificationConfig(labels=LABELS))
    with pytest.raises(AlteredFile, match=f"{path.name}: was changed while it was read"):
        encode(labelled, tokens, config, Runtime(tmp_path))


def test_tokens_that_changed_after_their_digest_was_taken_are_not_imported(tmp_path, monkeypatch):
    """A signed record of the shard would have kept them, under the digest of the others."""
    export_megatron(encoded(tmp_path, [[[1, 2]]], 100), "train", tmp_path / "x", tmp_path)

    def altered(prefix):
        (tmp_path / "x.bin").write_bytes(bytes(6))
        return open_indexed(prefix)

    monkeypatch.setattr("data_pipeline.tokens.megatron.open_indexed", altered)
    config = MegatronConfig(vocabulary_size=1 << 16, end_of_document=END)
    with pytest.raises(MissingInput, match=r"x\.bin was changed while it was read"):
        import_megatron(tmp_path / "x", config, Runtime(tmp_path / "root"))
    assert not [*tmp_path.glob("root/megatron/records/*.json")]


def test_a_tokenizer_that_changed_while_it_was_read_is_not_taken_over(tmp_path, monkeypatch):
    words = corpus(tmp_path, [rows(3)])
    made = train_tokenizer(words, TokenizerConfig(vocabulary_size=300), Runtime(tmp_path))
    path = tmp_path / "given.json"
    path.write_bytes((tmp_path / made.folder / "tokenizer.json").read_bytes())
    read = tokenizer.take_over

    def then_written(path, config):
        found = read(path, config)
        path.write_text(path.read_text() + " ")
        return found

    monkeypatch.setattr(tokenizer, "take_over", then_written)
    with pytest.raises(MissingInput, match=f"{path} was changed while it was read"):
        train_tokenizer(words, TokenizerConfig(path="given.json"), Runtime(tmp_path), tmp_path)
