"""Handlers of `assay init`, `assay config ...` and `assay doctor`."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from assay.cli.output import say
from assay.cli.run_commands import Arguments
from assay.cli.surface import parser
from assay.config import RunConfig, load_run
from assay.run_file import CONFIGS, names_of
from governance.config import flat, read_toml
from governance.errors import ConfigError
from governance.files import write_text
from governance.gate.policy import policy_files
from governance.log import get_logger


def init(arguments: Arguments) -> None:
    """Write a run's file and its policy into a folder.

    A model size, which has no corpus, gets one in a separate file. A policy is written alone, with its parents.

    Raises:
        ConfigError: a file of that name exists with other content.
    """
    source = CONFIGS / f"{arguments.name}.toml"
    values = read_toml(source)
    alone = arguments.name.startswith("policy")
    policies = policy_files(CONFIGS / values.get("governance", {}).get("policy", source if alone else "policy.toml"))
    folder: Path = arguments.folder
    texts = {folder / path.name: path.read_text(encoding="utf-8") for path in (source, *policies)}
    run = [folder / source.name]
    if not alone and "[[data.sources]]" not in texts[run[0]]:
        _, first, *_ = (CONFIGS / "quickstart.toml").read_text(encoding="utf-8").split("[[data.sources]]")
        run.insert(0, folder / "corpus.toml")
        texts[run[0]] = (
            f"# An example, far too small for this model: name your own documents.\n\n[[data.sources]]{first}"
        )
    for path, text in texts.items():
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise ConfigError(f"{path}: exists with other content. Choose another folder: assay init FOLDER")
    for path, text in texts.items():
        write_text(path, text)
        say(f"written: {path}", written=[path])
    for pattern in (
        pattern for source in values.get("data", {}).get("sources", []) for pattern in source.get("paths", [])
    ):
        if not any(folder.glob(pattern)):
            say(
                f"your part: put your files where {folder / pattern} finds them, or name yours in `paths` of {run[0]}",
                missing=[folder / pattern],
            )
    if not alone:
        line = shlex.join(["assay", "run", *map(str, run)])
        say(f"next: {line}", next=line)
    elif source.name != "policy.toml":  # the name that a run takes by itself
        line = f'policy = "{source.name}"'
        say(f"next: {line} under [governance] of the run's file; without it policy.toml judges", next=line)


def show(arguments: Arguments) -> None:
    """Print every setting of a run with its origin."""
    loaded = load_run(arguments.config, arguments.overrides, arguments.more, needs="data or model")
    origins = loaded.source.origins
    rows = {
        name: {
            "value": value,
            "origin": next((origins[part] for part in _prefixes(name) if part in origins), "default"),
        }
        for name, value in flat(
            loaded.config.model_dump(mode="json", exclude_none=True, exclude_unset=arguments.changed)
        )
    }
    for name, row in rows.items():
        if arguments.changed and row["origin"] == "default":
            continue
        lines = [
            f"{place} = {json.dumps(value, ensure_ascii=False)}" for place, value in _a_line_each(name, row["value"])
        ]
        say("\n".join(f"{line:<70} # {row['origin']}" for line in lines), **{name: row})


def _a_line_each(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A setting; one that lists tables, as `[[data.sources]]` does, field by field."""
    if not (isinstance(value, list) and value and all(isinstance(item, dict) for item in value)):
        yield name, value
        return
    for number, item in enumerate(value, 1):
        yield from flat(item, f"{name}[entry {number}]")


def _prefixes(name: str) -> Iterator[str]:
    """A dotted name and the names of its enclosing tables, innermost first."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def schema(arguments: Arguments) -> None:
    """Print the JSON schema of a run's file, for editors."""
    found = RunConfig.model_json_schema()
    for model in _models(RunConfig, set()):
        target = found if model is RunConfig else found.get("$defs", {}).get(model.__name__, {})
        for name, text in _descriptions(model).items():
            if name in target.get("properties", {}):
                target["properties"][name]["description"] = text
    found["properties"]["base"] = {
        "description": "Files that are merged below this one.",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    found["$defs"]["ModelConfig"]["properties"]["preset"] = {
        "description": "A shipped configuration whose [model] is merged below this section.", "enum": names_of(),
    }  # fmt: skip
    found["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    for table in _merged_tables(found, found["$defs"], set()):
        table.pop("required", None)
    say(json.dumps(found, indent=1, ensure_ascii=False))


def _merged_tables(part: dict[str, Any], tables: dict[str, Any], seen: set[str]) -> Iterator[dict[str, Any]]:
    """Tables of a schema that merge key by key.

    A base, another file or a default may give each of their keys. The entries of an array are replaced whole, so they
    keep the keys that they require.
    """
    yield part
    inside = [*part.get("properties", {}).values(), *part.get("anyOf", ()), part.get("additionalProperties")]
    for one in (item for item in inside if isinstance(item, dict)):
        name = one.get("$ref", "").rpartition("/")[2]
        if name not in seen:
            seen |= {name} - {""}
            yield from _merged_tables(tables[name] if name else one, tables, seen)


def _models(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    """A section and all sections below it."""
    if model in seen:
        return
    seen.add(model)
    yield model
    waiting = [field.annotation for field in model.model_fields.values()]
    while waiting:
        annotation = waiting.pop()
        waiting += get_args(annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _models(annotation, seen)


def _descriptions(model: type[BaseModel]) -> dict[str, str]:
    """Docstrings below the fields of a section."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    found, last = {}, ""
    for node in tree.body if isinstance(tree, ast.ClassDef) else []:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            last = node.target.id
        elif last and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found[last] = " ".join(str(node.value.value).split())
            last = ""
    return found


def completion(arguments: Arguments) -> None:
    """Print the completion script of a shell."""
    import shtab

    say(shtab.complete(parser(), arguments.shell))


def doctor(arguments: Arguments) -> int:
    """Print what this machine can do, and fixes for what it cannot."""
    for name, ok, found, fix in _checks():
        say(
            f"{'ok ' if ok else 'no '} {name:<12} {found}{f'; {fix}' if fix and not ok else ''}",
            checks=[{"name": name, "ok": ok, "found": found, "fix": fix}],
        )
    return 0


def _checks() -> Iterator[tuple[str, bool, str, str]]:
    """Each ability: name, availability, version or fault, fix."""
    yield "python", (3, 11) <= sys.version_info < (3, 14), sys.version.split()[0], "install Python 3.11 to 3.13"
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    cores = len(os.sched_getaffinity(0))
    yield "memory", pages >= 8, f"{pages:.1f} GiB and {cores} core(s)", "the quick start needs about 8 GiB"
    free = shutil.disk_usage(Path()).free / 2**30
    yield "disk", free >= 10, f"{free:.0f} GiB free in {Path().absolute()}", "choose another --root"
    yield from _accelerator()
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++") or ""
    yield (
        "compiler",
        bool(compiler),
        compiler or "no C++ compiler",
        "install g++, for engine.compile and offloading to NVMe",
    )
    rapl = [path for path in Path("/sys/class/powercap").glob("intel-rapl:*/energy_uj") if os.access(path, os.R_OK)]
    yield (
        "energy", bool(rapl), f"{len(rapl)} readable RAPL counter(s)",
        "let this account read /sys/class/powercap/*/energy_uj; otherwise energy is estimated from CPU time",
    )  # fmt: skip
    slurm = shutil.which("sbatch") or ""
    yield "slurm", bool(slurm), slurm or "no sbatch", "only for assay slurm; --local rehearses a run without it"
    for package, use in (
        ("wandb", "[tracking] mode"),
        ("tensorboard", "[tracking] tensorboard"),
        ("daft", "--engine daft"),
    ):
        there = importlib.util.find_spec(package) is not None
        yield package, there, "installed" if there else "not installed", f"pip install {package}, for {use}"


def _accelerator() -> Iterator[tuple[str, bool, str, str]]:
    get_logger(__name__).info("doctor: loading torch, to look for GPUs")
    try:
        import torch
    except ImportError as error:
        yield "torch", False, str(error), "pip install torch"
        return
    yield "torch", True, torch.__version__, ""
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        yield "gpu", True, ", ".join(f"{item.name} {item.total_memory / 2**30:.0f} GiB" for item in names), ""
    else:
        yield (
            "gpu",
            False,
            "torch finds no GPU",
            "training runs on the CPU; for a GPU, install its driver and torch for it",
        )
    there = importlib.util.find_spec("deepspeed") is not None
    yield "deepspeed", there, "installed" if there else "not installed", "pip install deepspeed"
