"""The plain definition of a receipt's nearest document."""

import json
import re

from data_pipeline.tokens.token_shards import TokenShard, document_identity


def nearest_text(text, folder):
    """Over the tales of a run that its token shards hold, but for the text itself."""
    root = folder / "root"
    kept = {bytes(one) for path in root.glob("encode/*/*/*.tokens") for one in TokenShard.open(path).identities}
    others = []
    for name in "ab":
        for number, line in enumerate((folder / f"{name}.jsonl").read_text().splitlines()):
            tale = json.loads(line)["text"]
            if document_identity(f"tales/{name}.jsonl#{number}") in kept and tale != text:
                others.append(tale)
    return {"similarity": round(max(similarity(text, one) for one in others), 4), "documents": len(others)}


def similarity(one, other):
    """Jaccard index of the sets of five words in a row."""
    sets = []
    for text in (one, other):
        words = re.findall(r"\w+", text.lower())
        sets.append({tuple(words[at : at + 5]) for at in range(max(1, len(words) - 4))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])
