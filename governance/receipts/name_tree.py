"""Stage "receipts": the tree over the names of a token corpus.

Its files, besides `head.json` (corpus, names, root, salt), which the journal states in a line of its own, are of the
form of `mapped_arrays.py`:

    names.bin       high, low    uint64 [names]       the halves of each tag, ascending
                    leaves       uint8 [names, 20]    copies, held-out copies, licence: `verify_receipt.leaf_value`
                    nodes        uint8 [nodes, 24]    the upper levels of the tree
                    secret       uint8 [32]           what blinds the leaves
    documents.bin   starts       uint64 [names + 1]   the documents of name i: `documents[starts[i]:starts[i + 1]]`
                    documents    uint32 [entries]     numbers of documents
                    identities   uint8 [documents, 16]
                    licences     uint8 [bytes]        the licences that leaves name by a digest, a list in JSON

The secret is a hash over all tags: it is known to whoever has the whole corpus, and to nobody else, and the same corpus
gives the same tree. Copy this artifact nowhere that the corpus itself may not go.

Price: see `blinded_tree.py`; sorting takes a tenth of a microsecond a name. Everything is in memory: 150 bytes a name.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from governance.config import Section
from governance.errors import ManifestError, PipelineError, read_errors
from governance.files import running_sha256, sha256_bytes, write_json
from governance.kernels.name_nodes import leaves_of_names, name_tags, sums_of_names
from governance.manifest import Manifest, Output, describe, output_fault
from governance.receipts.blinded_tree import LEAF_BYTES, NODE_BYTES, BlindedTree, Words, build, depth_of
from governance.receipts.mapped_arrays import map_arrays, write_arrays
from governance.receipts.verify_receipt import KINDS, leaf_value
from governance.stage import Made, Recipe, Runtime, run_stage

VERSION = 4
HEAD, NAMES, DOCUMENTS = "head.json", "names.bin", "documents.bin"
_SALTS, _SECRET_BYTES = 16, 32
_OF_NAMES, _OF_DOCUMENTS = ("high", "low", "leaves"), ("starts", "documents", "identities", "licences")

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, repr=False)
class CorpusNames:
    """Names of the documents of a token corpus."""

    identities: Bytes
    """[documents, 16]."""
    copies: Integers
    """[documents], in the training split."""
    held_out: Integers
    """[documents], copies in the validation split."""
    licences: npt.NDArray[np.int64]
    """[documents], numbers into `licence_words`."""
    licence_words: tuple[str, ...]
    kinds: Bytes
    """[entries], see `verify_receipt.KINDS`."""
    names: Bytes
    """[entries, 16]."""
    documents: Integers
    """[entries], the document of each name."""
    shard_tokens: tuple[int, ...] = ()
    """Tokens of each shard of the training split, which number its rows."""


@dataclass(frozen=True, repr=False)
class NameTree:
    """An open tree of a corpus, memory-mapped."""

    tree: BlindedTree
    head: dict[str, Any]
    licences: dict[bytes, str]
    """Digest in a leaf -> licence."""
    starts: Any
    documents: Any
    identities: Any

    def tag_of(self, kind: str, name: bytes) -> bytes:
        """The tag of a name."""
        seed = bytes.fromhex(self.head["corpus"])[:15] + bytes([self.head["salt"], KINDS[kind]])
        return bytes.fromhex(sha256_bytes(seed + name))[:16]

    def found(self, place: int) -> dict[str, Any]:
        """Content of a name's leaf.

        Raises:
            ManifestError: it has a licence that the tree does not know.
        """
        leaf = bytes(self.tree.leaves[place])
        if leaf[8:] not in self.licences:
            raise ManifestError(f"{NAMES} of the receipts: was altered. Remove the folder of the tree, and ask again")
        copies, held_out = (int.from_bytes(part, "big") for part in (leaf[:4], leaf[4:8]))
        return {"copies": copies, "held_out": held_out, "licence": self.licences[leaf[8:]]}

    def identities_of(self, place: int) -> frozenset[bytes]:
        """Identities of the documents of a name."""
        numbers = self.documents[int(self.starts[place]) : int(self.starts[place + 1])]
        return frozenset(bytes(self.identities[number]) for number in numbers.tolist())


def name_tree(tokens: Manifest, read: Callable[[], CorpusNames], runtime: Runtime) -> Manifest:
    """Find or make the tree over the names of a token corpus.

    Args:
        tokens: the token corpus.
        read: reads the names of its documents.
        runtime: where.

    Raises:
        PipelineError: as `read`.
    """
    recipe, corpus = Recipe("receipts", VERSION, Section()), tokens.as_input()

    def make(folder: Path) -> Made:
        names = read()
        salt, entries = _sorted_tags(names, corpus.digest)
        arrays = _grouped(names, *entries)
        hash_all = running_sha256()
        hash_all.update(b"assay receipts secret")
        for name in ("high", "low"):
            hash_all.update(memoryview(arrays[name]).cast("B") if len(arrays[name]) else b"")
        secret = hash_all.digest()
        tree = build(arrays["high"], arrays["low"], arrays["leaves"], secret)
        head = {"corpus": corpus.digest, "names": len(arrays["high"]), "root": tree.root.hex(), "salt": salt}
        upper = {"nodes": tree.nodes, "secret": np.frombuffer(secret, np.uint8)}
        write_arrays(folder / NAMES, {name: arrays[name] for name in _OF_NAMES} | upper)
        write_arrays(folder / DOCUMENTS, {name: arrays[name] for name in _OF_DOCUMENTS})
        write_json(folder / HEAD, head)
        outputs = [describe(folder / name, runtime.root) for name in (NAMES, DOCUMENTS, HEAD)]
        return Made(outputs, {**head, "documents": len(names.identities), "shard_tokens": list(names.shard_tokens)})

    return run_stage(recipe, [corpus], runtime, make, alone=True)


def head_of(made: Manifest) -> Output:
    """The head of a tree, as a file of its artifact."""
    return made.named(HEAD)


def open_names(made: Manifest, root: Path) -> NameTree:
    """Map the tree of a corpus.

    Raises:
        ManifestError: a file of it cannot be read, or is not as its manifest says. What a proof holds is not hashed
            here: a proof from altered files does not lead to the root.
    """
    folder = root / made.folder
    unproven = [made.named(name) for name in (HEAD, DOCUMENTS)]
    if faults := [f"{output.path}: {fault}" for output in unproven if (fault := output_fault(output, root))]:
        raise ManifestError(f"{folder}: is not the tree that was made: {'; '.join(faults)}. Remove it, and ask again")
    with read_errors(folder):
        of_names, of_documents = map_arrays(folder / NAMES), map_arrays(folder / DOCUMENTS)
        head = json.loads((folder / HEAD).read_bytes())
        if {name: (array.dtype.str, array.shape) for name, array in of_names.items()} != _forms(head["names"]):
            raise ValueError(f"{NAMES} has another form")  # nothing has hashed it
        high, low, leaves, nodes = (of_names[name] for name in (*_OF_NAMES, "nodes"))
        tree = BlindedTree(high, low, leaves, nodes, depth_of(len(high)), bytes(of_names["secret"]))
        if tree.root.hex() != made.stats["root"] or head["root"] != made.stats["root"]:
            raise ValueError("its root is not the one in its manifest")
        starts, documents, identities, words = (of_documents[name] for name in _OF_DOCUMENTS)
        licences = {_licence(word)[8:]: word for word in json.loads(bytes(words))}
        return NameTree(tree, head, licences, starts, documents, identities)


def _forms(names: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each array of `names.bin`."""
    rows = {"leaves": (names, LEAF_BYTES), "nodes": (2 << depth_of(names), NODE_BYTES), "secret": (_SECRET_BYTES,)}
    halves = dict.fromkeys(("high", "low"), ("<u8", (names,)))
    return {**halves, **{name: ("|u1", shape) for name, shape in rows.items()}}


def _licence(words: str) -> bytes:
    return leaf_value({"copies": 0, "held_out": 0, "licence": words})


def _sorted_tags(names: CorpusNames, corpus: str) -> tuple[int, tuple[Any, Any, Any]]:
    """Salt, and the entries' tags (two halves) in order, with their documents.

    The salt is the first with which no two names share the first half of their tags.
    """
    for salt in itertools.count():
        high, low = name_tags(bytes.fromhex(corpus)[:15] + bytes([salt]), names.kinds, names.names)
        order = _in_order(high)
        high, low = high[order], low[order]
        if not np.any((high[1:] == high[:-1]) & (low[1:] != low[:-1])):
            return salt, (high, low, names.documents[order])
        if salt == _SALTS:
            raise PipelineError("receipts: too many names for tags of 64 bits")
    raise AssertionError


def _in_order(high: Words) -> Integers:
    """Places of ascending numbers, equal ones in their order.

    Few are equal, so this is faster than a stable sort.
    """
    order = np.argsort(high)
    ranked = high[order]
    equal = np.append(False, ranked[1:] == ranked[:-1])
    [tied] = np.nonzero(equal | np.append(equal[1:], False)[: len(equal)])
    order[tied] = order[tied][np.lexsort((order[tied], ranked[tied]))]
    return order


def _grouped(names: CorpusNames, high: Any, low: Any, documents: Integers) -> dict[str, Any]:
    """Arrays of the distinct names, and the licences that leaves name."""
    begins = np.append(True, high[1:] != high[:-1])[: len(high)]
    starts = np.append(np.flatnonzero(begins), len(high))
    words = list(names.licence_words)
    leaves = np.zeros((0, LEAF_BYTES), np.uint8)
    if len(high):
        facts = np.stack([names.copies, names.held_out, names.licences], axis=1)
        sums, least, most = sums_of_names(starts, documents, facts)
        for place in np.flatnonzero(least != most).tolist():
            numbers = names.licences[documents[starts[place] : starts[place + 1]]]
            words.append(" AND ".join(sorted({words[number] for number in numbers.tolist()})))
            least[place] = len(words) - 1
        digests = np.frombuffer(b"".join(_licence(word)[8:] for word in words), np.uint8).reshape(len(words), -1)
        leaves = leaves_of_names(sums, least, digests)
    return {
        "high": np.ascontiguousarray(high[begins]),
        "low": np.ascontiguousarray(low[begins]),
        "leaves": leaves,
        "starts": starts.astype(np.uint64),
        "documents": documents.astype(np.uint32),
        "identities": np.ascontiguousarray(names.identities),
        "licences": np.frombuffer(json.dumps(list(dict.fromkeys(words))).encode("ascii"), np.uint8),
    }
