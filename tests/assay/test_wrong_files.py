"""Mistakes in a run's file: each is reported as a fault of the file, with its fix."""

import shutil
from pathlib import Path

import pytest

from assay.cli.main import main
from governance.parallel import close_pool
from tests.conftest import write_run, write_tales


def source(rest: str, kind: str = "jsonl") -> str:
    return f'data.sources=[{{type="{kind}",name="tales",licence="MIT",{rest}}}]'


LOADED = {  # reported before anything is read
    source("paths=[3]"): "data.sources[entry 1].paths[entry 1] = 3: is not text; put it in quotes",
    source('paths=["a.jsonl"],language="English language"'): 'language = "English language"',
    'data.sources=[{type="jsonl",name="tales",licence="MIT",files=["a.jsonl"]}]': (
        "data.sources[entry 1].files: unknown key; did you mean 'paths'?"
    ),
    'data.sources=[{type="hub",name="tales",licence="MIT",path="a/b"}]': "path: unknown key; did you mean 'dataset'?",
    source('paths=["t/*.txt"],language_by_path="("', "text"): "is not a regular expression: missing )",
    source('paths=["t/*.txt"],language_by_path="(?P<language>x){1001}"', "text"): "is not a regular expression",
    source('paths=["t/*.txt"],language_by_path="(?=x)(?P<language>x)"', "text"): "is not a regular expression",
    "data.clean.presets=['gophers']": "\"gophers\": is none of 'gopher', 'c4', 'fineweb' or 'fineweb_paper'",
    "data.clean.languages=['english']": 'data.clean.languages[entry 1] = "english"',
    "data.clean.languages=['en','xq']": "data.clean.languages: 'xq' is not a language that",
    "data.clean.by_language.xq.min_words=3": "data.clean.by_language: 'xq' is not a language",
    "data.mix.language_quotas={xq={share=0.5}}": "data.mix.language_quotas: 'xq'",
    "data.lists.words={xq=['a.jsonl']}": "data.lists.words: 'xq'",
    "data.mix.weights={nope=1.0}": "mix.weights names 'nope', which is not a source; the sources are: tales",
    "data.mix.max_epochs_of={nope=1}": "mix.max_epochs_of names 'nope'",
    "data.mix.source_quotas={nope={share=0.5}}": "mix.source_quotas names 'nope'",
    "data.mix.source_quotas={tales={share=0.5}}": "(tales 0.5), and they add up to less than 1",
    "data.classifiers=[{name='q',paths=['a.jsonl'],min_score=0.9,max_score=0.1}]": "min_score = 0.9 is above max_score",
    "data.classifiers=[{name='q',paths=['a.jsonl'],label_field=''}]": 'label_field = ""',
    "data.decontaminate.sets=[{name='s',paths=['a.jsonl'],fields=['text'],id_field='nope'}]": "Correct id_field",
    "audit.bias.lists.terms='run.toml'": "run.toml: is not a word list",
    "audit.bias.intersections=['ethnicity x nope']": "'ethnicity x nope' is not a pair of axes",
    f"data.tokenizer.vocabulary_size={'9' * 5000}": "is not a TOML value",
    f"data.tokenizer.vocabulary_size={'[' * 5000}": "is not a TOML value",
}
MADE = {  # reported by the stage that kept no document
    source('paths=["a.jsonl"],text_field="body"'): "no record became a document of 12 (quarantine:no_text_field 12)",
    source('paths=["run.toml"]'): "ingest: no record became a document of",
    source('paths=["a.jsonl"]', "warc"): "quarantine:warc_bad_header 1",
    "data.clean.languages=['ko']": "clean: no document is left of 12 (language_not_wanted 12). Change [data.clean]",
    "data.clean.min_words=1e9": "clean: no document is left of 12 (too_few_words 12). Change [data.clean]",
    "data.decontaminate.sets=[{name='s',paths=['a.jsonl'],fields=['text']}]": "decontaminate: no document is left",
    "data.mix.total_bytes=10": "leave to a language of a source is 10 bytes, and no document fits",
    "data.mix.language_quotas={en={bytes=5}}": "mix: nothing is left",
    "data.mix.source_quotas={tales={bytes=0}}": "mix: nothing is left",
    "data.mix.language_quotas={en={share=0.5}}": "mix: nothing is left: data.mix.language_quotas give every language",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A project of twelve documents; a case may find artifacts of an earlier one."""
    folder = tmp_path_factory.mktemp("wrong")
    write_run(folder)
    shutil.copy(Path(__file__).parents[2] / "configs" / "policy.toml", folder / "policy.toml")
    write_tales(folder / "a.jsonl", range(12))
    (folder / "t").mkdir()
    (folder / "t" / "a.txt").write_text("Nobody reads this.")
    yield folder
    close_pool()


def prepare(folder, root, override, capsys):
    """The exit status, and the error message, which comes last."""
    words = ["data", "prepare", str(folder / "run.toml"), "--root", str(root), "--data-workers", "1", "--set", override]
    status = main(words)
    return status, capsys.readouterr().err.partition("ERROR ")[2]


@pytest.mark.parametrize("override", LOADED, ids=lambda text: text[:60])
def test_a_fault_of_the_file_is_reported_before_the_corpus_is_read(folder, tmp_path, capsys, override):
    status, output = prepare(folder, tmp_path / "made", override, capsys)
    assert (status, LOADED[override] in output) == (78, True), output
    assert len(output) < 1000
    assert not (tmp_path / "made" / "ingest").exists()


@pytest.mark.parametrize("override", MADE, ids=lambda text: text[:60])
def test_what_leaves_nothing_is_a_fault_of_the_file_reported_by_its_stage(folder, capsys, override):
    status, output = prepare(folder, folder / "made", override, capsys)
    assert (status, MADE[override] in output) == (78, True), output


def test_a_mistyped_signing_key_is_refused_and_not_made(folder, tmp_path, capsys):
    status, output = prepare(folder, tmp_path / "made", 'governance.signing_key="kye.pem"', capsys)
    assert f"{folder / 'kye.pem'}: no such file. Did you mean {folder / 'key.pem'}?" in output
    assert (status, [*folder.glob("kye.pem*"), *tmp_path.glob("made/journal.jsonl")]) == (78, [])


def test_a_stage_that_left_nothing_can_be_looked_at(folder, capsys):
    override = "data.clean.min_words=1e8"
    assert prepare(folder, folder / "made", override, capsys)[0] == 78
    words = ["data", "show", str(folder / "run.toml"), "--root", str(folder / "made"), "--set", override]
    assert main(words) == 0
    assert "too_few_words" in capsys.readouterr().out


def test_one_fault_is_reported_once(folder, capsys):
    """A list with a wrong item is not also reported as too short."""
    _, output = prepare(folder, folder / "made", source("paths=[3]"), capsys)
    assert "1 fault(s)" in output
    _, output = prepare(folder, folder / "made", "data.sources=[]", capsys)
    assert "data.sources = []: needs at least 1 item(s)" in output
    mistyped = source("", "jsnl").replace('licence="MIT",', 'licence="MIT",paths=["a"]')
    _, output = prepare(folder, folder / "made", mistyped, capsys)
    assert (
        '1 fault(s)\n  data.sources[entry 1].type = "jsnl": is none of jsonl, csv, tsv, parquet, arrow, orc' in output
    )
    assert "did you mean 'jsonl'?" in output
    american = source('paths=["a.jsonl"]').replace("licence", "license")
    _, output = prepare(folder, folder / "made", american, capsys)
    assert "1 fault(s)\n  data.sources[entry 1].license: unknown key; did you mean 'licence'?" in output
    absent = source('paths=["b/*.jsonl"]')
    (folder / "bb").mkdir()
    _, output = prepare(folder, folder / "made", absent, capsys)
    assert f"Did you mean {folder / 'bb'}?" in output


def test_a_broken_file_is_reported_with_its_place(folder, tmp_path, capsys):
    for text in ("[data\n", f"x = {'9' * 5000}\n", f"x = {'[' * 5000}"):
        (folder / "broken.toml").write_text(text)
        assert main(["data", "prepare", str(folder / "broken.toml"), "--root", str(tmp_path)]) == 78
        assert "broken.toml: is not valid TOML" in capsys.readouterr().err
