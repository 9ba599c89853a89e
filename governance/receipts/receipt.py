"""Receipts: a signed statement with a proof, of at most 2 kB.

    {"statement": {"answer": "used", "asked": {"kind": "url", "value": "https://a.example/page"},
     "found": {"copies": 1, "held_out": 0, "licence": "MIT"}, "read": {"times": 3, "steps": [4, 9, 15]},
     "checkpoint": "...64 hex", "step": 20, "corpus": "...64 hex", "names": 480, "root": "...48 hex", "salt": 0,
     "journal": 14, "filters": "ingest clean dedup redact", "time": "2026-01-01T00:00:00Z", "words": "..."},
     "proof": {"path": "1111", "siblings": "...", "end": "used", "shown": "..."}, "signature": "..."}

A text, and a long value, is asked for by `asked.name` (32 hexadecimal digits). `builds_on`, `removed` and
`nearest` (`{"similarity": 0.4, "documents": 480}`) are left out where empty; `found` is null where the corpus does not
hold the name; `read.steps` are the first eight. `verify_receipt.py` checks one.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from governance.errors import ConfigError
from governance.receipts.verify_receipt import SHOWN_STEPS, WORDS, name_of, signed_bytes
from governance.stage import now

if TYPE_CHECKING:
    from governance.receipts.name_tree import NameTree
    from governance.signing.dsse import SigningKey

_SHOWN_CHARACTERS = 120  # characters of a value, and of the words on a removed document


def receipt(
    names: NameTree, asked: tuple[str, str], steps: Sequence[int], facts: Mapping[str, Any], key: SigningKey
) -> dict[str, Any]:
    """Make and sign a receipt.

    Args:
        names: the tree of the corpus.
        asked: kind and value.
        steps: those at which the checkpoint's training read a document of this name, one for each time.
        facts: `checkpoint`, `step`, `builds_on`, `journal`, `filters`, `removed`, and `nearest` if it was asked for.
        key: whoever is to check the receipt knows its public half.

    Raises:
        ConfigError: the key is a job's, which readers know only by its certificate.
    """
    if key.certificate is not None:
        raise ConfigError("receipt: a job's key cannot sign it. Give the key that readers know: --signing-key PATH")
    kind, value = asked
    name = name_of(kind, value)
    tag = names.tag_of(kind, name)
    place = names.tree.place(tag)
    long = kind in ("text", "raw text") or len(value.encode()) > _SHOWN_CHARACTERS
    also = {name: facts[name] for name in ("builds_on", "removed", "nearest") if facts.get(name)}
    statement = {
        "answer": "used" if steps else "not used",
        "asked": {"kind": kind, **({"name": name.hex()} if long else {"value": value})},
        "found": None if place is None else names.found(place),
        "read": {"times": len(steps), "steps": list(steps[:SHOWN_STEPS])},
        **names.head,
        **{name: facts[name] for name in ("checkpoint", "step", "journal", "filters")},
        **also,
        "time": now(),
        "words": WORDS,
    }
    signature = base64.b64encode(key.private.sign(signed_bytes(statement))).decode("ascii")
    return {"statement": statement, "proof": names.tree.prove(tag), "signature": signature}
