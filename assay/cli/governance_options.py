"""Options of `assay governance ...`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from assay.cli.option_values import positive

Add = Callable[[str, str, str], argparse.ArgumentParser]
"""Adds a command: its name, its function, its help."""


def add_commands(add: Add, config: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add each `assay governance ...`.

    `config` gives a command the options of a run's file.
    """
    command = add("check", "check", "audit the corpus and sign the verdict")
    config(command)
    command.add_argument(
        "--data-docs",
        type=Path,
        metavar="FOLDER",
        help="write Great Expectations' own pages, too; they load styles and scripts from hosts outside",
    )
    command = add("freeze", "freeze", "sign the distributions of a corpus that was let through: [audit] reference")
    command.set_defaults(group="check")
    config(command)
    command.add_argument("file", type=Path, metavar="FILE", help="the reference, a file that does not exist yet")
    command = add("review", "review", "walk through what keeps a gate closed; sign waivers or refusals")
    command.set_defaults(group="review")
    config(command)
    command.add_argument(
        "--key", type=Path, required=True, metavar="PRIVATE_KEY", help="your own key, which the policy's [people] knows"
    )
    command = add(
        "clock", "clock", "print what is dated ahead of this machine's clock, or sign that those times are void"
    )
    config(command)
    command.add_argument(
        "--accept", metavar="YYYY-MM-DD", help="today, by another clock: this machine's is right, the others were wrong"
    )
    command.add_argument("--reason", default="", metavar="TEXT", help="with it: which clock was wrong, and why")
    command = add("site", "site", "print whose policy and keys bind on this machine, or a policy's digest")
    command.add_argument(
        "policy", type=Path, nargs="?", metavar="POLICY", help="print this policy's digest, which site.toml pins"
    )
    command = add(
        "verify", "verify", "read every file of an artifact, or below a root, and compare it with its manifest"
    )
    command.add_argument("artifact", type=Path, metavar="ARTIFACT|ROOT", help="an artifact's folder, or a root of them")
    command.add_argument(
        "--deep",
        action="store_true",
        help="every ancestor, every signed statement, the journal's chain, leaves and waivers too",
    )
    trusted_keys(command)
    command = add(
        "anchor", "anchor", "print whether the journal is what was kept of it here; give up lines that are gone"
    )
    config(command)
    command.add_argument(
        "--accept", metavar="REASON", help="the journal as it is counts from now on; signed into it with this reason"
    )
    command = add("trace", "trace", "print what an artifact was made from, down to the source files")
    command.add_argument("artifact", type=Path, metavar="ARTIFACT", help="an artifact's folder or its manifest.json")
    command.add_argument("--svg", type=Path, metavar="FILE", help="draw it, too")
    command.add_argument("--prov", type=Path, metavar="FILE", help="write it as W3C PROV-JSON, too")
    command = add("impact", "impact", "print which shards, rows, checkpoints and children saw a document")
    command.add_argument("document", metavar="DOCUMENT|URL|SHARD", help="its id, its URL, or a shard of documents")
    command.add_argument("--root", dest="roots", type=Path, nargs="+", required=True, help="folders of artifacts")
    command = add("diff", "diff", "print in words how two artifacts differ")
    command.add_argument("ours", type=Path, metavar="A", help="an artifact's folder or its manifest.json")
    command.add_argument("theirs", type=Path, metavar="B", help="another")
    command = add("audit-model", "audit_model", "measure what a checkpoint leans to")
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint's folder")
    config(command)
    _keys(add)


def _keys(add: Add) -> None:
    command = add("keygen", "keygen", "make a key pair: Ed25519 that signs verdicts and statements, or a model's")
    command.add_argument("path", type=Path, nargs="?", metavar="PATH", help="where; default: your configuration folder")
    kind = command.add_mutually_exclusive_group()
    kind.add_argument("--root", type=Path, metavar="PATH", help="a root key, to keep offline: it certifies jobs' keys")
    kind.add_argument("--job", type=Path, metavar="PATH", help="a job's key, certified by --root-key")
    kind.add_argument("--model", nargs="?", const="", metavar="PATH", help="an EC P-256 key that signs models")
    command.add_argument("--root-key", type=Path, metavar="PATH", help="the root's private key")
    command.add_argument("--days", type=positive, default=30, help="how long a job's certificate holds (default: 30)")
    command.add_argument("--name", default="job", help="whose key it is, in the certificate (default: job)")
    command = add("sign", "sign", "sign a checkpoint in the OpenSSF model-signing format")
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint's folder")
    command.add_argument("--key", type=Path, metavar="PATH", help="the model key (default: your own)")
    command.add_argument(
        "--signing-key", type=Path, metavar="PATH", help="signs the journal's line (default: your own)"
    )


def trusted_keys(command: argparse.ArgumentParser) -> None:
    """Add the option that names public keys to believe."""
    command.add_argument(
        "--key",
        dest="keys",
        type=Path,
        action="append",
        default=[],
        metavar="PUBLIC_KEY",
        help="believe this key, or a root's for the keys that it certified, instead of your own (repeatable)",
    )
