"""A slow, plain reference for the kernels of the bias counts."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

from governance.kernels.buffers import UNSPACED_RANGES
from governance.kernels.code_points import CLOSERS, TERMINALS
from governance.kernels.sentences import ABBREVIATIONS
from governance.kernels.word_lookup import KATAKANA_RANGES

Words = tuple[str, ...]


SAME = {
    "\u0622": "\u0627",
    "\u0623": "\u0627",
    "\u0625": "\u0627",
    "\u0671": "\u0627",
    "\u0649": "\u064a",
    "\u0130": "i",
}
BREAK = ""
"""Stands for a mark of punctuation behind a word of a script without spaces: no phrase runs over it."""


def _passed(one: str) -> bool:
    return one in "\u00ad\u0640\u0670\u200c\u200d" or "\u064b" <= one <= "\u065f" or "\ufe00" <= one <= "\ufe0f"


def _mark(one: str) -> bool:
    return unicodedata.category(one).startswith("M")


def _script(one: str) -> str:
    """ "alone", "katakana" or ""."""
    point = ord(one)
    if any(first <= point <= last for first, last in KATAKANA_RANGES):
        return "katakana"
    return "alone" if any(first <= point <= last for first, last in UNSPACED_RANGES) else ""


def pieces(text: str) -> list[str]:
    """The case-folded words of a text, and breaks."""
    found, word, of = [], "", ""
    for one in unicodedata.normalize("NFC", text):
        if _passed(one):
            continue
        whole = SAME.get(one, one).casefold()
        for part in whole:
            if part.isalnum() or part == "_" or _mark(part):
                script = of if _mark(one) else _script(one)
                if word and (script != of or (script == "alone" and not _mark(one))):
                    found.append(word)
                    word = ""
                word, of = word + part, script
            elif word:
                found += [word, BREAK] if of and not one.isspace() else [word]
                word, of = "", ""
    return [*found, word] if word else found


def split_words(text: str) -> list[str]:
    """The case-folded words of a text."""
    return [piece for piece in pieces(text) if piece != BREAK]


def sentence_spans(text: str) -> list[str]:
    """The sentences of a text in NFC, each with what follows it; those without a word joined to nothing."""
    pieces, start, i = [], 0, 0
    while i < len(text):
        if text[i] in TERMINALS or text[i] == "…":
            j = i
            while j < len(text) and (text[j] in TERMINALS or text[j] in CLOSERS or text[j] == "…"):
                j += 1
            if _ends(text, i, j):
                pieces.append(text[start:j])
                start = j
            i = j
        elif text[i] == "\n":
            j = i + 1
            while j < len(text) and text[j] in " \t\r":
                j += 1
            if text[j : j + 1] == "\n":
                pieces.append(text[start:j])
                start = j
            i = j
        else:
            i += 1
    return [piece for piece in [*pieces, text[start:]] if split_words(piece)]


def _ends(text: str, i: int, j: int) -> bool:
    marks = [one for one in text[i:j] if one in TERMINALS or one == "…"]
    if any(one not in ".!?…" for one in marks) or j == len(text):
        return True
    if not text[j].isspace():
        return False
    if set(marks) <= {".", "…"}:
        behind = text[j:].lstrip()
        if behind and behind[0].islower():
            return False
        touching = text[:i] and (_mark(text[i - 1]) or split_words(text[i - 1]) or _passed(text[i - 1]))
        word = (split_words(text[:i]) or [""])[-1] if touching else ""
        initial = len(word) == 1 and word not in "0123456789" and word < "\u0590"
        if text[i] == "." and len(marks) == 1 and (word in ABBREVIATIONS or initial):
            return False
    return True


def match(words: Sequence[str], terms: Mapping[Words, object]) -> list[tuple[int, Words]]:
    """(place, term) of each match: the longest that begins at a word, which uses up its words."""
    longest = max(map(len, terms), default=0)
    found, place = [], 0
    while place < len(words):
        for size in range(longest, 0, -1):
            term = tuple(words[place : place + size])
            if len(term) == size and term in terms:
                found.append((place, term))
                place += size
                break
        else:
            place += 1
    return found


def count(text: str, identity: Mapping[Words, list], others: Mapping[Words, list], instruments: int) -> dict:
    """Everything that the kernel counts of one text, as Counters and lists."""
    text = unicodedata.normalize("NFC", text)
    sentences = sentence_spans(text)
    words, of = [], []
    for number, sentence in enumerate(sentences):
        own = pieces(sentence)
        words += own
        of += [number] * len(own)
    mentions, used, groups = Counter(), set(), [set() for _ in sentences]
    for place, term in match(words, identity):
        used.update(range(place, place + len(term)))
        for _, group, _ in identity[term]:
            mentions[group] += 1
            groups[of[place]].add(group)
    categories = [set() for _ in sentences]
    scores = [[[0, 0] for _ in range(instruments)] for _ in sentences]
    dialects = Counter()
    for place, term in match(words, others):
        for kind, number, weight in others[term]:
            if kind == 0:
                categories[of[place]].add(number)
            elif kind == 2:
                dialects[number] += 1
            elif place not in used:
                scores[of[place]][number][0] += weight
                scores[of[place]][number][1] += 1
    top = dialects.most_common(2)
    clear = len(top) == 1 or (len(top) == 2 and top[0][1] > top[1][1])
    return {
        "words": sum(word != BREAK for word in words),
        "sentences": len(sentences),
        "mentions": mentions,
        "with_mention": Counter(group for here in groups for group in here),
        "categories": Counter(one for here in categories for one in here),
        "pairs": Counter((g, c) for here, there in zip(groups, categories, strict=True) for g in here for c in there),
        "scores": [(here, there) for here, there in zip(groups, scores, strict=True)],
        "dialect": top[0][0] if clear else -1,
    }


def keep_ratio(rows: Sequence[Mapping], group: str, stages: Mapping[str, tuple], strata: Sequence[str]) -> float:
    """Mantel and Haenszel's ratio of keep rates, group against "", from rows of `fates` of one axis.

    Args:
        rows: of the count table, as dictionaries.
        group: against the documents that mention no group of the axis.
        stages: "entered" and "kept" -> the (stage, reason) that count; a reason of None is any.
        strata: the columns that make a stratum.
    """
    cells: dict[tuple, Counter] = {}
    for row in rows:
        if row["group"] not in (group, ""):
            continue
        cell = cells.setdefault(tuple(row[name] for name in strata), Counter())
        for what, outcomes in stages.items():
            if any(row["stage"] == stage and reason in (None, row["reason"]) for stage, reason in outcomes):
                cell[what, row["group"] == group] += row["documents"]
    above = below = 0.0
    for cell in cells.values():
        own, others = cell["entered", True], cell["entered", False]
        if own and others:
            above += cell["kept", True] * others / (own + others)
            below += cell["kept", False] * own / (own + others)
    return above / below if below else float("nan")
