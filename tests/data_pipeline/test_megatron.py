"""Laws of the exchange with Megatron: the round trip, the documented layout, alien and torn files refused."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.tokens.megatron import MegatronConfig, export_megatron, import_megatron, open_indexed
from data_pipeline.tokens.pack import PackConfig, pack
from data_pipeline.tokens.token_shards import EncodedDocument, TokenShard, write_token_shard
from governance.config import validate
from governance.errors import ConfigError, ManifestError, MissingInput, PipelineError
from governance.manifest import describe, write_manifest
from governance.stage import Runtime
from tests.data_pipeline.test_token_shards import find_document
from tests.manifests import manifest_of

END = 0
BODIES = st.lists(st.lists(st.integers(1, 90), max_size=9), max_size=8)


def encoded(root, shards, vocabulary=100, answers=None):
    outputs = []
    for number, bodies in enumerate(shards):
        path = root / "encode" / ("e" * 16) / "train" / f"{number:05d}.tokens"
        documents = [
            EncodedDocument(f"s/{number}#{place}", np.array([*body, END]), 3, answers=answers)
            for place, body in enumerate(bodies)
        ]
        write_token_shard(path, documents, vocabulary, END)
        outputs.append(describe(path, root))
    manifest = manifest_of("encode", outputs, key="e")
    write_manifest(manifest, root)
    return manifest


def plain_read(prefix):
    """An independent reader of the documented layout: kind, sequences, document table."""
    data, tokens = (
        prefix.with_name(prefix.name + ".idx").read_bytes(),
        prefix.with_name(prefix.name + ".bin").read_bytes(),
    )
    assert data[:9] == b"MMIDIDX\x00\x00"
    (version,) = struct.unpack("<Q", data[9:17])
    (kind,) = struct.unpack("<B", data[17:18])
    sequences, entries = struct.unpack("<QQ", data[18:34])
    lengths = struct.unpack(f"<{sequences}i", data[34 : 34 + 4 * sequences])
    pointers = struct.unpack(f"<{sequences}q", data[34 + 4 * sequences : 34 + 12 * sequences])
    table = struct.unpack(f"<{entries}q", data[34 + 12 * sequences :])
    letter, size = {8: ("H", 2), 4: ("i", 4)}[kind]
    assert version == 1
    return (
        kind,
        [
            list(struct.unpack(f"<{n}{letter}", tokens[at : at + n * size]))
            for n, at in zip(lengths, pointers, strict=True)
        ],
        list(table),
    )


def test_marks_of_answers_are_not_lost_in_silence(tmp_path, caplog):
    export_megatron(encoded(tmp_path, [[[1, 2]]]), "train", tmp_path / "out" / "texts", tmp_path)
    assert not caplog.messages
    chats = encoded(tmp_path, [[[1, 2]]], answers=np.array([False, True, True]))
    export_megatron(chats, "train", tmp_path / "out" / "chats", tmp_path)
    assert "predicts every token" in caplog.text


@settings(max_examples=60)
@given(
    shards=st.lists(BODIES, min_size=1, max_size=3), vocabulary=st.sampled_from([100, 70_000]), most=st.integers(1, 30)
)
def test_export_and_import_give_the_same_documents(tmp_path_factory, shards, vocabulary, most):
    root = tmp_path_factory.mktemp("root")
    tokens = encoded(root, shards, vocabulary)
    export_megatron(tokens, "train", root / "out" / "corpus", root)
    documents = [[*body, END] for bodies in shards for body in bodies]
    kind, sequences, table = plain_read(root / "out" / "corpus")
    assert (kind, sequences, table) == (8 if vocabulary == 100 else 4, documents, list(range(len(documents) + 1)))
    config = MegatronConfig(vocabulary_size=vocabulary, end_of_document=END, shard_tokens=most)
    if not documents:
        with pytest.raises(PipelineError, match="holds no document"):
            import_megatron(root / "out" / "corpus", config, Runtime(root))
        return
    made = import_megatron(root / "out" / "corpus", config, Runtime(root))
    back = []
    for path in made.files("train", root):
        shard = TokenShard.open(path)
        ends = shard.document_ends.astype(int).tolist()
        assert ends[-1] <= most or len(ends) == 1
        back += [shard.tokens[a:b].tolist() for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        assert find_document(shard, f"corpus#{len(back) - 1}") == [len(ends) - 1]
    assert back == documents
    assert made.stats["train_documents"] == made.stats["documents_in"] == len(documents)
    assert made.stats["train_tokens"] == sum(map(len, documents))
    assert made.stats["ends_added"] == 0


def foreign(prefix, kind, sequences, table):
    """Files as another program writes them."""
    letter = {1: "B", 3: "h", 4: "i", 5: "q", 7: "f", 8: "H"}[kind]
    prefix.parent.mkdir(parents=True, exist_ok=True)
    lengths, pointers, data = [], [], b""
    for sequence in sequences:
        lengths.append(len(sequence))
        pointers.append(len(data))
        data += struct.pack(f"<{len(sequence)}{letter}", *sequence)
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, kind, len(sequences), len(table))
    index += struct.pack(f"<{len(lengths)}i{len(pointers)}q{len(table)}q", *lengths, *pointers, *table)
    prefix.with_name(prefix.name + ".bin").write_bytes(data)
    prefix.with_name(prefix.name + ".idx").write_bytes(index)


@pytest.mark.parametrize("kind", [1, 3, 4, 5, 8])
def test_documents_of_several_sequences_are_joined_and_ends_are_added(tmp_path, kind):
    foreign(tmp_path / "x", kind, [[1, 2], [3], [4, 7], [5]], [0, 2, 2, 3, 4])
    made = import_megatron(tmp_path / "x", MegatronConfig(vocabulary_size=10, end_of_document=7), Runtime(tmp_path))
    shard = TokenShard.open(made.files("train", tmp_path)[0])
    assert shard.tokens.tolist() == [1, 2, 3, 7, 7, 4, 7, 5, 7]
    assert shard.document_ends.tolist() == [4, 5, 7, 9]
    assert made.stats["ends_added"] == 3


def test_what_was_imported_is_packed_and_workers_do_not_matter(tmp_path):
    foreign(tmp_path / "x", 4, [[n % 9 + 1] * (n % 5 + 1) for n in range(50)], list(range(51)))
    config = MegatronConfig(vocabulary_size=10, end_of_document=0, shard_tokens=40)
    made = [import_megatron(tmp_path / "x", config, Runtime(tmp_path / str(n), workers=n)) for n in (1, 2)]
    assert made[0].digest == made[1].digest
    packed = pack(made[0], PackConfig(sequence_length=8), Runtime(tmp_path / "1"))
    assert packed.stats["train_predictions"] == made[0].stats["train_tokens"] - 50


def test_alien_and_torn_files_are_refused(tmp_path):
    config = MegatronConfig(vocabulary_size=10, end_of_document=0)
    with pytest.raises(MissingInput, match=r"absent\.bin"):
        import_megatron(tmp_path / "absent", config, Runtime(tmp_path))
    prefix, index = tmp_path / "x", tmp_path / "x.idx"
    foreign(prefix, 7, [[1.0]], [0, 1])
    with pytest.raises(ManifestError, match="token kind 7"):
        open_indexed(prefix)
    foreign(prefix, 4, [[1, 2], [3]], [0, 1, 2])
    whole = index.read_bytes()
    for data, words in (
        (b"PK\x03\x04" + whole[4:], "not a Megatron index"),
        (whole[:20], "not a Megatron index"),
        (whole[:-1], "is truncated"),
        (whole + b"\0", "is truncated or overlong"),
        (whole[:9] + b"\x02" + whole[10:], "version 2"),
        (whole[:-8] + struct.pack("<q", 7), "do not increase"),
        (whole[:34] + struct.pack("<i", -1) + whole[38:], "negative length"),
        (whole[:42] + struct.pack("<q", 2) + whole[50:], "within a token"),
        (whole[:34] + struct.pack("<i", 900) + whole[38:], "points beyond"),
        (whole[:42] + struct.pack("<q", 2**63 - 4) + whole[50:], "points beyond"),
    ):
        index.write_bytes(data)
        with pytest.raises(ManifestError, match=words):
            open_indexed(prefix)
    index.write_bytes(whole)
    (tmp_path / "x.bin").write_bytes(b"\1\0\0\0\2")
    with pytest.raises(ManifestError, match="bytes are not whole tokens"):
        open_indexed(prefix)


def test_ids_outside_the_vocabulary_and_roles_without_shards_are_reported(tmp_path):
    foreign(tmp_path / "x", 4, [[1, 12]], [0, 1])
    with pytest.raises(PipelineError, match="document 0 has ids from 1 to 12"):
        import_megatron(tmp_path / "x", MegatronConfig(vocabulary_size=10, end_of_document=0), Runtime(tmp_path))
    with pytest.raises(ConfigError, match="is not below 10"):
        validate({"vocabulary_size": 10, "end_of_document": 10}, MegatronConfig, "run.toml")
    with pytest.raises(PipelineError, match="no token shards of 'validation'"):
        export_megatron(encoded(tmp_path, [[[1]]]), "validation", tmp_path / "y", tmp_path)


def test_the_bytes_are_those_of_the_documented_layout(tmp_path):
    export_megatron(encoded(tmp_path, [[[17, 34]], [[51]]]), "train", tmp_path / "x", tmp_path)
    assert (tmp_path / "x.bin").read_bytes().hex() == "11002200000033000000"
    assert (tmp_path / "x.idx").read_bytes().hex() == (
        "4d4d49444944580000" "0100000000000000" "08" "0200000000000000" "0300000000000000"
        "03000000" "02000000" "0000000000000000" "0600000000000000"
        "0000000000000000" "0100000000000000" "0200000000000000"
    )  # fmt: skip
