"""Verbatim share of generations: planted passages by length, prompts of long documents only, each once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.tokens.token_shards import EncodedDocument, document_identity, write_token_shard
from pretrain.inference.verbatim_generations import LENGTHS, Generation, VerbatimConfig, draw_prompts, rows_of

PASSAGES = st.lists(st.tuples(st.integers(0, 500), st.integers(1, 500)), max_size=4)


def ascending(spans):
    """The spans that are not within another, as longest passages are."""
    spans = sorted({(start, min(start + size, 1000)) for start, size in spans})
    return [one for one in spans if not any(o != one and o[0] <= one[0] and one[1] <= o[1] for o in spans)]


@given(st.lists(PASSAGES, min_size=1, max_size=6))
def test_a_row_counts_generations_and_characters_as_by_hand(found):
    made = [Generation("train", "a", 0, "x" * 1000, ascending(spans)) for spans in found]
    rows = rows_of(made)
    assert [row["characters_from"] for row in rows] == list(LENGTHS)
    for row in rows:
        least = row["characters_from"]
        covered = [
            {at for start, end in one.passages if end - start >= least for at in range(start, end)} for one in made
        ]
        assert (row["with_passage"], row["generations"]) == (sum(map(bool, covered)), len(made))
        assert row["characters"] == round(sum(map(len, covered)) / (1000 * len(made)), 6)
        assert 0 <= row["lower"] <= row["rate"] <= row["upper"] <= 1
        assert 0 <= row["characters_lower"] <= row["characters_upper"] <= 1


def test_texts_of_no_characters_hold_nothing():
    rows = rows_of([Generation("validation", "a", 0, "", [])] * 3)
    assert {(row["with_passage"], row["characters"]) for row in rows} == {(0, 0.0)}
    assert rows_of([]) == []


def test_prompts_are_beginnings_of_long_documents_and_a_copy_gives_no_other(tmp_path):
    chance = np.random.default_rng(0)
    texts = [np.append(chance.integers(1, 9, 4 + number % 10), 0) for number in range(30)]
    documents = [EncodedDocument(f"d{number}", text, 9) for number, text in enumerate(texts) for _ in range(2)]
    paths = [tmp_path / f"{number}.tokens" for number in range(2)]
    for number, path in enumerate(paths):
        write_token_shard(path, documents[number::2], 9, 0)
    config = VerbatimConfig(prefix_tokens=8, max_tokens=4, generations=5)
    drawn = draw_prompts(paths, config)
    long = {one.id: one for one in documents if len(one.tokens) > 9}
    wanted = sorted(long, key=document_identity)[:5]
    assert [prompt.tolist() for _, _, prompt in drawn] == [long[name].tokens[:8].tolist() for name in wanted]
