"""Index of a corpus's texts: spans against brute force, counts over shards, the same bytes by any number of workers."""

import shutil
import unittest.mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.trace_text.traced_text import find_index
from data_pipeline.text_index import index_stage, search
from data_pipeline.text_index.index_stage import TextIndexConfig, text_index
from data_pipeline.text_index.search import find_spans, holders_of, longest_spans, next_middles, open_index, read_listed
from data_pipeline.tokens.token_shards import SUFFIX, EncodedDocument, write_token_shard
from governance.config import validate
from governance.errors import ConfigError, MissingInput
from governance.files import remove_file
from governance.manifest import describe, read_manifest, write_manifest
from governance.stage import Runtime, find
from tests.data_pipeline.test_tokenizer import artifact
from tests.manifests import manifest_of

LETTERS = st.text(alphabet="ab é中🦊", max_size=14)


def corpus(root, texts_by_shard, copies=lambda text: (1, 0)):
    """Documents, and token shards that hold each as often as `copies` says in the two splits."""
    documents, outputs = artifact(root, texts_by_shard), []
    for at, split in enumerate(("train", "validation")):
        for number, texts in enumerate(texts_by_shard):
            held = [
                EncodedDocument(f"s/f{number}#{place}", np.array([1, 0]), len(text.encode()))
                for place, text in enumerate(texts)
                for _ in range(copies(text)[at])
            ]
            path = root / "encode" / ("1" * 16) / split / f"{number:05}{SUFFIX}"
            write_token_shard(path, held, 2, 0)
            outputs.append(describe(path, root))
    tokens = manifest_of("encode", outputs, key="1", inputs=(documents.as_input(),))
    write_manifest(tokens, root)
    return tokens, documents


def indexed(root, texts_by_shard, shard_bytes=1 << 30, **more):
    made = text_index(*corpus(root, texts_by_shard, **more), TextIndexConfig(shard_bytes=shard_bytes), Runtime(root))
    return made, open_index(made, root)


def brute_force(text, texts, least):
    """Every maximal span, by looking at all of them."""

    def occurs(start, end):
        return any(text[start:end] in one for one in texts)

    return [
        (start, end)
        for start in range(len(text))
        for end in range(start + least, len(text) + 1)
        if occurs(start, end)
        and not (start and occurs(start - 1, end))
        and not (end < len(text) and occurs(start, end + 1))
    ]


@settings(max_examples=400)
@given(st.lists(LETTERS, max_size=4), LETTERS, st.integers(1, 5))
def test_the_spans_are_those_of_brute_force(texts, text, least):
    def occurs(start, end):
        assert start < end
        return any(text[start:end] in one for one in texts)

    def reaches(start, end):
        return max((stop for stop in range(start + 1, end + 1) if occurs(start, stop)), default=start)

    assert longest_spans(occurs, reaches, len(text), least) == brute_force(text, texts, least)


@settings(max_examples=40)
@given(data=st.data())
def test_spans_and_counts_are_exact_over_shards_and_documents(data, tmp_path_factory):
    """Shards of a row group or less: no passage crosses a document, no count depends on where a shard ends.

    Nor on how many suffixes have a sample, on which passages are longer than one, or on the rows of a listed batch.
    """
    root = tmp_path_factory.mktemp("index")
    shards = data.draw(st.lists(st.lists(LETTERS, max_size=4), min_size=1, max_size=3))
    rows = data.draw(st.integers(1, 4))
    with pytest.MonkeyPatch.context() as patch:
        for module in (index_stage, search):
            patch.setattr(module, "LISTED_ROWS", rows)
        patch.setattr(index_stage, "_MIN_STRIDE", data.draw(st.sampled_from([1, 2, 5, 256])))
        made, index = indexed(root, shards, shard_bytes=data.draw(st.sampled_from([1, 40, 1 << 30])))
        _spans_and_counts_are_exact(data, made, index, shards)


def _spans_and_counts_are_exact(data, made, index, shards):
    texts = [(f"s/f{number}#{place}", text) for number, held in enumerate(shards) for place, text in enumerate(held)]
    assert made.stats["documents"] == len(texts)
    asked = data.draw(st.one_of(LETTERS, st.lists(st.sampled_from([text for _, text in texts] or [""])).map("".join)))
    least = data.draw(st.integers(1, 4))
    with unittest.mock.patch.object(search, "_waits", return_value=data.draw(st.booleans())):
        spans = find_spans(index, asked, least)
    assert spans == brute_force(asked, [text for _, text in texts], least)
    for start, end in spans:
        span = asked[start:end]
        most = data.draw(st.integers(1, 6))
        found = holders_of(index, span, most)
        listed = [row["id"] for row in read_listed(index, found.first)]
        wanted = [
            (name, sum(text.startswith(span, at) for at in range(len(text)))) for name, text in texts if span in text
        ]
        assert list(zip(listed, [one.occurrences for one in found.first], strict=True)) == wanted[:most]
        assert (found.documents, found.occurrences) == (len(wanted), sum(count for _, count in wanted))


def test_only_documents_of_the_token_shards_are_in_it_with_their_copies(tmp_path):
    """A text that a mixture left out is not; one that is held out is, and says so."""
    held = {"kept once": (1, 0), "kept three times": (3, 0), "held out": (0, 1), "left out": (0, 0)}
    _, index = indexed(tmp_path, [list(held)], copies=held.__getitem__)
    assert find_spans(index, "left out", 5) == []
    for text, copies in held.items():
        if copies != (0, 0):
            [row] = read_listed(index, holders_of(index, text, 9).first)
            assert (row["copies"], row["held_out"]) == copies
            assert (row["source"], row["licence"]) == (f"s{list(held).index(text) % 3}", "CC0-1.0")


def test_every_worker_gives_the_same_bytes_and_a_lost_shard_is_made_again(tmp_path):
    texts = [[f"Text {number} of shard {shard}. " * 9 for number in range(20)] for shard in range(4)]
    config = TextIndexConfig(shard_bytes=3000)
    alone, many = tmp_path / "alone", tmp_path / "many"
    made = text_index(*corpus(alone, texts), config, Runtime(alone))
    assert made.stats["shards"] == 4
    assert text_index(*corpus(many, texts), config, Runtime(many, workers=2)).digest == made.digest
    [path] = [file for file in made.files("suffixes", alone) if file.name == "00002.bin"]
    before = {file: file.stat().st_mtime_ns for file in made.files("suffixes", alone)}
    remove_file(path)
    assert find("text_index", made.key, alone) is None
    again = text_index(read_manifest(alone / "encode" / ("1" * 16) / "manifest.json"), artifact(alone, texts), config,
                       Runtime(alone))  # fmt: skip
    assert again.digest == made.digest
    assert {file for file, time in before.items() if file.stat().st_mtime_ns != time} == {path}
    with pytest.raises(MissingInput, match="text_index: not made yet"):
        text_index(*corpus(alone, [["other"]]), config, Runtime(alone, make=False))


def test_it_takes_at_most_seven_bytes_a_byte_of_text(tmp_path):
    made, _ = indexed(tmp_path, [[f"Sentence {number} of a text of usual length. " * 40 for number in range(300)]])
    texts = sum(output.bytes for output in made.listed("text"))
    assert sum(output.bytes for output in made.outputs) <= 5.2 * texts


def test_documents_without_text_give_an_index_that_holds_nothing(tmp_path):
    for number, shards in enumerate(([[]], [["", ""]], [[], ["one"]])):
        _, index = indexed(tmp_path / str(number), shards)
        assert find_spans(index, "one", 1) == ([(0, 3)] if number == 2 else [])
        shutil.rmtree(tmp_path / str(number))


def test_an_index_of_an_older_version_is_not_read(tmp_path):
    made, _ = indexed(tmp_path, [["one"]])
    tokens = read_manifest(tmp_path / made.inputs[0].path)
    assert find_index(tokens, tmp_path).digest == made.digest
    write_manifest(made.model_copy(update={"version": index_stage.VERSION - 1}), tmp_path)
    assert find_index(tokens, tmp_path) is None


def test_a_shard_has_a_size():
    with pytest.raises(ConfigError, match="shard_bytes"):
        validate({"shard_bytes": 0}, TextIndexConfig, "--shard-size")


@given(st.integers(0, 50), st.integers(1, 200), st.lists(st.booleans(), min_size=3, max_size=3))
def test_what_a_search_asks_for_holds_what_its_next_comparisons_read(low, size, goes_up):
    high, asked = low + size, next_middles(low, low + size, 3)
    assert len(asked) == len(set(asked)) <= 7
    for up in goes_up:
        if low < high:
            middle = (low + high) // 2
            assert middle in asked
            low, high = (middle + 1, high) if up else (low, middle)
