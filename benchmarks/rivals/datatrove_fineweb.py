"""Decisions of datatrove's example `fineweb.py` on HTML pages: run by `benchmarks/data.py` in a venv of its own.

    python datatrove_fineweb.py PAGES.jsonl DECISIONS.jsonl LID176

The steps are the example's, from Trafilatura to FineWebQualityFilter, with its settings; the language is English, as
the example names its folder of the others. Differences: the language model is the small copy of lid.176, and a page may
take as long as it needs, so that no decision depends on the load.

Writes an object per page: the example's `reason` ("" where it stays). Then, where trafilatura does not remove
paragraphs that earlier pages had: `text_alone`, `english_alone` and, of an English text, `reason_alone`, that of the
rules. For their features come the words of an English text, and counts where it reaches C4's step, as in
`datatrove_rules.py`.
"""

import functools
import json
import sys
from pathlib import Path
from typing import Any

from loguru import logger

MIN_CONFIDENCE = 0.65


def main() -> None:
    """Decide on every page."""
    logger.remove()
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.utils import text as splitting
    from fasttext.FastText import _FastText

    # Only a larger cache: each text is split for four filters, each line for two.
    splitting.split_into_parts = functools.lru_cache(10_000)(splitting.split_into_parts.__wrapped__)
    c4 = C4QualityFilter(filter_no_terminal_punct=False)
    chain = [GopherRepetitionFilter(), GopherQualityFilter(), c4, FineWebQualityFilter()]
    pages, decisions, model = sys.argv[1:]
    identifier = _FastText(model)

    def english(text: str) -> bool:
        labels, scores = identifier.predict(text.replace("\n", " "), k=-1)
        return bool(dict(zip(labels, scores, strict=True)).get("__label__en", 0.0) > MIN_CONFIDENCE)

    once, alone = Trafilatura(favour_precision=True), Trafilatura(favour_precision=True, deduplicate=False)
    with Path(pages).open(encoding="utf-8") as source, Path(decisions).open("w", encoding="utf-8") as made:
        for line in source:
            row = json.loads(line)
            removed: list[bool] = []
            text = _extracted(once, row["html"], removed)
            plain = _extracted(alone, row["html"], []) if any(removed) else text
            spoken = bool(plain) and english(plain)
            found: dict[str, Any] = {"id": row["id"], "text_alone": plain, "english_alone": spoken}
            if spoken:
                found |= _judged(chain, plain)
            if not text:
                found["reason"] = "no_text"
            elif text == plain:
                found["reason"] = found["reason_alone"] if spoken else "language"
            else:
                found["reason"] = _reason(chain, text) if english(text) else "language"
            made.write(json.dumps(found) + "\n")


def _extracted(extractor: Any, page: str, removed: list[bool]) -> str:
    """Text of a page; `removed` takes down whether each paragraph was one too many."""
    from trafilatura import core, deduplication, htmlprocessing

    def noticed(*words: Any) -> bool:
        removed.append(deduplication.duplicate_test(*words))
        return removed[-1]

    core.duplicate_test = htmlprocessing.duplicate_test = noticed
    try:
        return extractor.extract(page) or ""
    except Exception:  # as datatrove's executor, which counts such a page and goes on
        return ""


def _reason(chain: list[Any], text: str) -> str:
    from datatrove.data import Document

    document = Document(text=text, id="")
    for step in chain:
        found = step.filter(document) if document.text else (False, "empty")
        if found is not True:
            return str(found[1])
    return ""


def _judged(chain: list[Any], text: str) -> dict[str, Any]:
    """Reason, words and counts of an English text."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import C4QualityFilter
    from datatrove.utils.text import split_into_sentences, split_into_words

    found = {"reason_alone": _reason(chain, text), "words": split_into_words(text, "eng")}
    if found["reason_alone"].startswith(("gopher", "dup_", "duplicated", "top_")):
        return found
    left = Document(text=text, id="")
    C4QualityFilter(filter_no_terminal_punct=False, min_num_sentences=-1, filter_curly_bracket=False).filter(left)
    return {
        **found,
        "words_left": len(split_into_words(left.text, "eng")) if left.text else 0,
        "sentences": sum(len(split_into_sentences(one, "eng")) for one in left.text.split("\n") if one),
    }


if __name__ == "__main__":
    main()
