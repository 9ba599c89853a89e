"""Every file of the packages with the first line of its docstring: the text of `docs/tree.md`.

python tests/tree.py > docs/tree.md
"""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("assay", "pretrain", "data_pipeline", "governance", "slurm")
_SHOWN = (".py", ".toml", ".sh", ".sbatch")


def tree():
    """Markdown: a section for each package, a table for each folder, a row for each file."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    paths = sorted({Path(name) for name in listed if name.endswith(_SHOWN) and (ROOT / name).exists()})
    lines = ["# Every file", "", "Made by `make tree`; a test compares it with the disk.", ""]
    for package in PACKAGES:
        for folder in sorted({path.parent for path in paths if path.parts[0] == package}):
            face = folder / "__init__.py"
            lines += [f"## `{folder}/`", ""]
            if (ROOT / face).exists():
                lines += [first_line(ROOT / face), ""]
            lines += ["| file | holds |", "|---|---|"]
            inside = [path for path in paths if path.parent == folder and path.stem not in ("__init__", "__main__")]
            lines += [f"| `{path.name}` | {first_line(ROOT / path)} |" for path in inside] + [""]
    return "\n".join(lines)


def first_line(path):
    """The first line of a module's docstring, or of the comment at the head of another file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").split("\n")[0].replace("|", "\\|")
    comments = [line[1:].strip() for line in text.splitlines()[:3] if line.startswith("# ")]
    comments = [line for line in comments if not line.startswith(("shellcheck ", "@"))]  # for a tool, a template
    return comments[0].replace("|", "\\|") if comments else ""


if __name__ == "__main__":
    sys.stdout.write(tree() + "\n")
