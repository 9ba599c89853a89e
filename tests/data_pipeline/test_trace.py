"""Every token leads back to its document, its file and its characters; a missing artifact is reported."""

import json

import numpy as np
import pytest

from data_pipeline.documents import read_table
from data_pipeline.ingest import IngestConfig, ingest
from data_pipeline.readers.sources import JsonlSource
from data_pipeline.tokens.encode import EncodeConfig, encode
from data_pipeline.tokens.megatron import MegatronConfig, export_megatron, import_megatron
from data_pipeline.tokens.pack import PackConfig, pack
from data_pipeline.tokens.packed_rows import PackedRows
from data_pipeline.tokens.token_shards import TokenShard
from data_pipeline.tokens.tokenizer import TokenizerConfig, load_encoder, train_tokenizer
from data_pipeline.trace import explain, trace
from governance.errors import ManifestError, MissingInput, PipelineError
from governance.files import remove_tree, sha256_bytes, sha256_file
from governance.stage import Runtime

TEXTS = [f"Line {n}: the fox läuft 中文 über {n * n} Wiesen 🦊. " * (1 + n % 4) for n in range(24)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace")
    source = folder / "in"
    source.mkdir()
    for part in range(2):
        lines = [json.dumps({"text": text, "licence": "CC0-1.0"}) + "\n" for text in TEXTS[part * 12 : part * 12 + 12]]
        (source / f"{part}.jsonl").write_text("".join(lines))
    runtime = Runtime(folder / "root")
    configured = JsonlSource(type="jsonl", name="notes", paths=("in/*.jsonl",), licence="CC0-1.0")
    raw = ingest((configured,), IngestConfig(), folder, runtime)
    tokenizer = train_tokenizer(raw, TokenizerConfig(vocabulary_size=300), runtime)
    return folder, raw, tokenizer, encode(raw, tokenizer, EncodeConfig(validation_share=0.3), runtime)


def test_every_token_leads_to_its_text(corpus):
    folder, _, tokenizer, tokens = corpus
    root = folder / "root"
    encoder = load_encoder(tokenizer, root)
    seen = set()
    for path in [*tokens.files("train", root), *tokens.files("validation", root)]:
        shard, covered = TokenShard.open(path), {}
        for offset in range(len(shard.tokens)):
            found = trace(path, offset, root)
            document = found.document
            seen.add(document.id)
            number = int(document.file.split(".")[0]) * 12 + document.position
            assert (document.text, document.source) == (TEXTS[number], "notes")
            assert document.sha256 == sha256_bytes(TEXTS[number].encode())
            assert found.problem == ""
            if found.token == encoder.end_of_document:
                assert found.span is None
                continue
            first, stop = found.span
            covered.setdefault(document.id, [document.text, []])[1] += range(first, stop)
            piece = encoder.decode([found.token])
            assert document.text[first:stop] == piece or "\ufffd" in piece
        for text, characters in covered.values():
            assert sorted(set(characters)) == list(range(len(text)))
    assert len(seen) == len(TEXTS)


def test_the_chain_reaches_the_source_file_with_digests(corpus):
    folder, raw, tokenizer, tokens = corpus
    path = next(p for p in tokens.files("train", folder / "root") if len(TokenShard.open(p).tokens))
    found = trace(path, 0)
    chain = {ancestor.stage: ancestor for ancestor in found.chain}
    assert [chain[m.stage].digest for m in (tokens, raw, tokenizer)] == [m.digest for m in (tokens, raw, tokenizer)]
    assert chain["file"].path == f"notes/{found.document.file}"
    assert chain["file"].digest == sha256_file(folder / "in" / found.document.file)
    lines = explain(found)
    for words in (found.document.id, found.document.sha256, f"record {found.document.position}", "CC0-1.0", "notes/"):
        assert words in lines


def test_positions_of_packed_rows_lead_there_too(corpus):
    folder, _, _, tokens = corpus
    root = folder / "root"
    packed = pack(tokens, PackConfig(sequence_length=64), Runtime(root))
    [path] = packed.files("train", root)
    index = PackedRows.open(path)
    piece = index.pieces[0]
    found = trace(path, 1, root)
    assert found.offset == int(piece["start"]) + 1
    assert found.shard == {o.sha256: root / o.path for o in tokens.outputs}[index.shards[int(piece["shard"])]]
    assert [ancestor.stage for ancestor in found.chain[:2]] == ["pack", "encode"]
    assert found.document is not None
    ends = index.row_ends.astype(int)
    used = np.add.reduceat(index.pieces["length"].astype(int), np.concatenate(([0], ends[:-1])))
    row = int(np.argmin(used))
    assert used[row] < 64
    with pytest.raises(PipelineError, match="is padding"):
        trace(path, row * 64 + 63, root)
    with pytest.raises(PipelineError, match="its positions are 0 to"):
        trace(path, index.count * 64, root)


def test_a_moved_root_and_a_documents_artifact_that_is_gone(corpus, tmp_path):
    import shutil

    folder, raw, _, tokens = corpus
    shutil.copytree(folder / "root", tmp_path / "moved")
    root = tmp_path / "moved"
    path = next(p for p in tokens.files("train", root) if len(TokenShard.open(p).tokens))
    before = trace(path, 3, root)
    assert before.document is not None
    remove_tree(root / raw.folder)
    after = trace(path, 3, root)
    assert (after.identity, after.document, after.span) == (before.identity, None, None)
    assert "are gone (ingest/" in after.problem
    assert any(ancestor.note == "is gone" for ancestor in after.chain)
    assert after.problem in explain(after)
    [gone] = [p for p in [root / raw.folder] if not p.exists()]
    shutil.copytree(folder / "root" / raw.folder, gone)
    shard = gone / "documents" / f"{path.stem}.parquet"
    ids = read_table(shard, columns=["id"])["id"].to_pylist()
    assert before.row == ids.index(before.document.id)
    shard.unlink()
    assert f"{path.stem}.parquet is gone" in trace(path, 3, root).problem


def test_imported_tokens_have_an_identity_only(corpus, tmp_path):
    folder, _, _, tokens = corpus
    export_megatron(tokens, "train", tmp_path / "x", folder / "root")
    config = MegatronConfig(vocabulary_size=300, end_of_document=0)
    made = import_megatron(tmp_path / "x", config, Runtime(tmp_path / "root"))
    found = trace(made.files("train", tmp_path / "root")[0], 0)
    assert found.document is None
    assert "has no documents" in found.problem
    assert {ancestor.path for ancestor in found.chain} == {made.path, "x.bin", "x.idx"}


def test_missing_artifacts_are_reported(corpus, tmp_path):
    folder, raw, _, tokens = corpus
    root = folder / "root"
    path = tokens.files("train", root)[0]
    for offset in (-1, len(TokenShard.open(path).tokens)):
        with pytest.raises(PipelineError, match=f"has no token {offset}; its tokens are 0 to"):
            trace(path, offset, root)
    with pytest.raises(MissingInput, match="no such shard"):
        trace(root / "encode" / "x" / "train" / "9.tokens", 0)
    with pytest.raises(ManifestError, match="not listed"):
        trace(path, 0, tmp_path)
    with pytest.raises(ManifestError, match="is not a token shard"):
        trace(raw.files("documents", root)[0], 0, root)
