"""A job's script: its directives, then a template with the run's values filled in.

The templates are valid bash before they are filled in. What is filled in is quoted, so any path survives:

    @ROOT@                  the folder of all artifacts
    @COMMAND@               the words of the command that a person would type
    @ENVIRONMENT@           a script to source, or ''
    @PROGRAMS@              the folder of the submitter's `assay`, for a node whose PATH has none
    @SHARES@                tasks of the array, 0 where it is none
    @RETRIES@ @REQUEUES@    how often a failure is tried again; "yes", or "no" for a link of a chain
    @INTERFACE@             network interface, or ''
    @SRUN_OPTIONS@          options of srun that put a command into a container (pyxis), as words
    @INSIDE@                words before a command that do so (apptainer)

The line `source attempt.sh` becomes that file, so that the kept script is whole.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from slurm.config import SlurmConfig
from slurm.graph import Job

_FOLDER = Path(__file__).parent
_SHARED = "source attempt.sh"
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=./,:@%&|*+[]()!~#")


def script_of(root: Path, job: str) -> Path:
    """Where the script of a job is kept."""
    return root / "slurm" / f"{job}.sbatch"


def render(job: Job, config_file: Path, root: Path, config: SlurmConfig) -> str:
    """The script of a job of the run at `config_file`."""
    template = "train.sbatch" if job.kind == "train" else "step.sbatch"
    first, _, rest = (_FOLDER / template).read_text(encoding="utf-8").partition("\n")
    shared = (_FOLDER / "attempt.sh").read_text(encoding="utf-8").partition("\n")[2]
    rest = "".join(shared if line.strip() == _SHARED else line for line in rest.splitlines(keepends=True))
    folders = [config_file.parent, root, *map(Path, config.container_mounts)]
    pyxis, apptainer = _container(config, folders, gpus=any(word.startswith("--gpus") for word in job.options))
    values = {
        "@ROOT@": (str(root),),
        "@COMMAND@": job.command,
        "@ENVIRONMENT@": (config.environment,),
        "@PROGRAMS@": (str(Path(sys.executable).parent),),
        "@SHARES@": (str(job.tasks),),
        "@RETRIES@": (str(config.retries),),
        "@REQUEUES@": ("no" if job.kind == "train" and config.chain > 1 else "yes",),
        "@INTERFACE@": (config.interface,),
        "@SRUN_OPTIONS@": pyxis,
        "@INSIDE@": apptainer,
    }
    # In one pass: what is filled in may itself look like a mark.
    marks = "|".join(values)
    rest = re.sub(marks, lambda mark: " ".join(map(_quoted, values[mark[0]])), rest)
    return "\n".join([first, *(f"#SBATCH {_directive(option)}" for option in job.options), rest])


def _container(config: SlurmConfig, folders: Sequence[Path], *, gpus: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Options of srun, and words before a command: each puts the command into the image, seeing `folders`."""
    seen = list(dict.fromkeys(str(folder) for folder in folders))
    if config.container_runtime == "pyxis":
        mounts = ",".join(f"{folder}:{folder}" for folder in seen)
        return (f"--container-image={config.container}", f"--container-mounts={mounts}"), ()
    if config.container_runtime == "apptainer":
        mounted = [word for folder in seen for word in ("--bind", folder)]
        return (), ("apptainer", "exec", *["--nv"] * gpus, *mounted, config.container)
    return (), ()


def _quoted(word: str) -> str:
    """A word for bash; one with a comma in quotes, though it needs none: shellcheck takes it for a list."""
    return f"'{word}'" if "," in word and shlex.quote(word) == word else shlex.quote(word)


def _directive(option: str) -> str:
    """An option as sbatch reads it in a script, which knows double quotes and a backslash in them."""
    if set(option) <= _PLAIN:
        return option
    name, _, value = option.partition("=")
    return f'{name}="{value}"'
