"""Decisions of datatrove's FineWeb chain: run by `benchmarks/data.py` in a venv of its own.

    python datatrove_rules.py DOCUMENTS.jsonl DECISIONS.jsonl

Writes an object a document: its id, the reason of the first filter that removes it ("" if none does), the words of its
text as datatrove cuts them, and words and sentences of the text that C4's step leaves.
"""

import json
import sys
from pathlib import Path

from loguru import logger


def main() -> None:
    """Filter every document."""
    logger.remove()
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.utils.text import split_into_sentences, split_into_words

    c4 = C4QualityFilter(filter_no_terminal_punct=False)
    chain = [GopherRepetitionFilter(), GopherQualityFilter(), c4, FineWebQualityFilter()]
    edit = C4QualityFilter(filter_no_terminal_punct=False, min_num_sentences=-1, filter_curly_bracket=False)
    documents, decisions = (Path(word) for word in sys.argv[1:])
    with documents.open(encoding="utf-8") as source, decisions.open("w", encoding="utf-8") as made:
        for line in source:
            row = json.loads(line)
            reason = ""
            document = Document(text=row["text"], id=row["id"])
            for step in chain:
                found = step.filter(document) if document.text else (False, "empty")
                if found is not True:
                    reason = found[1]
                    break
            left = Document(text=row["text"], id=row["id"])
            edit.filter(left)
            counts = {
                "words": split_into_words(row["text"], "eng"),
                "words_left": len(split_into_words(left.text, "eng")) if left.text else 0,
                "sentences": sum(len(split_into_sentences(one, "eng")) for one in left.text.split("\n") if one),
            }
            made.write(json.dumps({"id": row["id"], "reason": reason, **counts}) + "\n")


if __name__ == "__main__":
    main()
