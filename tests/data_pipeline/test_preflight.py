"""Preflight: missing files of the run's file are reported before the first stage, in one message."""

import json

import pytest

from data_pipeline.config import DataConfig
from data_pipeline.dedup import join
from data_pipeline.prepare import stages
from governance.config import validate
from governance.errors import ConfigError, MissingInput, PipelineError
from governance.stage import Runtime
from tests.conftest import tale, write_tales

SOURCE = {"type": "jsonl", "name": "tales", "licence": "CC0-1.0", "paths": ["tales.jsonl"]}
SET = {"name": "quiz", "paths": ["quiz.jsonl"], "fields": ["question"]}

MISSING = {
    "a source": {"sources": [SOURCE, {**SOURCE, "name": "more", "paths": ["gone-a.jsonl", "gone-b.jsonl"]}]},
    "opt-out files": {"sources": [{**SOURCE, "type": "warc", "opt_out_paths": ["gone-a.jsonl"]}]},
    "a local data set": {"sources": [{"type": "hub", "name": "hub", "licence": "CC0-1.0", "dataset": "./gone-a"}]},
    "lists": {"lists": {"domains": ["gone-a.txt"], "words": {"en": ["gone-b.txt"]}}},
    "labelled files": {"classifiers": [{"name": "quality", "paths": ["gone-a.jsonl"]}]},
    "evaluation sets": {"decontaminate": {"sets": [{**SET, "paths": ["gone-a.jsonl"]}]}},
    "an earlier corpus": {"dedup": {"against": ["dedup/gone-a"]}},
    "a tokenizer": {"tokenizer": {"path": "gone-a.json"}},
}


@pytest.fixture
def folder(tmp_path):
    write_tales(tmp_path / "tales.jsonl", range(5))
    return tmp_path


def made(folder, values) -> list[str]:
    """Make all stages, and list them."""
    config = validate({"sources": [SOURCE], **values}, DataConfig, "run.toml")
    for _ in stages(config, folder, Runtime(folder / "made")):
        pass
    return sorted(path.parts[-3] for path in (folder / "made").glob("*/*/manifest.json"))


@pytest.mark.parametrize("what", MISSING)
def test_missing_files_are_reported_before_anything_is_made(folder, what):
    with pytest.raises(MissingInput) as output:
        made(folder, MISSING[what])
    assert "gone-a" in str(output.value)
    assert ("gone-b" in str(output.value)) == ("gone-b" in json.dumps(MISSING[what]))
    assert not (folder / "made").exists()


def test_all_missing_files_are_in_one_message(folder):
    values = {}
    for more in MISSING.values():
        values |= more
    with pytest.raises(MissingInput) as output:
        made(folder, values)
    lines = str(output.value).splitlines()
    assert lines[0] == "7 faults; nothing was made yet"
    assert len(lines) == 8


def test_an_engine_that_is_not_installed_is_reported_before_anything_is_made(folder, monkeypatch):
    monkeypatch.setattr(join.importlib.util, "find_spec", lambda name: None)
    config = validate({"sources": [SOURCE]}, DataConfig, "run.toml")
    with pytest.raises(MissingInput, match=r"pip install 'assay-pretrain\[ray\]'"):
        next(stages(config, folder, Runtime(folder / "made", engine="daft")))
    assert not (folder / "made").exists()


def test_one_fault_of_the_file_makes_the_whole_a_fault_of_the_file(folder):
    (folder / "short").write_bytes(b"12")
    values = {"pii": {"action": "pseudonymise", "key_file": "short"}}
    with pytest.raises(ConfigError, match=r"data.pii.key_file = 'short': has 2 bytes"):
        made(folder, values)
    with pytest.raises(ConfigError, match=r"3 faults(.|\n)*gone-a(.|\n)*has 2 bytes"):
        made(folder, {**values, **MISSING["lists"]})
    (folder / "t.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer.path = 't.json'"):
        made(folder, {"tokenizer": {"path": "t.json"}})
    assert not (folder / "made").exists()


@pytest.mark.parametrize(
    "values",
    [
        {"sources": [SOURCE, SOURCE]},
        {"decontaminate": {"sets": [SET, SET]}},
        {"classifiers": [{"name": "quality", "paths": ["a"]}] * 2},
    ],
)
def test_a_name_given_twice_is_a_fault_of_the_file(folder, values):
    with pytest.raises(ConfigError, match=r"two .* are named '(tales|quiz|quality)'"):
        made(folder, values)


@pytest.mark.parametrize("stage", ["lists", "classifier", "evaluation_sets"])
def test_files_next_to_the_corpus_are_read_before_the_corpus(folder, stage):
    (folder / "torn.jsonl").write_bytes(b"\xff\xfe\n")
    values = {
        "lists": {"lists": {"words": {"en": ["torn.jsonl"]}}},
        "classifier": {"classifiers": [{"name": "quality", "paths": ["torn.jsonl"]}]},
        "evaluation_sets": {"decontaminate": {"sets": [{**SET, "paths": ["torn.jsonl"]}]}},
    }
    with pytest.raises(PipelineError, match=r"torn\.jsonl"):
        made(folder, values[stage])
    assert not (folder / "made" / "ingest").exists()


def test_a_look_up_goes_as_far_as_it_can(folder):
    """A look-up requires no more than its stages do."""
    (folder / "words.txt").write_text("harbour\n")
    write_tales(folder / "tales.jsonl", range(60))
    (folder / "quiz.jsonl").write_text(json.dumps({"question": tale(1000)}) + "\n")
    values = {"lists": {"words": {"en": ["words.txt"]}}, "decontaminate": {"sets": [SET]}}
    values |= {"tokenizer": {"vocabulary_size": 300}}
    assert "encode" in made(folder, values)
    (folder / "quiz.jsonl").unlink()
    config = validate({"sources": [SOURCE], **values}, DataConfig, "run.toml")
    looks = stages(config, folder, Runtime(folder / "made", make=False))
    assert [next(looks).stage for _ in range(3)] == ["ingest", "clean", "dedup"]
    with pytest.raises(MissingInput, match=r"quiz\.jsonl"):
        next(looks)
