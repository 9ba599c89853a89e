"""Verifier of Assay's receipts: one file, without Assay and the corpus.

    python verify_receipt.py receipt.json --key signing-key.pem.pub [--asked URL|ID|FILE] [--journal journal.jsonl]

It needs `cryptography`. Status 0: all holds; 1: each fault is named. The tree (hashes are SHA-256, cut to 24 bytes):

    tag   16 bytes of H(15 bytes of the corpus's digest, salt, kind, name); its bits lead from the root down
    node  H(1, left, right); where no name is below: 24 zero bytes
    stub  H(2, i, next bits of the tag, next stub): four (2, 6, 8, 16 bits) of a tag that is alone, then its leaf
    leaf  H(0, blind, tag, copies, held out, licence)
"""

import argparse
import base64
import hashlib
import json
import os
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any

KINDS, NOTHING, STUB_BITS, SHOWN_STEPS = {"text": 1, "raw text": 2, "url": 3, "id": 4}, bytes(24), (2, 6, 8, 16), 8
WORDS = (
    "Proven: whether the tree holds this name. Signed only: completeness, checkpoint, steps, filters, nearest. Not "
    "covered: paraphrases, near copies, quotes."
)


def cut_hash(*parts: bytes) -> bytes:
    """SHA-256 of the parts, cut to 24 bytes."""
    return hashlib.sha256(b"".join(parts)).digest()[:24]


def name_of(kind: str, value: str) -> bytes:
    """The 16 bytes of a name; of a text, by its letters."""
    if kind == "text":
        value = re.sub("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]", "", re.sub("\r\n?|[\x0b\x0c\x85]", "\n", value))
        value = "".join(map(str.casefold, re.sub("[ \t\n\r\x0b\x0c]", "", unicodedata.normalize("NFC", value))))
    return hashlib.sha256(value.encode("utf-8")).digest()[:16]


def bits_of(tag: bytes, first: int, count: int) -> int:
    """Bits [first, first + count) of a tag, as a number."""
    return int.from_bytes(tag, "big") >> (128 - first - count) & ((1 << count) - 1)


def leaf_value(found: Any) -> bytes:
    """Bytes of a leaf: copies, held-out copies, licence."""
    counts = b"".join(int(found[name]).to_bytes(4, "big") for name in ("copies", "held_out"))
    return counts + hashlib.sha256(found["licence"].encode("utf-8")).digest()[:12]


def root_of_proof(tag: bytes, proof: Any, found: Any) -> bytes:
    """The root that a proof leads to; ValueError: it leads nowhere."""
    packed, shown = base64.b85decode(proof["siblings"]), bytes.fromhex(proof["shown"])
    path, end, node, above = str(proof["path"]), proof["end"], NOTHING, 0
    if set(path) - {"0", "1"} or len(path) > 96 or 24 * path.count("1") != len(packed):
        raise ValueError("proof: was cut, or has parts too many")
    own = [bits_of(tag, len(path) + sum(STUB_BITS[:number]), width) for number, width in enumerate(STUB_BITS)]
    if end == "used" and len(shown) == 16 and found is not None:
        node, above = cut_hash(b"\0", shown, tag, leaf_value(found)), len(own)
    elif isinstance(end, list) and len(shown) == 24 and 0 <= end[0] < len(own):  # another tag is alone here
        above, bits = end
        if bits == own[above]:
            raise ValueError("proof: ends at this very name, and claims that it is another")
        node = cut_hash(bytes([2, above]), bits.to_bytes(2, "big"), shown)
    elif end != "nothing" or shown:
        raise ValueError("proof: its end is of no known form")
    for number in reversed(range(above)):
        node = cut_hash(bytes([2, number]), own[number].to_bytes(2, "big"), node)
    for level in reversed(range(len(path))):  # 1: this sibling is given; 0: nothing is below it
        beside = packed[24 * path[:level].count("1") :][:24] if path[level] == "1" else NOTHING
        node = cut_hash(b"\1", *((beside, node) if bits_of(tag, level, 1) else (node, beside)))
    return node


def signed_bytes(statement: Any) -> bytes:
    """Bytes of a statement that are signed."""
    return f"assay-receipt-1\n{json.dumps(statement, sort_keys=True, ensure_ascii=False)}".encode()


def _signed(key: Any, signature: str, message: bytes) -> bool:
    try:
        return key.verify(base64.b64decode(signature, validate=True), message) is None
    except Exception:  # raised by `cryptography` or base64
        return False


def faults(receipt: Any, key: Any, asked: Any = None, journal: Any = None, kinds: Any = KINDS) -> "list[str]":
    """Every fault of a receipt, each after its kind; none: all holds."""
    try:
        if not _signed(key, receipt["signature"], signed_bytes(receipt["statement"])):
            return ["signature: the statement was altered, or another key signed it"]
        found = _statement_faults(receipt["statement"], receipt["proof"], asked, kinds)
        return found + ([] if journal is None else _journal_faults(receipt["statement"], key, journal.splitlines()))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, IndexError) as error:
        return [str(error) if str(error)[:5] == "proof" else f"form: not a receipt ({type(error).__name__}: {error})"]


def _statement_faults(said: Any, proof: Any, asked: Any, kinds: Any) -> "list[str]":
    kind, value, found, read = said["asked"]["kind"], said["asked"].get("value"), said["found"], said["read"]
    name = bytes.fromhex(said["asked"]["name"]) if value is None else name_of(kind, value)
    tag = hashlib.sha256(bytes.fromhex(said["corpus"])[:15] + bytes([said["salt"], KINDS[kind]]) + name).digest()[:16]
    same = asked is None or (kind in kinds and name_of(kind, asked) == name)
    copies, held_out = (found["copies"], found["held_out"]) if found else (0, 0)
    checks = [
        (said["words"] == WORDS and len(name) == 16, "form: is of another version"),
        (same, f"name: is not about this question, but about {kind} {value or name.hex()}"),
        ((copies + held_out > 0) == (proof["end"] == "used"), "counts: contradict the proof's end"),
        (len(read["steps"]) == min(read["times"], SHOWN_STEPS), "counts: are not those of the steps"),
        (copies > 0 or not read["times"], "counts: what is not in the corpus cannot be read"),
        (said["answer"] == ("used" if read["times"] else "not used"), "answer: does not follow from the counts"),
        (root_of_proof(tag, proof, found).hex() == said["root"], "proof: root, counts or proof were altered"),
    ]
    return [fault for holds, fault in checks if not holds]


def _journal_faults(said: Any, key: Any, lines: "list[bytes]") -> "list[str]":
    head = json.dumps({name: said[name] for name in ("corpus", "names", "root", "salt")}, sort_keys=True, indent=1)
    if not 0 <= said["journal"] < len(lines):
        return ["journal: lacks the line that states the tree: it was cut, or is another root's"]
    payload = rb'"envelope":{"payload":"((?:[A-Za-z\d+/]{4})*(?:[A-Za-z\d+/]{2}==|[A-Za-z\d+/]{3}=)?)"'
    bodies = [base64.b64decode(b"".join(re.findall(payload, line))) for line in lines]
    for number, body in enumerate(bodies[1:], 1):  # a torn line has no body; the line after it holds its hash
        if body and hashlib.sha256(lines[number - 1]).hexdigest().encode() not in body:
            return [f"journal: line {number} does not follow line {number - 1}: one was altered, dropped or moved"]
    signature, body = json.loads(lines[said["journal"]])["envelope"]["signatures"][0]["sig"], bodies[said["journal"]]
    if not _signed(key, signature, b"DSSEv1 28 application/vnd.in-toto+json %d %b" % (len(body), body)):
        return ["journal: the line that states the tree was altered, or another key signed it"]
    return ["journal: states another tree"] * (hashlib.sha256(f"{head}\n".encode()).hexdigest() not in body.decode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Verifies a receipt. Needs: pip install cryptography")
    _ = parser.add_argument("receipt"), parser.add_argument("--key", required=True)
    _ = parser.add_argument("--asked"), parser.add_argument("--journal")
    given = parser.parse_args()
    try:
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        text = os.path.isfile(given.asked or "")  # a hash of it as of an id or a URL would prove nothing
        asked = Path(given.asked).read_bytes().decode() if text else given.asked
        kinds = ["text", "raw text"] if text else ["url" if re.match(r"[A-Za-z][\w+.-]*://", asked or "") else "id"]
        answer, public = json.loads(Path(given.receipt).read_bytes()), load_pem_public_key(Path(given.key).read_bytes())
        wrong = faults(answer, public, asked, Path(given.journal).read_bytes() if given.journal else None, kinds)
    except Exception as error:  # a file that is absent, or of another form
        sys.exit(f"{type(error).__name__}: {error}")
    sys.exit("\n".join(wrong) or sys.stdout.write(json.dumps(answer["statement"], indent=1) + "\n") * 0)
