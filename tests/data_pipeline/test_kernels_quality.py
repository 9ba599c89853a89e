"""The quality kernel equals a slow plain reference on every text, and its scan finds every text to repair."""

import itertools
import math
import re
import unicodedata
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.kernels.phrases import PHRASES, POLICY_PHRASES
from data_pipeline.kernels.quality import FEATURES, measure_texts
from data_pipeline.kernels.stop_words import STOP_WORDS
from data_pipeline.kernels.words import CLOSERS, QUOTES, TERMINALS
from data_pipeline.normalised_text import normalise
from governance.errors import ManifestError
from governance.kernels.buffers import MAY_NOT_BE_NFC, code_point_classes, scan_texts, text_buffers
from tests.given_data import given_rows

LANGUAGES = [*sorted(STOP_WORDS), "und"]
WORDS = [
    *("the", "be", "To", "OF", "and", "...", "…", "#", "-", "*", "•", "‣", "a", "aa", "naïve", "Straße", "não", "się"),
    *("word", "word", "word", "12", ",,,", "\u00a0", "\u3000", "\ufeff", "é", "e\u0301", "𝒳", "😀", "{", "}", "\x1f"),
    *("日本", "語", "日本語。", "『はい」", "カタカナ", "ｶﾞ", "ABC日本", "3月", "々", "らーめん"),
    *("ไทย", "ที่", "และ", "เป็นๆ", "ไ", "ሰላም፡ለዓለም።", "a་b", "ア፡ア"),
    *("ពាក្យ", "မြန်မာ", "က္", "ພາສາ", "བོད་ཡིག་", "༄༅།།", "བ", "हिन्दी", "है।", "العربية", "؟", "Ελληνικά", "Привет."),
    *("End.", "end!", '"Yes?"', "(No.)", "e.g.", "“Oh.”", "U.S.A", "x.日本", "a" * 15, "bb" * 8, "ccc" * 9, "tail”"),
    *(*PHRASES, "JavaScript", "Lorem", "ipsum", "terms", "of", "use", "cookies", "Cookie", "policy"),
]
MARKS = st.sampled_from([*"日語あアーｱかกเะำ่កក្្ကမ္བ་፡།।؟。！.!?…\"'”)」aAzß1٣ \n.#{-•\u0301\u200b\ufe0f"])
TEXTS = st.one_of(
    st.text(max_size=200),
    st.lists(st.sampled_from([*WORDS, "\n", "\n\n", " ", "\t", "\r\n", "\x00"]), max_size=120).map(" ".join),
    st.text(MARKS, max_size=60),
    st.lists(st.sampled_from(["one line", "another …", " - item", "", "  ", "end..."]), max_size=30).map("\n".join),
)


def share(part, whole):
    return part / max(1, whole)


def is_unspaced(character):
    point = ord(character)
    return (
        0x0E00 <= point <= 0x0FFF
        or 0x1000 <= point <= 0x109F
        or 0x1780 <= point <= 0x17FF
        or 0x3040 <= point <= 0x30FF
        or 0x31F0 <= point <= 0x31FF
        or 0x3400 <= point <= 0x4DBF
        or 0x4E00 <= point <= 0x9FFF
        or 0xF900 <= point <= 0xFAFF
        or 0x20000 <= point <= 0x3FFFF
    )


def repeats(items, length):
    seen, count, characters = set(), 0, 0
    for item in items:
        if item in seen:
            count += 1
            characters += length(item)
        seen.add(item)
    return count, characters


def ascii_lower(word):
    return "".join(c.lower() if c.isascii() else c for c in word)


def word_class(character):
    """Join, Letter or digit, Unit, Katakana, leading Vowel, Stacker, Tibetan, tsheg (H), by the stated rule."""
    point, category = ord(character), unicodedata.category(character)
    if character in "\u1039\u17d2":
        return "S"
    if character in "ะาำๅະາຳฯຯๆໆៗーｰﾞﾟ":
        return "J"
    if character == "\u1361":
        return "H"
    if 0x0E40 <= point <= 0x0E44 or 0x0EC0 <= point <= 0x0EC4:
        return "V"
    if 0x0F00 <= point <= 0x0FFF:
        return "T" if character.isalnum() else "H" if category == "Po" else "J"
    if (
        (0x30A1 <= point <= 0x30FF and character not in "・ー")
        or 0x31F0 <= point <= 0x31FF
        or 0x3031 <= point <= 0x3035
        or 0xFF66 <= point <= 0xFF9D
    ):
        return "K"
    if is_unspaced(character) and point > 0x30FF and character.isalpha():
        return "U"
    signs = 0x3005 <= point <= 0x3007 or 0x3021 <= point < 0x303C
    if category in ("Lo", "Lm", "Nl") and (is_unspaced(character) or signs):
        return "U"
    return "L" if character.isalnum() else "J"


REST = "(?:[JH]|S[JS]*[UH]?)*"
WORD = re.compile(f"[JSH]*(?:U{REST}|V[JS]*(?:[UH]{REST})?|(?:K[KJS]*|T[TJS]*|L[LJS]*)(?:H{REST})?)|[JSH]+")


def words_of(text):
    for run in text.split():
        for found in WORD.finditer("".join(map(word_class, run))):
            yield run[found.start() : found.end()]


def sentence_count(lines):
    count, open_ = 0, False
    for line in lines:
        runs = line.split()
        for run, following in zip(runs, [*runs[1:], ""], strict=True):
            for character in run:
                if character.isalpha():
                    open_ = True
                elif character in TERMINALS and not character.isascii() and open_:
                    count, open_ = count + 1, False
            tail = run[len(run.rstrip(TERMINALS + CLOSERS)) :]
            if open_ and ({*tail} & {*TERMINALS} - {"."} or ("." in tail and not following[:1].islower())):
                count, open_ = count + 1, False
        if open_ and line[-1] in TERMINALS + QUOTES + "…":
            count, open_ = count + 1, False
    return count


def has_bullet(line):
    first = next(iter(words_of(line)))
    return first in ("-", "*") or first[0] in "•‣◦▪"


def reference(text, language):
    words = list(words_of(text))
    small = "".join(c.lower() if c.isascii() else c for c in text)
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    paragraphs = [
        tuple(line.strip() for line in part.split("\n"))
        for part in re.split(r"\n(?:[^\S\n]*\n)+", text)
        if part.strip()
    ]
    paragraphs = [tuple(line for line in paragraph if line) for paragraph in paragraphs]
    characters, line_characters = sum(map(len, words)), sum(map(len, lines))
    found = {
        "words": len(words),
        "mean_word_length": share(characters, len(words)),
        "hash_ratio": share(text.count("#"), len(words)),
        "ellipsis_ratio": share(text.count("...") + text.count("…"), len(words)),
        "bullet_line_share": share(sum(has_bullet(line) for line in lines), len(lines)),
        "ellipsis_line_share": share(sum(line.endswith(("...", "…")) for line in lines), len(lines)),
        "alphabetic_word_share": share(sum(any(c.isalpha() for c in word) for word in words), len(words)),
        "stop_words": math.nan,
        "unspaced_share": share(sum(map(is_unspaced, text)), characters),
        "sentences": sentence_count(lines),
        "line_punctuation_share": share(sum(line[-1] in TERMINALS + QUOTES + "…" for line in lines), len(lines)),
        "short_line_share": share(sum(len(line) <= 30 for line in lines), len(lines)),
        "newline_ratio": share(text.count("\n"), len(words)),
        "has_lorem_ipsum": "lorem ipsum" in small,
        "has_curly_bracket": "{" in text,
        "has_javascript_line": "javascript" in small,
        "has_policy_line": any(phrase in small for phrase in POLICY_PHRASES),
    }
    if language in STOP_WORDS:
        found["stop_words"] = len(set(STOP_WORDS[language]) & set(map(ascii_lower, words)))
    for name, items, length in (("line", lines, len), ("paragraph", paragraphs, lambda item: sum(map(len, item)))):
        count, repeated = repeats(items, length)
        found[f"duplicate_{name}_share"] = share(count, len(items))
        found[f"duplicate_{name}_character_share"] = share(repeated, line_characters)
    for n in range(2, 11):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        if n <= 4:
            most = max(((count, sum(map(len, gram))) for gram, count in Counter(grams).items()), default=(0, 0))
            found[f"top_{n}_gram_share"] = min(1.0, share(most[0] * most[1], characters)) if most[0] > 1 else 0.0
        else:
            seen, covered = set(), set()
            for i, gram in enumerate(grams):
                if gram in seen:
                    covered.update(range(i, i + n))
                seen.add(gram)
            found[f"duplicate_{n}_gram_share"] = share(sum(len(words[i]) for i in covered), characters)
    return [float(found[name]) for name in FEATURES]


def measured(texts, languages):
    return measure_texts(pa.array(texts, pa.large_string()), languages)


@settings(max_examples=300)
@given(st.lists(st.tuples(TEXTS, st.sampled_from(LANGUAGES)), max_size=6))
@example([("", "en"), (" \n\t ", "en"), ("x" * 5000, "de"), ("the . . . the", "en"), ("a b " * 40, "und")])
@example([("\x00the of", "en"), ("a...\n b. .. \n……", "en"), ("p\nq\n\n \np\nq\n", "fr"), ("THE be", "en")])
def test_features_equal_the_reference(items):
    texts, languages = [text for text, _ in items], [language for _, language in items]
    expected = np.array([reference(*item) for item in items]).reshape(len(items), len(FEATURES))
    np.testing.assert_array_equal(measured(texts, languages), expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("日本語で、Python 3を使う。", ["日", "本", "語", "で、", "Python", "3", "を", "使", "う。"]),
        ("カタカナとラーメン", ["カタカナ", "と", "ラーメン"]),
        ("และไม่ใช่", ["และ", "ไม่", "ใช่"]),
        ("ភាសាខ្មែរ", ["ភា", "សា", "ខ្មែ", "រ"]),
        ("བོད་ཡིག།", ["བོད་", "ཡིག།"]),
        ("ሰላም፡ለዓለም።", ["ሰላም፡", "ለዓለም።"]),
        ("मैं घर जाता हूँ।", ["मैं", "घर", "जाता", "हूँ।"]),
        ("أهلاً وسهلاً؟", ["أهلاً", "وسهلاً؟"]),
    ],
)
def test_words_of_many_scripts(text, words):
    assert list(words_of(text)) == words
    values = dict(zip(FEATURES, measured([text], ["und"])[0], strict=True))
    assert values["words"] == len(words)
    assert values["mean_word_length"] * len(words) == pytest.approx(sum(map(len, words)), abs=1e-12)
    assert values["sentences"] == (text[-1] in TERMINALS)


@settings(max_examples=200)
@given(st.lists(TEXTS, max_size=6))
def test_shares_are_shares(texts):
    values = measured(texts, ["en"] * len(texts))
    shares = [column for column, name in enumerate(FEATURES) if name.endswith("_share")]
    assert ((values[:, shares] >= 0) & (values[:, shares] <= 1)).all()


@settings(max_examples=300)
@given(st.lists(st.one_of(TEXTS, st.text(st.characters(max_codepoint=0x350), max_size=30)), max_size=6))
@example(["\x85", "\u00a0", "a\rb", "\ufeff", "a\u0301", "\x7f", "tab\tand\nline"])
def test_scan_overlooks_nothing(texts):
    flags = scan_texts(*text_buffers(pa.array(texts, pa.large_string())))
    for text, flag in zip(texts, flags, strict=True):
        assert flag or normalise(text) == text
        assert bool(flag & 1) == bool(re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]", text))


def test_scan_overlooks_no_character_and_no_pair_with_a_mark():
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    for texts in (list(map(chr, points)), [f"\u1100{chr(p)}" for p in points], [f"\u0323{chr(p)}" for p in points]):
        flags = scan_texts(*text_buffers(pa.array(texts, pa.large_string())))
        unsettled = flags & MAY_NOT_BE_NFC > 0
        assert all(unsettled[k] or unicodedata.is_normalized("NFC", text) for k, text in enumerate(texts))


@pytest.mark.parametrize("text", ["don’t — “so”", "中文。かな", "Tiếng Việt", "ที่นี่", "한국어", "हिन्दी", "🙂", "x" * 99])
def test_scan_settles_ordinary_texts(text):
    text = unicodedata.normalize("NFC", text)
    assert scan_texts(*text_buffers(pa.array([text, text * 9], pa.large_string()))).tolist() == [0, 0]


def test_classes_are_those_of_python():
    classes = code_point_classes()
    for point in [*range(0x3500), *range(0xD7A0, 0xE010), *range(0xFE00, 0x10400)]:
        assert bool(classes[point] & 1) == chr(point).isspace()
        assert bool(classes[point] & 2) == chr(point).isalpha()


def test_buffers_of_slices_and_chunks():
    texts = ["one", "", "zwei", "trois"]
    for column in (
        pa.array(texts).slice(1, 2),
        pa.array(texts, pa.large_string()).slice(1, 2),
        pa.chunked_array([texts[1:2], texts[2:3]]),
    ):
        data, offsets = text_buffers(column)
        found = [bytes(data[a:b]).decode() for a, b in pairwise(offsets)]
        assert found == texts[1:3]
    assert len(text_buffers(pa.chunked_array([], pa.large_string()))[1]) == 1
    with pytest.raises(ManifestError, match="null"):
        text_buffers(pa.array(["a", None]))


def test_every_stop_word_is_one_word_as_normalised():
    assert len(STOP_WORDS) >= 30
    for language, words in STOP_WORDS.items():
        assert len(set(words)) == len(words) == (16 if language in ("sr", "el") else 8)  # Cyrillic and Latin, accents
        for word in words:
            assert word == word.lower() == unicodedata.normalize("NFC", word)
            assert list(words_of(word)) == [word]


def test_features_equal_the_reference_on_real_text():
    texts = []
    for name in ("news", "code", "udhr", "multilingual"):
        texts += [row["text"] for row in itertools.islice(given_rows(f"corpora/{name}"), 60)]
    languages = [LANGUAGES[i % len(LANGUAGES)] for i in range(len(texts))]
    expected = np.array([reference(*item) for item in zip(texts, languages, strict=True)])
    np.testing.assert_array_equal(measured(texts, languages), expected)
