"""Speed of each kernel and the whole chain, ours and rivals', on the same text in one run, in CPU time."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.measures import rivals
from benchmarks.measures.corpora import again, documents_of, ingested, mixed, text_bytes, write_jsonl
from benchmarks.measures.goals import Goal, cpu_seconds, figure, rate


def whole_chain(quick: bool) -> list[Goal]:
    """JSONL to packed tokens, stage by stage, against datatrove's filters, MinHash and tokenizer on the same documents.

    Ours runs several times on all documents, and the medians of all but the first are taken, which compiles. Each of
    datatrove's stages gets what our stage of that name got, from the first megabytes of the same list.
    """
    from data_pipeline.dedup.dedup import DedupConfig, dedup
    from data_pipeline.filters.clean import CleanConfig, clean
    from data_pipeline.ingest import IngestConfig, ingest
    from data_pipeline.pii.redact import PiiConfig, redact
    from data_pipeline.readers.sources import JsonlSource
    from data_pipeline.tokens.encode import EncodeConfig, encode
    from data_pipeline.tokens.pack import PackConfig, pack
    from data_pipeline.tokens.tokenizer import TokenizerConfig, _engines, train_tokenizer
    from governance.stage import Runtime

    documents = mixed(40_000_000 if quick else 80_000_000)
    size = text_bytes(documents) / 1e6
    source = JsonlSource(type="jsonl", name="mixed", paths=("raw/*.jsonl",), licence="CC0-1.0", id_field="id")
    times: dict[str, list[float]] = {}
    digests: dict[str, set[str]] = {}
    sizes: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_jsonl(folder / "raw" / "all.jsonl", documents)
        for root in ("warm", "second", "root") if quick else ("warm", "second", "third", "root"):
            runtime = Runtime(folder / root)
            _engines.cache_clear()  # each pass encodes words that its engine has not met

            def timed(name: str, made: Any) -> Any:
                started = cpu_seconds()
                manifest = made()
                times.setdefault(name, []).append(cpu_seconds() - started)
                digests.setdefault(name, set()).add(manifest.digest)
                sizes[name] = manifest.stats.get("bytes_in", 0) / 1e6
                return manifest

            raw = timed("ingest", lambda: ingest((source,), IngestConfig(), folder, runtime))  # noqa: B023
            presets = CleanConfig(presets=("gopher", "c4", "fineweb_paper"))
            timed("clean_all_presets", lambda: clean(raw, presets, runtime))  # noqa: B023
            cleaned = timed("clean", lambda: clean(raw, CleanConfig(), runtime))  # noqa: B023
            unique = timed("dedup", lambda: dedup(cleaned, DedupConfig(), runtime))  # noqa: B023
            redacted = timed("redact", lambda: redact(unique, PiiConfig(), runtime))  # noqa: B023
            tokenizer = timed("tokenizer", lambda: train_tokenizer(redacted, TokenizerConfig(), runtime))  # noqa: B023
            tokens = timed("encode", lambda: encode(redacted, tokenizer, EncodeConfig(), runtime))  # noqa: B023
            packed = timed("pack", lambda: pack(tokens, PackConfig(sequence_length=2048), runtime))  # noqa: B023
        spent = {name: statistics.median(of_stage[1:]) for name, of_stage in times.items()}
        chain = ("ingest", "clean", "dedup", "redact", "encode", "pack")
        whole = sum(spent[name] for name in chain)
        training = spent["tokenizer"] / (whole + spent["tokenizer"])
        goals = [
            Goal("chain.mb_a_core_second", size / whole, 20, note=f"{size:.0f} MB, JSONL to packed rows, no training"),
            figure("chain.with_training.mb_a_core_second", size / (whole + spent["tokenizer"])),
            Goal("chain.training_share", training, 0.5, "<=", f"of a tokenizer on all {size:.0f} MB"),
        ]
        goals += [
            figure(
                f"chain.{name}.cpu_ms_a_mb", 1000 * spent[name] / size,
                f"of {len(times[name]) - 1} passes; digest {min(digests[name])[:12]}",
            )
            for name in (*chain, "tokenizer")
        ]  # fmt: skip
        goals.append(Goal("chain.digests_a_stage", max(map(len, digests.values())), 1, "<=", "over all passes"))
        goals += [figure(f"chain.{name}.mb_a_core_second", sizes[name] / spent[name]) for name in chain[:-1]]
        goals += _packing(tokens, packed)
        goals += _against_datatrove(
            documents, (cleaned, redacted, tokenizer), {n: sizes[n] / spent[n] for n in ("dedup", "encode")},
            {name: spent[name] / size for name in chain}, folder, 3_000_000 if quick else 8_000_000,
        )  # fmt: skip
        goals += _tokenize(tokenizer, documents_of(redacted, runtime.root), runtime.root)
    return goals


def _packing(tokens: Any, packed: Any) -> list[Goal]:
    stats = packed.stats
    used = stats["train_predictions"] / stats["train_positions"]
    lost = tokens.stats["train_tokens"] - tokens.stats["train_documents"] - stats["train_predictions"]
    return [
        Goal("packing.positions_used", used, 0.995, note="rows of 2048"),
        Goal("packing.predictions_lost", lost, 0, "<="),
    ]


def _against_datatrove(
    documents: list[dict[str, Any]], made: tuple[Any, Any, Any], rates: dict[str, float], cost: dict[str, float],
    folder: Path, sample_bytes: int,
) -> list[Goal]:  # fmt: skip
    cleaned, redacted, tokenizer = made
    root = folder / "root"
    sample: list[dict[str, Any]] = []
    for row in documents:
        if text_bytes(sample) >= sample_bytes:
            break
        sample.append(row)
    names = {row["id"] for row in sample}
    files, sizes = [], []
    for name, rows in (
        ("all", sample),
        ("cleaned", [row for row in documents_of(cleaned, root) if row["id"] in names]),
        ("final", [row for row in documents_of(redacted, root) if row["id"] in names]),
    ):
        files.append(write_jsonl(folder / "rival" / name / f"{name}.jsonl", rows))
        sizes.append(text_bytes(rows) / 1e6)
    reference = root / tokenizer.folder / "tokenizer.json"
    found = rivals.datatrove(*files, reference, folder / "rival" / "scratch")
    theirs = {name: found[name]["cpu_seconds"] for name in ("filters", "minhash", "tokenize")}
    features = _features(documents)
    chain = sum(theirs.values()) / sizes[0]
    return [
        Goal("features.mb_a_core_second", features, 50, note="all of Gopher, C4 and FineWeb in one pass"),
        figure("features.datatrove_mb_a_core_second", sizes[0] / theirs["filters"]),
        Goal("features.times_datatrove", features / (sizes[0] / theirs["filters"]), 100),
        Goal("dedup.mb_a_core_second", rates["dedup"], 30, note="end to end with verification"),
        figure("dedup.datatrove_mb_a_core_second", sizes[1] / theirs["minhash"]),
        Goal("dedup.times_datatrove", rates["dedup"] / (sizes[1] / theirs["minhash"]), 40),
        figure("encode.datatrove_mb_a_core_second", sizes[2] / theirs["tokenize"]),
        Goal("chain.times_datatrove", chain / sum(cost.values()), 25, note="on the same surviving documents"),
    ]


def _features(documents: list[dict[str, Any]]) -> float:
    from data_pipeline.kernels.quality import measure_texts

    texts = pa.array([row["text"] for row in documents], pa.large_string())
    return rate(lambda: measure_texts(texts, ["en"] * len(texts)), text_bytes(documents))


def _first_pass(tokenizer: Any, texts: list[str], root: Path) -> float:
    """Megabytes of text per CPU-second of an encoder that has met no word."""
    from data_pipeline.tokens.tokenizer import load_encoder

    encoder = load_encoder(tokenizer, root)
    started = cpu_seconds()
    encoder.encode_documents(texts)
    return sum(len(text.encode()) for text in texts) / 1e6 / (cpu_seconds() - started)


def _tokenize(tokenizer: Any, documents: list[dict[str, Any]], root: Path) -> list[Goal]:
    """The encoder, of words that it has not met, against `tokenizers`' encode_batch; every id compared."""
    from tokenizers import Tokenizer

    from data_pipeline.tokens.tokenizer import load_encoder

    texts = [row["text"] for row in documents][:1500]
    size = sum(len(text.encode("utf-8")) for text in texts)
    # The engine knows its words as long as its process lives.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as fresh:
        ours = statistics.median(list(fresh.map(_first_pass, *zip(*[(tokenizer, texts, root)] * 3, strict=True))))
    encoder = load_encoder(tokenizer, root)
    reference = Tokenizer.from_file(str(root / tokenizer.folder / "tokenizer.json"))
    reference.encode_special_tokens = True
    warm = rate(lambda: encoder.encode_documents(texts), size, 3)
    theirs = rate(lambda: reference.encode_batch(texts, add_special_tokens=False), size, 1)
    encoded = encoder.encode_documents(texts)
    unequal = sum(
        not np.array_equal(mine[:-1], other.ids)
        for mine, other in zip(encoded, reference.encode_batch(texts, add_special_tokens=False), strict=True)
    )
    return [
        Goal("tokenize.mb_a_core_second", ours, 12, note="words that the engine has not met"),
        figure("tokenize.known_words_mb_a_core_second", warm),
        figure("tokenize.encode_batch_mb_a_core_second", theirs),
        Goal("tokenize.times_encode_batch", ours / theirs, 4.5),
        Goal("tokenize.unequal_documents", unequal, 0, "<=", f"of {len(texts)}"),
    ]


def personal_data_rate() -> list[Goal]:
    """The redact stage on real text, all types on."""
    from data_pipeline.pii.redact import PiiConfig, redact

    documents = mixed(20_000_000)
    with tempfile.TemporaryDirectory() as scratch:
        raw, runtime = ingested(documents, Path(scratch))
        redact(raw, PiiConfig(), runtime)
        spent = again("redact", lambda other: redact(raw, PiiConfig(), other), runtime.root)
    return [Goal("pii.stage_mb_a_core_second", text_bytes(documents) / 1e6 / spent, 10, note="all types")]


def fasttext_rates(quick: bool) -> list[Goal]:
    """Scores of all labels by fastText models of many shapes, on the first 1,500 characters of real documents.

    The small models are those of the tests; the larger two have the shapes of lid.176 and of a quality classifier.
    """
    from data_pipeline.kernels.fasttext_file import HIERARCHICAL
    from data_pipeline.kernels.fasttext_scores import load_classifier, score_labels
    from governance.kernels.buffers import text_buffers
    from tests.data_pipeline.test_fasttext_scores import MODELS, model_bytes

    texts = [row["text"][:1500] for row in mixed(12_000_000)][: 1000 if quick else 3000]
    data, offsets = text_buffers(pa.array(texts, pa.large_string()))
    languages = {"loss": HIERARCHICAL, "labels": 176, "shortest": 2, "longest": 4, "buckets": 2_000_000}
    shapes: dict[str, dict[str, Any]] = {
        **MODELS, "lid_176": languages, "quality": {"dimensions": 100, "word_grams": 2, "buckets": 200_000},
    }  # fmt: skip
    note = f"{len(texts)} texts, {sum(map(len, texts)) // len(texts)} characters in the mean"

    def documents_a_second(shape: dict[str, Any]) -> float:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "model.bin"
            path.write_bytes(model_bytes(**shape))
            model = load_classifier(path)
            every = range(len(model.labels))
            return len(texts) * rate(lambda: score_labels(data, offsets, model, every), 1_000_000, 9)

    return [
        Goal(f"fasttext.{name}.documents_a_core_second", documents_a_second(shape), 8000, note=note)
        for name, shape in shapes.items()
    ]


def pdf_pages() -> list[Goal]:
    """Paragraphs of books and speeches, set as PDF pages, through the process that parses them."""
    from benchmarks.measures.corpora import rows
    from data_pipeline.readers.page_process import close, read_pdf
    from tests.data_pipeline.pdf_files import set_type, write_pdf

    texts = [
        row["text"] for name in ("books", "speeches") for row in itertools.islice(rows(f"corpora/{name}.jsonl.gz"), 60)
    ]
    planted = []
    for text in texts:
        paragraphs = [" ".join(part.split()) for part in text.replace("\r", "").split("\n\n")]
        planted.append(
            [part for part in paragraphs if part and part.encode("cp1252", "replace").decode("cp1252") == part]
        )
    planted = [paragraphs for paragraphs in planted if sum(map(len, paragraphs)) > 12_000]  # of three pages or more
    files = [write_pdf(set_type(paragraphs, "A Running Header")) for paragraphs in planted]
    started, pages, exact = cpu_seconds(), 0, 0
    for data, paragraphs in zip(files, planted, strict=True):
        found = read_pdf(data)
        assert not isinstance(found, str), found
        pages += found.pages
        exact += len(set(paragraphs) & {*found.text.split("\n")})
    close()  # its CPU time counts when it has ended
    spent, of = cpu_seconds() - started, sum(len(set(paragraphs)) for paragraphs in planted)
    return [
        Goal("pdf.pages_a_core_second", pages / spent, 50, note=f"{pages} pages, process and its start included"),
        figure("pdf.paragraphs_exact", exact / of, f"of {of}, set with hyphens, headers and page numbers"),
    ]


def trafilatura() -> list[Goal]:
    """The usual extractor on the pages with truth, for comparison."""
    from benchmarks.measures.corpora import rows, test_data
    from benchmarks.measures.data.data_truth import bag_f1, warc_bodies

    try:
        from trafilatura import extract
    except ImportError:
        return []
    keep = {row["url"]: row["main_text"] for row in rows("web/web.truth.jsonl.gz") if row["expect"] == "keep"}
    pages = [(url, body) for url, body in warc_bodies(test_data() / "web" / "web.warc.gz") if url in keep][:200]
    started = cpu_seconds()
    texts = [extract(body) or "" for _, body in pages]
    spent = cpu_seconds() - started
    scores = [bag_f1(text, keep[url]) for text, (url, _) in zip(texts, pages, strict=True)]
    return [
        figure("html.trafilatura_word_f1", statistics.mean(scores), f"{len(pages)} pages"),
        figure("html.trafilatura_mb_a_core_second", sum(len(body) for _, body in pages) / 1e6 / spent),
    ]
