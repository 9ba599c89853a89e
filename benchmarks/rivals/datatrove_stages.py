"""Cost of datatrove on the same text: run by `benchmarks/data.py` in a venv of its own; prints one JSON object.

    python datatrove_stages.py ALL.jsonl CLEANED.jsonl FINAL.jsonl TOKENIZER.json SCRATCH

Each stage gets the documents that our own stage of that name gets: the filters all of them, MinHash those that our
filters kept, the tokenizer those that were left. CPU-seconds of this process and its children.
"""

import json
import os
import resource
import shutil
import sys
from pathlib import Path

from loguru import logger


def cpu_seconds() -> float:
    """CPU-seconds of this process and of the children that it waited for."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def filters(path: Path) -> int:
    """Gopher's, C4's and FineWeb's filters, each on every document, as our one pass measures every feature."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    chain = [
        GopherRepetitionFilter(),
        GopherQualityFilter(),
        C4QualityFilter(filter_no_terminal_punct=False),
        FineWebQualityFilter(),
    ]
    count = 0
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            for step in chain:
                step.filter(Document(text=row["text"], id=row["id"]))
            count += 1
    return count


def minhash(path: Path, scratch: Path) -> int:
    """The four stages of MinHash, 14 bands of 8 rows, word 5-grams."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers.jsonl import JsonlWriter
    from datatrove.utils.hashing import HashConfig

    config = MinhashConfig(hash_config=HashConfig(precision=64), num_buckets=14, hashes_per_bucket=8)

    def run(name: str, tasks: int, *steps: object) -> None:
        LocalPipelineExecutor(
            pipeline=list(steps), tasks=tasks, workers=1, logging_dir=str(scratch / "logs" / name), skip_completed=False
        ).run()

    reader = JsonlReader(str(path.parent), glob_pattern=path.name, id_key="id")
    made = {name: str(scratch / name) for name in ("signatures", "buckets", "removed", "kept")}
    run("1", 1, reader, MinhashDedupSignature(output_folder=made["signatures"], config=config, language="eng"))
    run("2", 14, MinhashDedupBuckets(input_folder=made["signatures"], output_folder=made["buckets"], config=config))
    run("3", 1, MinhashDedupCluster(input_folder=made["buckets"], output_folder=made["removed"], config=config))
    run("4", 1, reader, MinhashDedupFilter(input_folder=made["removed"]), JsonlWriter(made["kept"], compression=None))
    return sum(1 for name in Path(made["kept"]).iterdir() for _ in name.open(encoding="utf-8"))


def tokenize(path: Path, tokenizer: Path, scratch: Path) -> int:
    """Tokenize to datatrove's own token files."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    steps = [
        JsonlReader(str(path.parent), glob_pattern=path.name, id_key="id"),
        DocumentTokenizer(
            output_folder=str(scratch / "tokens"), tokenizer_name_or_path=str(tokenizer), eos_token=None,
            shuffle_documents=False, local_working_dir=str(scratch / "work"),
        ),
    ]  # fmt: skip
    LocalPipelineExecutor(pipeline=steps, tasks=1, workers=1, logging_dir=str(scratch / "logs" / "5")).run()
    return sum(file.stat().st_size for file in (scratch / "tokens").rglob("*.ds"))


def main() -> None:
    """Run the three stages and print their CPU-seconds."""
    everything, cleaned, final, tokenizer, scratch = (Path(word) for word in sys.argv[1:])
    logger.remove()
    os.environ["HF_HUB_OFFLINE"] = "1"
    from datatrove.utils.text import split_into_words

    split_into_words("warm up", "eng")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    found = {}
    for name, work in (
        ("filters", lambda: filters(everything)),
        ("minhash", lambda: minhash(cleaned, scratch)),
        ("tokenize", lambda: tokenize(final, tokenizer, scratch)),
    ):
        started = cpu_seconds()
        result = work()
        found[name] = {"cpu_seconds": cpu_seconds() - started, "result": result}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
