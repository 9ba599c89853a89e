"""Parallel text: every pair of aligned files, PO and TMX is read or accounted for, and its two sides stay apart."""

from __future__ import annotations

import gzip
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.config import DataConfig
from data_pipeline.normalised_text import normalise
from data_pipeline.readers.file_types.pair_files import read_pairs, split_sides
from data_pipeline.readers.file_types.pair_settings import PairSettings
from data_pipeline.readers.file_types.pair_text import MARK, pair_text, sides
from data_pipeline.readers.items import SourceItem
from data_pipeline.tokens.encode import EncodeConfig, encode_table
from data_pipeline.tokens.tokenizer import TokenizerConfig, load_encoder, train_tokenizer
from governance.config import validate
from governance.errors import ConfigError, MissingInput, PipelineError
from governance.stage import Runtime
from tests.data_pipeline.test_tokenizer import artifact

LANGUAGES = PairSettings(source_language="en", target_language="de")
TARGETS = EncodeConfig(validation_share=0.0, loss_on="targets")
PO = r"""
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\n"

#. A comment.
msgctxt "menu"
msgid "Save \"as\""
msgstr "Speichern "
"unter\n"

msgid "File"
msgstr ""

#, fuzzy
msgid "Old"
msgstr "Alt"

#, c-format
msgid "%d file"
msgid_plural "%d files"
msgstr[0] "%d Datei"
msgstr[1] "%d Dateien"

#~ msgid "Gone"
#~ msgstr "Weg"
"""
TMX = """<?xml version="1.0"?><!DOCTYPE tmx SYSTEM "tmx14.dtd"><tmx version="1.4"><body>
<tu><tuv xml:lang="EN-GB"><seg>Press <bpt i="1">&lt;b&gt;</bpt>Enter<ept i="1">&lt;/b&gt;</ept> &amp; wait</seg></tuv>
<tuv xml:lang="de"><seg>Enter und warten</seg></tuv></tu>
<tu><tuv xml:lang="en"><seg>Alone</seg></tuv><tuv xml:lang="fr"><seg>Seul</seg></tuv></tu>
<tu><tuv lang="de"><seg>Zwei</seg></tuv><tuv lang="en"><seg>Two</seg></tuv></tu></body></tmx>"""


def items(folder, files):
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return [SourceItem(name, folder / name, "0" * 64, 1) for name in files]


def read(folder, files, languages=LANGUAGES):
    passed = Counter()
    chosen, beside = split_sides("news", languages, items(folder, files))
    found = [piece for item in chosen for piece in read_pairs(item, languages, beside, passed)]
    pairs = [sides(one.text) for one in found if not hasattr(one, "reason")]
    return pairs, [(one.position, one.reason) for one in found if hasattr(one, "reason")], dict(passed)


def test_po_messages(tmp_path):
    pairs, faults, passed = read(tmp_path, {"de.po": PO})
    assert pairs == [('Save "as"', "Speichern unter"), ("%d file", "%d Datei"), ("%d files", "%d Dateien")]
    assert (faults, passed) == ([], {"untranslated": 1, "fuzzy": 1})


@pytest.mark.parametrize(
    ("name", "codec"),
    [("ISO-8859-1", "latin-1"), ("CP1252", "cp1252"), ("utf-8", "utf-8"), ("Shift_JIS", "shift_jis"),
     ("CHARSET", "utf-8"), ("UTF-16", "utf-8"), ("rot13", "utf-8"), ("unicode_escape", "utf-8"),
     ("idna", "utf-8")],
)  # fmt: skip
def test_po_in_the_charset_of_its_header(tmp_path, name, codec):
    word = "表示" if codec == "shift_jis" else "Größe"  # one of its bytes is a backslash
    po = PO.replace("charset=UTF-8", f"charset={name}").replace("Speichern ", f"{word} ").replace("# A", f"# {word}")
    pairs, faults, _ = read(tmp_path, {"de.po": po.encode(codec)})
    assert (pairs[0], faults) == (('Save "as"', f"{word} unter"), [])


@pytest.mark.parametrize(("name", "reason"), [("ASCII", "wrong_encoding"), ("foo", "not_utf8"), ("UTF-8", "not_utf8")])
def test_bytes_outside_the_charset_are_a_fault(tmp_path, name, reason):
    po = PO.replace("charset=UTF-8", f"charset={name}").replace("Speichern ", "Größe ")
    pairs, faults, _ = read(tmp_path, {"de.po": po.encode("latin-1")})
    assert ([found for _, found in faults], len(pairs)) == ([reason], 2)


@given(forms=st.lists(st.sampled_from(["", "eins", "zwei", "drei"]), min_size=1, max_size=8))
def test_every_plural_form_is_read_or_counted(tmp_path_factory, forms):
    """Languages have one (Japanese) to six (Arabic) of them."""
    lines = ['msgid "%d file"', 'msgid_plural "%d files"', *(f'msgstr[{n}] "{text}"' for n, text in enumerate(forms))]
    pairs, faults, passed = read(tmp_path_factory.mktemp("po"), {"de.po": "\n".join(lines)})
    sources = ["%d file", *["%d files"] * (len(forms) - 1)]
    assert pairs == [pair for pair in zip(sources, forms, strict=True) if pair[1]]
    assert (faults, passed.get("untranslated", 0)) == ([], forms.count(""))


@pytest.mark.parametrize("line", ["<p>", 'msgstr "Zwei', "msgstr Zwei", '"drei" vier'])
def test_a_message_with_a_line_of_another_format_is_one_fault(tmp_path, line):
    text = f'msgid "One"\nmsgstr "Eins"\n\nmsgid "Two"\nmsgstr "Zwei "\n{line}\n\nmsgid "Four"\nmsgstr "Vier"\n'
    assert read(tmp_path, {"de.po": text}) == ([("One", "Eins"), ("Four", "Vier")], [(5, "not_po")], {})


def test_the_name_of_a_domain_costs_no_message(tmp_path):
    text = 'domain "a"\nmsgid "One"\nmsgstr "Eins"\n\ndomain "b"\nmsgid "Two"\nmsgstr "Zwei"\n'
    assert read(tmp_path, {"de.po": text}) == ([("One", "Eins"), ("Two", "Zwei")], [], {})


@pytest.mark.parametrize("torn", ['msgid "\xfc"', 'msgstr "\xfc"', '"\xfc"'])
def test_a_message_with_a_line_that_is_no_text_is_left_out_whole(tmp_path, torn):
    lines = ['msgid "One"', 'msgstr "Eins"', 'msgid "Two"', 'msgstr "Zwei "', '"drei"', 'msgid "Four"', 'msgstr "Vier"']
    lines[{"msgid": 2, "msgstr": 3}.get(torn.split()[0], 4)] = torn
    pairs, faults, _ = read(tmp_path, {"de.po": "\n".join(["# M\xfcller", *lines]).encode("latin-1")})
    assert pairs == [("One", "Eins"), ("Four", "Vier")]
    assert [reason for _, reason in faults] == ["not_utf8"]


@pytest.mark.parametrize("long", ['"' + "z" * 300 + '"', '"' + "z" * 90 + '"\n"' + "z" * 90 + '"', "# " + "z" * 300])
def test_a_message_beyond_the_bound_is_one_fault(tmp_path, monkeypatch, long):
    """The lines of such a message are not joined: one by one, 4 MB of them took 20 seconds, 64 MB hours."""
    for module in ("file_types.pair_files", "streams"):
        monkeypatch.setattr(f"data_pipeline.readers.{module}.MAX_RECORD_BYTES", 150)
    text = f'msgid "One"\nmsgstr "Eins"\n\nmsgid "Two"\nmsgstr ""\n{long}\n"more"\n\nmsgid "Four"\nmsgstr "Vier"\n'
    pairs, faults, _ = read(tmp_path, {"de.po": text})
    assert pairs == [("One", "Eins"), ("Four", "Vier")]
    assert [reason for _, reason in faults] == ["line_too_long"]


def test_a_message_whose_first_line_is_beyond_the_bound_costs_no_other(tmp_path, monkeypatch):
    for module in ("file_types.pair_files", "streams"):
        monkeypatch.setattr(f"data_pipeline.readers.{module}.MAX_RECORD_BYTES", 150)
    text = f'msgid "One"\nmsgstr "Eins"\nmsgid "{"z" * 300}"\nmsgstr "Zwei"\nmsgid "Four"\nmsgstr "Vier"\n'
    pairs, faults, _ = read(tmp_path, {"de.po": text})
    assert (pairs, [reason for _, reason in faults]) == ([("One", "Eins"), ("Four", "Vier")], ["line_too_long"])


def test_the_flags_of_an_obsolete_message_are_its_own(tmp_path):
    text = '#, fuzzy\n#~ msgid "Gone"\n#~ msgstr "Weg"\n\nmsgid "Real"\nmsgstr "Echt"\n'
    assert read(tmp_path, {"de.po": text}) == ([("Real", "Echt")], [], {})


def test_tmx_units(tmp_path):
    pairs, faults, passed = read(tmp_path, {"memory.tmx": TMX})
    assert pairs == [("Press Enter & wait", "Enter und warten"), ("Two", "Zwei")]
    assert (faults, passed) == ([], {"other_language": 1})


def test_a_variety_is_found_however_it_is_written(tmp_path):
    brazilian = PairSettings(source_language="en", target_language="pt_BR")
    assert len(read(tmp_path, {"memory.tmx": TMX.replace('"de"', '"pt-BR"')}, brazilian)[0]) == 2


def test_a_tmx_that_is_torn_or_hostile_keeps_what_came_before(tmp_path):
    pairs, faults, _ = read(tmp_path, {"memory.tmx": TMX[: TMX.index("<tu><tuv lang")]})
    assert (len(pairs), faults) == (1, [(2, "truncated_xml")])
    bomb = TMX.replace('SYSTEM "tmx14.dtd"', '[<!ENTITY a "b">]')
    assert read(tmp_path, {"memory.tmx": bomb})[1] == [(0, "hostile_xml")]


@pytest.mark.parametrize("long", ["<seg>" + "z" * 3000 + "</seg>", '<tuv lang="' + "z" * 3000 + '"/>'])
def test_a_unit_of_tmx_beyond_the_bound_is_hostile(tmp_path, monkeypatch, long):
    """A gigabyte in one segment was a gigabyte of memory."""
    for module in ("streams", "file_types.pair_files"):
        monkeypatch.setattr(f"data_pipeline.readers.{module}.MAX_RECORD_BYTES", 1500)
    monkeypatch.setattr("data_pipeline.readers.streams.BLOCK_BYTES", 100)
    hostile = TMX.replace("<tu><tuv lang", f"<tu>{long}<tuv lang")
    assert read(tmp_path, {"memory.tmx": hostile})[1] == [(2, "hostile_xml")]


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_aligned_files(tmp_path, packed):
    files = {f"news.de{packed}": "Eins\n\nDrei\n\u241e\n", f"news.en{packed}": "One\nTwo\nThree\nFour\n"}
    pairs, faults, _ = read(tmp_path, files)
    assert pairs == [("One", "Eins"), ("Three", "Drei")]
    assert faults == [(1, "empty_target"), (3, "holds_the_mark")]


def test_a_line_that_is_no_text_is_one_fault(tmp_path):
    pairs, faults, _ = read(tmp_path, {"a.en": b"One\n\xff\nThree", "a.de": b"Eins\nZwei\nDrei"})
    assert (len(pairs), faults) == (2, [(1, "not_utf8")])


@pytest.mark.parametrize(("en", "de", "line"), [("1\n2\n3\n", "1\n2\n", 3), ("1\n", "1\n2\n", 2)])
def test_unequal_files_are_refused_with_the_line(tmp_path, en, de, line):
    longer = "a.en" if len(en) > len(de) else "a.de"
    with pytest.raises(PipelineError, match=rf"line {line} of {longer} has no counterpart"):
        read(tmp_path, {"a.en": en, "a.de": de})


def test_long_pairs_are_passed_over(tmp_path):
    short = LANGUAGES.model_copy(update={"most_characters": 3})
    pairs, _, passed = read(tmp_path, {"a.en": "One\nThree\n", "a.de": "Ein\nDrei\n"}, short)
    assert (pairs, passed) == ([("One", "Ein")], {"long_pair": 1})


def test_files_without_a_counterpart_or_of_another_kind_are_refused(tmp_path):
    with pytest.raises(MissingInput, match=r"'a.en' has no counterpart 'a.de'"):
        read(tmp_path, {"a.en": "One\n"})
    with pytest.raises(MissingInput, match=r"'b.de' has no counterpart 'b.en'"):
        read(tmp_path, {"b.de": "Eins\n"})
    with pytest.raises(ConfigError, match=r"neither .po nor .tmx"):
        read(tmp_path, {"readme.txt": "One\n"})


TEXTS = st.text(st.sampled_from("aß 中\n\r\x00\ufeff'").map(str), min_size=1, max_size=12)


@settings(max_examples=200)
@given(TEXTS, TEXTS)
def test_a_pair_is_recovered_from_its_text_and_cleaning_does_not_move_the_mark(source, target):
    text = pair_text(source, target)
    assert normalise(text) == text
    expected = (normalise(source).strip(), normalise(target).strip())
    assert sides(text) == (expected if all(expected) else None)
    assert pair_text(source + MARK, target) is None


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    documents = artifact(root, [["one two three eins zwei drei vier\n"] * 200])
    made = train_tokenizer(documents, TokenizerConfig(vocabulary_size=300), Runtime(root))
    return load_encoder(made, root)


def table(texts):
    values = {"id": [f"a-{n}" for n in range(len(texts))], "text": pa.array(texts, pa.large_string())}
    others = {"source": "news", "language": "en", "url": "", "licence": "CC0-1.0", "sha256": "0" * 64}
    return pa.table(values | {name: [value] * len(texts) for name, value in others.items()})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5))
def test_targets_are_predicted_and_sources_and_the_mark_are_not(encoder, pairs):
    texts = [text for pair in pairs if sides(text := pair_text(*pair))]
    encoded = encode_table(table(texts), encoder, TARGETS, np.ones(len(texts), np.int64))
    for text, document in zip(texts, encoded.documents, strict=True):
        source, target = sides(text)
        read, written = document.tokens[~document.answers], document.tokens[document.answers]
        assert encoder.decode(read.tolist()) == f"{source}\n{MARK}\n"
        assert read.tolist() == encoder.encode(f"{source}\n{MARK}\n").tolist()  # as a translation begins
        assert encoder.decode(written.tolist()) == target
        assert written[-1] == encoder.end_of_document
        assert document.answers.tolist() == sorted(document.answers.tolist())
        assert document.bytes == len(target.encode())
    assert encoded.stats["round_trip_failed"] == 0
    assert encoded.stats["documents_without_end"] == 0


def test_a_source_stands_on_one_side_of_the_split(encoder):
    half = EncodeConfig(validation_share=0.5, loss_on="targets")
    texts = [pair_text(f"number {n}", target) for n in range(40) for target in ("eins", "zwei")]
    splits = encode_table(table(texts), encoder, half, np.ones(80, np.int64)).features["split"].to_pylist()
    assert splits[::2] == splits[1::2]
    assert len(set(splits)) == 2


@pytest.mark.parametrize("text", ["no pair", f"one\n{MARK}\n", f"a\n{MARK}\nb\n{MARK}\nc"])
def test_a_document_that_is_no_pair_is_refused_by_name(encoder, text):
    with pytest.raises(PipelineError, match="a-0 is not a pair"):
        encode_table(table([text]), encoder, TARGETS, np.ones(1, np.int64))


SOURCE = {
    "type": "parallel", "name": "news", "licence": "MIT", "paths": ["*.po"],
    "source_language": "en", "target_language": "de",
}  # fmt: skip
PACK = {"sequence_length": 64, "min_used_share": 0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encode": {}}, "loss_on = 'targets'"),
        ({"pack": {"sequence_length": 64}}, "min_used_share = 0"),
        ({"sources": [{**SOURCE, "target_language": "en"}]}, "both 'en'"),
        ({"sources": [{"type": "text", "name": "a", "licence": "MIT", "paths": ["*.txt"]}]}, "type = 'parallel'"),
        ({"paragraphs": {}}, "excludes"),
    ],
)
def test_settings_that_would_part_a_pair_are_refused(changes, words):
    values = {"sources": [SOURCE], "encode": {"loss_on": "targets"}, "pack": PACK, "tokenizer": {}, **changes}
    with pytest.raises(ConfigError, match=words):
        validate(values, DataConfig, "data")
