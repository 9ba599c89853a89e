"""C4's edits of lines and its counting of listed words equal slow plain references on every text."""

import itertools
import math
import re
import unicodedata
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.kernels import lines
from data_pipeline.kernels.lines import LINE_REASONS, c4_lines, count_listed_words
from data_pipeline.kernels.phrases import PHRASES, POLICY_PHRASES
from data_pipeline.kernels.quality import FEATURES, measure_texts
from data_pipeline.kernels.words import QUOTES, TERMINALS
from governance.kernels import compiled
from tests.given_data import given_rows

PIECES = st.sampled_from(
    [
        *("word", "two words", "A good line of six words.", "So it ends!", '"Yes," she said to me.', "and so on..."),
        *("etc…", "[1]", "[", "[edit]", "[citation needed]", "[12", "]", "[a]", ".", " ", "\u3000", "\n", "\n\n", "{"),
        *("日本語は好きです。", "वह घर गया।", "x" * 30, "x" * 41, "日" * 45, "é", "JavaScript", "javascripts"),
        *("Terms  of use", "Terms of Use.", "We use cookies.", "LOREM IPSUM", *PHRASES),
        *("ผมชอบภาษาไทย", "ไทย", "ຂ້ອຍມັກ", "ฯ", "ไทย abc", "។"),
    ]
)
TEXTS = st.one_of(st.lists(PIECES, max_size=25).map(" ".join), st.lists(PIECES, max_size=25).map("".join))
LONGEST = 40


def words_in(text):
    return int(measure_texts(pa.array([text], pa.large_string()), ["und"])[0, FEATURES.index("words")])


def longest_word(line):
    """Length in code points.

    Han and kana are parted, and the marks that follow them stay with them; Thai and Lao are parted from others and from
    each other into short syllables; other scripts without spaces form no long runs. A mark that begins no syllable
    stays with the character before it, also with a Latin word.
    """
    line = re.sub("(?!ฯ)[\u0e00-\u0eff][\u0e00-\u0eff]*", " ", line)
    alone = "[\u3041-\u3096\u4e00-\u9fff]"
    runs = re.split(f"(?<={alone})(?!。)|(?<={alone}。)|(?={alone})", line)
    return max((len(word) for run in runs for word in run.split()), default=0)


def reference_lines(text, min_words):
    removed, kept = Counter(), []
    for whole in text.split("\n"):
        line = whole.strip()
        if not line:
            continue
        if longest_word(line) > LONGEST:
            removed["too_long_word"] += 1
            continue
        line = re.sub(r"\[\d*\]|\[edit\]|\[citation needed\]", "", line, flags=re.ASCII).strip()
        small = "".join(c.lower() if c.isascii() else c for c in line)
        written = [c for c in line if c != " "]
        thai = 2 * sum("\u0e00" <= c <= "\u0eff" for c in written) >= len(written) > 0
        if not line or (line[-1] not in TERMINALS + QUOTES + "…" and not thai) or line.endswith(("...", "…")):
            removed["no_terminal_punctuation"] += 1
        elif words_in(line) < min_words:
            removed["too_few_words"] += 1
        elif "javascript" in small:
            removed["javascript"] += 1
        elif any(phrase in small for phrase in POLICY_PHRASES):
            removed["policy"] += 1
        else:
            kept.append(line)
    return "\n".join(kept), removed


@settings(max_examples=300)
@given(st.lists(TEXTS, max_size=5), st.sampled_from([0, 3, 5]))
@example(["word" + "ฯ" + "x" * 36], 0)
@example(["a b c d e[1].\n[2]a b c d e. [3]", "", "\n \n", "x" * 41 + "\n" + "日" * 41 + "。"], 5)
def test_lines_equal_the_reference(texts, min_words):
    made, removed = c4_lines(pa.array(texts, pa.large_string()), min_words, LONGEST)
    expected = [reference_lines(text, min_words) for text in texts]
    assert made.to_pylist() == [text for text, _ in expected]
    total = sum((counts for _, counts in expected), Counter())
    assert removed == {reason: total[reason] for reason in LINE_REASONS}


def test_editing_twice_changes_nothing_more_and_slices_are_seen():
    texts = pa.array(["no", "One two three four five.\nno end\nIt was [1] so I said to him [2].", "no"])
    once, removed = c4_lines(texts.slice(1, 1))
    assert once.to_pylist() == ["One two three four five.\nIt was  so I said to him ."]
    assert removed == {**dict.fromkeys(LINE_REASONS, 0), "no_terminal_punctuation": 1}
    assert c4_lines(once) == (once, dict.fromkeys(LINE_REASONS, 0))


def test_thai_and_lao_lines_need_no_mark_and_lose_what_others_lose():
    thai = "ประเทศไทยมีประชากรหกสิบล้านคน"
    lao = "ປະເທດລາວມີປະຊາກອນເຈັດລ້ານຄົນ"
    rows = [thai, lao, f"{thai} (GDP)", f"{thai}...", "ไทย", f"{thai} javascript", f"I read that {thai[:4]} one day"]
    made, removed = c4_lines(pa.array(["\n".join(rows)], pa.large_string()))
    assert made.to_pylist() == ["\n".join(rows[:3])]
    assert removed == {
        **dict.fromkeys(LINE_REASONS, 0), "no_terminal_punctuation": 2, "too_few_words": 1, "javascript": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", ["ខ្ញុំស្រឡាញ់ភាសាខ្មែរណាស់។", "မြန်မာဘာသာစကားကိုချစ်သည်။", "བོད་ཀྱི་སྐད་ཡིག་ལ་དགའ།", "我非常喜欢学习中文。"]
)
def test_scripts_without_spaces_that_have_marks_need_them(text):
    made, removed = c4_lines(pa.array([f"{text}\n{text[:-1]}"], pa.large_string()))
    assert made.to_pylist() == [text]
    assert removed["no_terminal_punctuation"] == 1


LISTS = {
    "en": [
        "ass",
        "ass hole",
        "g-spot",
        "ass hole ass",
        "strasse",
        "i\u0307i",
        "եւ",
        "🖕",
        "...",
    ],  # as the stage "lists" folds them
    "ja": ["グロ", "女の子", "sm"],
    "th": ["หี"],
    "es": ["año"],
    "*": ["any", "ass"],
}
LISTED = st.lists(
    st.sampled_from(
        [
            *("ass", "ASS", "hole", "class", "g-spot", "G.Spot", "Straße", "strasse", "any", "ano", "año", "1"),
            *(
                "グロ",
                "グローバル",
                "女の子",
                "です",
                "ﾊ",
                "หี",
                "หีบ",
                "🖕",
                "İi",
                "և",
                "եվ",
                "ασσ",
                "ς",
                "\u0301",
                "sm",
            ),
            *(" ", " ", " ", ",", "\n"),
        ]
    ),
    max_size=30,
).map("".join)


def is_unspaced(character):
    point = ord(character)
    return 0x0E00 <= point <= 0x0FFF or 0x3040 <= point <= 0x30FF or 0x4E00 <= point <= 0x9FFF


def folded_words(text):
    words, inside = [], ""
    for character in text:
        category = unicodedata.category(character)
        if category[0] in "LNM":
            katakana = "\u30a1" <= character <= "\u30ff" or "\uff66" <= character <= "\uff9f"
            kind = "katakana" if katakana else "alone" if is_unspaced(character) else "word"
        else:
            kind = "alone" if category == "So" else ""
        if kind:
            folded = character.casefold()
            if kind == "alone" or kind != inside:
                words.append("")
            words[-1] += folded
        inside = "" if kind == "alone" else kind
    return words


def reference_count(text, code):
    entries = LISTS.get(code, LISTS["*"])
    listed = Counter({tuple(folded_words(entry)) for entry in entries} - {()})
    words = folded_words(text)
    return sum(listed[tuple(words[i:j])] for i in range(len(words)) for j in range(i + 1, len(words) + 1))


@settings(max_examples=300)
@given(st.lists(st.tuples(LISTED, st.sampled_from(["en", "ja", "th", "es", "fr"])), max_size=6))
@example(
    [
        ("An ass, an ASS hole ass; class", "en"),
        ("女の子女の子グロ", "ja"),
        ("any ass", "fr"),
        ("", "en"),
        ("İi և", "en"),
    ]
)
def test_listed_words_equal_the_reference(items):
    texts, codes = [text for text, _ in items], [code for _, code in items]
    found = count_listed_words(pa.array(texts, pa.large_string()), codes, LISTS)
    assert found.tolist() == [reference_count(*item) for item in items]


def test_a_language_without_a_list_has_no_count():
    found = count_listed_words(pa.array(["ass", "ass"]), ["en", "fr"], {"en": LISTS["en"]})
    assert found[0] == 1
    assert math.isnan(found[1])
    assert np.isnan(count_listed_words(pa.array(["ass"]), ["en"], {})).all()


def test_lines_equal_the_reference_on_real_text():
    texts = []
    for name in ("wiki", "news", "multilingual"):
        texts += [row["text"] for row in itertools.islice(given_rows(f"corpora/{name}"), 10)]
    made, removed = c4_lines(pa.array(texts, pa.large_string()), 5, LONGEST)
    expected = [reference_lines(text, 5) for text in texts]
    assert made.to_pylist() == [text for text, _ in expected]
    assert sum(removed.values()) == sum(sum(counts.values()) for _, counts in expected) > 0


def test_a_kernel_is_compiled_again_when_another_file_of_the_folder_changed(monkeypatch):
    def cache_state():
        return lines._edit._cache._index_key(None, SimpleNamespace(magic_tuple=tuple))

    before = cache_state()
    assert any(name == "words.py" for name, _, _ in compiled.folder_state(Path(lines.__file__).parent))
    monkeypatch.setattr(compiled, "folder_state", lambda folder: (("words.py", 1, 1),))
    assert cache_state() != before
