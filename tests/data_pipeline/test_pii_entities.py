"""Names and places by a model: its findings in the stage, windows, faults of its folder.

The token classifier is made here: it has no layers, and the label of a token follows from the token alone. So its
decisions are known, and no model is fetched.
"""

import itertools
import json
import shutil
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.documents import read_table
from data_pipeline.pii.detections import Detection
from data_pipeline.pii.draws import Draw
from data_pipeline.pii.entities.entity_canaries import ENTITY_MAKERS
from data_pipeline.pii.entities.entity_finder import finder_files, merged, open_finder, windows_of
from data_pipeline.pii.entities.finder_settings import FinderConfig
from data_pipeline.pii.other_finders import OtherFinders, find_others
from data_pipeline.pii.redact import PiiConfig, redact
from governance.config import validate
from governance.errors import AlteredFile, ConfigError, ManifestError, MissingInput, PipelineError
from governance.stage import Runtime
from tests.data_pipeline.test_pii import artifact

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", reason="transformers, which runs such models, is not installed")

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "B-MISC"]
MODELLED = {"Ines": 1, "Okafor": 2, "Lisbon": 3, "Acme": 4}
EVERY = {word: 1 + (number > 0) for seed in range(400) for number, word in
         enumerate(ENTITY_MAKERS["name"](Draw(seed)).split())}  # fmt: skip
EVERY |= {ENTITY_MAKERS["place"](Draw(seed)): 3 for seed in range(400)} | MODELLED


def make_model(folder, words, labels=LABELS):
    """A token classifier that gives each of these words its label and all others the first."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=64,
    ).save_pretrained(folder)  # fmt: skip
    size = 8
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=size, num_hidden_layers=0, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=64, id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )  # fmt: skip
    model = BertForTokenClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.bert.embeddings.LayerNorm.weight.fill_(1)
        for word, number in vocabulary.items():
            model.bert.embeddings.word_embeddings.weight[number, words.get(word, 0)] = 1
        for label in range(len(labels)):
            model.classifier.weight[label, label] = 10
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "ner"
    make_model(folder, EVERY)
    return folder


def found(text, folder, **settings):
    finder = open_finder(FinderConfig(path=str(folder), **settings), folder)
    return [(text[mark.start : mark.end], mark.type) for mark in finder([text])[0]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yesterday Ines Okafor came to Lisbon.", [("Ines Okafor", "name"), ("Lisbon", "place")]),
        ("Ines-Okafor, Lisbon", [("Ines-Okafor", "name"), ("Lisbon", "place")]),
        ("中文 Ines é", [("Ines", "name")]),
        ("Ines and Okafor", [("Ines", "name"), ("Okafor", "name")]),
        ("Acme sells nothing", []),
        ("", []),
        ("   \n", []),
        ("word " * 3000 + "Ines Okafor " + "word " * 3000, [("Ines Okafor", "name")]),
        ("x" * 5000 + " Lisbon", [("Lisbon", "place")]),
    ],
)
def test_what_the_model_names_is_found_whole(model, text, expected):
    assert found(text, model) == expected


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["Ines", "Okafor", "Lisbon", "word", "中文", "a.", "\n", "x" * 300]), max_size=400))
def test_a_long_text_is_read_like_its_words(model, words):
    """The model's decision about a word depends on the word alone, so windows may neither lose nor double one."""
    text = " ".join(words)
    finder = open_finder(FinderConfig(path=str(model)), model)
    covered = "".join(text[mark.start : mark.end] + " " for mark in finder([text])[0]).split()
    assert covered == [word for word in words if word in MODELLED]


@settings(max_examples=200)
@given(st.text(alphabet="ab \n中", max_size=30), st.integers(0, 200))
def test_windows_cover_the_text(piece, times):
    text = piece * times
    spans = list(windows_of(text))
    assert [spans[0][0], spans[-1][1]] == [0, len(text)] if text else spans == []
    assert all(first[0] < second[0] <= first[1] < second[1] for first, second in itertools.pairwise(spans))
    assert all(end - start <= 1000 for start, end in spans)


def test_marks_grow_to_words_and_join():
    text = "Ines O'Kafor, Lisbon"
    marks = [Detection(1, 3, "name"), Detection(5, 6, "name"), Detection(7, 9, "name"), Detection(15, 16, "place")]
    assert merged(text, marks) == [Detection(0, 12, "name"), Detection(14, 20, "place")]


STAGE_TEXTS = [["Ines Okafor wrote to jane@example.org from Lisbon.", "plain"], ["Lisbon"], []]


def test_the_stage_replaces_names_and_measures_its_recall(tmp_path, model):
    config = PiiConfig(finder=FinderConfig(path=str(model)), actions={"place": "mask"})
    made = redact(artifact(tmp_path, STAGE_TEXTS), config, Runtime(tmp_path))
    kept = [text for path in made.files("documents", tmp_path) for text in read_table(path)["text"].to_pylist()]
    assert kept == ["[NAME] wrote to [EMAIL] from ******.", "plain", "******"]
    findings = {kind: count for kind, count in made.stats["findings"].items() if count}
    assert findings == {"name": 1, "place": 2, "email": 1}
    assert made.stats["canaries"]["name"] == made.stats["canaries"]["place"] == {"planted": 2, "found": 2}


@pytest.mark.slow
def test_workers_do_not_change_a_byte(tmp_path, model):
    rules = tmp_path / "rules.toml"
    rules.write_text("[[rules]]\nid = 'plain'\nregex = 'pl(ai)n'\nkeywords = ['plain']")
    config = PiiConfig(finder=FinderConfig(path=str(model)), credential_rules="rules.toml")
    digests = {
        redact(artifact(root, STAGE_TEXTS), config, Runtime(root, workers=workers), tmp_path).digest
        for workers, root in ((1, tmp_path / "1"), (2, tmp_path / "2"))
    }
    assert len(digests) == 1


def test_a_model_that_changes_during_the_run_is_refused(tmp_path, model):
    copy = tmp_path / "ner"
    shutil.copytree(model, copy)
    finders = OtherFinders(entities=FinderConfig(path="ner"), model=copy, model_files=(("config.json", "0" * 64),))
    with pytest.raises(AlteredFile, match=r"config\.json changed during the run"):
        find_others(["Ines"], finders)


def test_a_model_that_knows_no_name_has_recall_nought_and_another_key(tmp_path, model):
    blind = tmp_path / "blind"
    make_model(blind, {"Nobody": 1})
    documents = artifact(tmp_path, [["Ines Okafor"]])
    made = redact(documents, PiiConfig(finder=FinderConfig(path=str(blind))), Runtime(tmp_path))
    assert made.stats["canaries"]["name"] == {"planted": 1, "found": 0}
    with pytest.raises(MissingInput, match="redact"):
        redact(documents, PiiConfig(finder=FinderConfig(path=str(model))), Runtime(tmp_path, make=False))


def test_labels_state_what_they_mean(tmp_path, model):
    odd = tmp_path / "odd"
    make_model(odd, MODELLED, ["O", "B-Mensch", "I-Mensch", "B-Ort", "B-MISC"])
    with pytest.raises(ConfigError, match=r"the model's labels are .*'Mensch'.*none is known to mean"):
        found("Ines", odd)
    assert found("Ines Lisbon", odd, labels={"Mensch": "name", "Ort": "place"}) == [
        ("Ines", "name"),
        ("Lisbon", "place"),
    ]
    with pytest.raises(ConfigError, match=r"labels names \['Person'\], but the model's labels are"):
        found("Ines", odd, labels={"Person": "name"})
    assert found("Ines Lisbon", model, labels={"LOC": "place"}) == [("Lisbon", "place")]
    assert found("Ines", model, min_score=1.0) == []


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "has no config.json"), ("model.safetensors", "no weights as safetensors"),
        ("tokenizer.json", "has no tokenizer.json"), ("tokenizer_config.json", "has no tokenizer_config.json"),
    ],
)  # fmt: skip
def test_a_folder_with_missing_files_is_refused(tmp_path, model, missing, message):
    folder = tmp_path / "ner"
    shutil.copytree(model, folder)
    (folder / missing).unlink()
    with pytest.raises(MissingInput, match=message):
        finder_files(FinderConfig(path="ner"), tmp_path)
    with pytest.raises(MissingInput, match="no such folder"):
        finder_files(FinderConfig(path="none"), tmp_path)


def test_damaged_and_untrained_weights_are_refused(tmp_path, model):
    from safetensors.torch import load_file, save_file

    for name, change, error, message in (
        ("nan", lambda weights: weights["classifier.weight"].fill_(float("nan")), PipelineError, "is not a number"),
        ("headless", lambda weights: weights.pop("classifier.weight"), ManifestError, "no weights for"),
    ):
        folder = tmp_path / name
        shutil.copytree(model, folder)
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(error, match=message):
            found("Ines", folder)
    torn = tmp_path / "torn"
    shutil.copytree(model, torn)
    (torn / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:100])
    with pytest.raises(ManifestError, match="cannot load"):
        found("Ines", torn)
    (torn / "config.json").write_text(json.dumps({"model_type": "nothing-known"}))
    with pytest.raises(ManifestError, match="cannot load"):
        found("Lisbon", torn, min_score=0.4)


def test_names_need_a_finder_and_its_library(tmp_path, model, monkeypatch):
    with pytest.raises(ConfigError, match=r"'name' is found only by a model. Name one in \[data.pii.finder\]"):
        validate({"actions": {"name": "mask"}}, PiiConfig, "run.toml")
    values = {"finder": {"path": "ner", "labels": {"PER": "name"}}, "actions": {"name": "count"}, "types": ["email"]}
    assert validate(values, PiiConfig, "run.toml").plan() == {"email": "replace", "name": "count"}
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingInput, match="pip install transformers"):
        found("Ines", model, min_score=0.3)


def test_presidio_runs_a_pipeline_of_spacy(tmp_path):
    pytest.importorskip("presidio_analyzer", reason="presidio-analyzer is not installed")
    import spacy

    pipeline = spacy.blank("en")
    ruler = pipeline.add_pipe("entity_ruler")
    ruler.add_patterns(
        [{"label": "PERSON", "pattern": "Ines Okafor"}, {"label": "GPE", "pattern": "Lisbon"},
         {"label": "ORG", "pattern": "Acme"}]
    )  # fmt: skip
    folder = tmp_path / "pipeline"
    pipeline.to_disk(folder)
    text = "Yesterday Ines Okafor of Acme came to Lisbon; jane@example.org wrote."
    assert found(text, folder, kind="presidio") == [("Ines Okafor", "name"), ("Lisbon", "place")]
    with pytest.raises(ConfigError, match="none is known to mean"):
        found(text, folder, kind="presidio", labels={})
    (folder / "meta.json").unlink()
    with pytest.raises(MissingInput, match=r"has no meta\.json"):
        finder_files(FinderConfig(path="pipeline", kind="presidio"), tmp_path)


def test_presidio_needs_neither_tagger_nor_lemmas_of_a_trained_pipeline(tmp_path):
    pytest.importorskip("presidio_analyzer", reason="presidio-analyzer is not installed")
    import spacy
    from spacy.training import Example

    from data_pipeline.pii.entities import presidio

    pipeline = spacy.blank("en")
    shared = {"@architectures": "spacy.Tok2VecListener.v1", "width": 96}
    pipeline.add_pipe("tok2vec")
    pipeline.add_pipe("tagger", config={"model": {"tok2vec": shared}})
    pipeline.add_pipe("ner", config={"model": {"tok2vec": shared}})
    texts = {"Ines Okafor wrote .": "Ines Okafor", "The letter by Lars Rossi .": "Lars Rossi"}
    examples = [
        Example.from_dict(
            pipeline.make_doc(text),
            {
                "entities": [(text.index(name), text.index(name) + len(name), "PERSON")],
                "tags": ["X"] * len(text.split()),
            },
        )
        for text, name in texts.items()
    ]
    optimizer = pipeline.initialize(lambda: examples)
    for _ in range(30):
        pipeline.update(examples, sgd=optimizer)
    pipeline.to_disk(tmp_path / "pipeline")
    whole = {text: [(entity.text, "name") for entity in pipeline(text).ents] for text in texts}
    assert whole == {text: [(name, "name")] for text, name in texts.items()}
    assert {text: found(text, tmp_path / "pipeline", kind="presidio") for text in texts} == whole
    presidio._leave_out_what_finds_nothing(pipeline)
    assert pipeline.pipe_names == ["tok2vec", "ner"]
    pipeline.enable_pipe("tagger")
    pipeline.add_pipe("entity_ruler")
    presidio._leave_out_what_finds_nothing(pipeline)
    assert pipeline.pipe_names == ["tok2vec", "tagger", "ner", "entity_ruler"]


def test_a_score_that_presidio_never_gives_is_refused():
    with pytest.raises(ValueError, match="would drop every finding"):
        FinderConfig(path="x", kind="presidio", min_score=0.9)
