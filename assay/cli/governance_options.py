"""Options of `assay governance ...`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from assay.cli.command_words import Parser
from assay.cli.option_values import engine, flag, nproc, option, path, positive

Add = Callable[[str, str, str], Parser]
"""Adds a command: its name, its function, its help."""
Config = Callable[[Parser], Parser]
"""Gives a command the options of a run's file."""


def add_commands(add: Add, config: Config, corpus: Config) -> None:
    """Add each `assay governance ...`.

    `corpus` is `config` for a run's file that may be of a corpus alone.
    """
    command = corpus(add("check", "check", "audit the corpus and sign the verdict"))
    engine(command)
    path(
        command,
        "--data-docs",
        "FOLDER",
        "also write Great Expectations' Data Docs, which open without a network (default: below the root, where "
        "the next report links them)",
        nargs="?",
        const=False,
    )
    command = add("suites", "suites", "write a policy's gates as Great Expectations' suites, or print a suite as gates")
    path(command, "policy", "POLICY|SUITE", "a policy's file, or a suite of GX (.json)")
    path(command, "folder", "FOLDER", "new folder for the suites of a policy", nargs="?")
    text = "for a suite of GX: the table that its gates judge (default: %(default)s)"
    option(command, "--suite", str, "NAME", text, default="documents")
    text = "for a suite of GX: the owner of its gates, a role of the policy (default: %(default)s)"
    option(command, "--owner", str, "NAME", text, default="data")
    text = "sign the distributions of an accepted corpus, as a reference for later audits ([audit] reference)"
    command = corpus(add("freeze", "freeze", text))
    path(command, "file", "FILE", "new file for the reference")
    command = add("review", "review", "walk through the findings that keep a gate closed, and sign waivers or refusals")
    command.set_defaults(group="review")
    corpus(command)
    path(command, "--key", "PRIVATE_KEY", "your private key, listed under the policy's [people]", required=True)
    option(command, "--withdraw", str, "NAME", "withdraw the refusal in this file, which may be gone")
    option(command, "--reason", str, "TEXT", "with --withdraw: why, in ten characters or more", default="")
    text = "print statements dated ahead of this machine's clock, or sign that their times are void"
    command = corpus(add("clock", "clock", text))
    text = "today's date by another clock: confirm that this machine's clock is right"
    option(command, "--accept", str, "YYYY-MM-DD", text)
    option(command, "--reason", str, "TEXT", "with --accept: which clock was wrong, and why", default="")
    command = add("site", "site", "print the policy and keys that this machine requires, or a policy's digest")
    path(command, "policy", "POLICY", "print this policy's digest, for site.toml", nargs="?")
    command = add("verify", "verify", "compare every file of an artifact, or below a root, with its manifest")
    path(command, "artifact", "ARTIFACT|ROOT", "an artifact's folder, or a root")
    flag(command, "--deep", "also verify ancestors, signed statements, the journal's chain, growing files and waivers")
    trusted_keys(command)
    text = "compare the journal with the head kept on this machine; accept lost lines"
    command = corpus(add("anchor", "anchor", text))
    option(command, "--accept", str, "REASON", "accept the journal as it is, with this reason signed into it")
    command = add("trace", "trace", "print the ancestors of an artifact, down to the source files")
    path(command, "artifact", "ARTIFACT", "an artifact's folder or its manifest.json")
    path(command, "--svg", "FILE", "also write an SVG")
    path(command, "--prov", "FILE", "also write W3C PROV-JSON")
    _documents(add, config)
    command = add("diff", "diff", "print the differences between two artifacts")
    path(command, "ours", "A", "an artifact's folder or its manifest.json")
    path(command, "theirs", "B", "the other artifact")
    text = "measure the biases of a checkpoint on templates and published sets"
    command = config(add("audit-model", "audit_model", text))
    checkpoint_option(command)
    text = "measure which training sequences a checkpoint repeats, by their number of copies; the next report shows it"
    command = config(add("audit-memorisation", "audit_memorisation", text))
    checkpoint_option(command)
    _energy(add)
    _kpis(add, config)
    _keys(add)


def _documents(add: Add, config: Config) -> None:
    text = "print the shards, training rows, checkpoints and descendants that contain or saw a document"
    command = add("impact", "impact", text)
    option(command, "document", str, "DOCUMENT|URL|SHARD", "a document's id, its URL, or a document shard")
    command.add_argument("--root", dest="roots", type=Path, nargs="+", required=True, help="folders of artifacts")
    text = "plan the removal of documents from a trained model, and train again without them"
    command = config(add("takedown", "takedown", text))
    option(command, "documents", str, "DOCUMENT", "a document's id, its URL, a shard or a code repository", nargs="+")
    kind = command.add_mutually_exclusive_group()
    flag(kind, "--plan", "print what is affected, and steps, hours, kWh and money of a replay (default)")
    flag(kind, "--execute", "replay: train again from the last clean checkpoint without the documents, and sign it")
    flag(kind, "--settings", "write the settings of a replay, which assay slurm submit takes; --execute signs it later")
    nproc(command)
    text = "nodes with the price of a device's hour, as in assay plan (default: slurm.cluster)"
    option(command, "--cluster", str, "NAME|FILE", text, default="")
    text = "write a receipt: was a document used for a checkpoint, with a proof anybody can check"
    command = add("prove", "prove", text)
    option(command, "asked", str, "DOCUMENT|URL|FILE", "a document's id, its URL, or a file with its text")
    path(command, "--checkpoint", "CHECKPOINT", "a checkpoint's folder", required=True)
    path(command, "--receipt", "FILE", "new file for the receipt (default: receipt.json)", default=Path("receipt.json"))
    path(command, "--verifier", "FILE", "also write the verifier, a Python file that needs no Assay")
    flag(command, "--nearest", "also state the similarity of the nearest other document (DOCUMENT must be a file)")
    path(command, "--signing-key", "PATH", "key that signs the receipt and the journal entry (default: your own)")


def _energy(add: Add) -> None:
    command = add("energy", "energy", "divide the energy of all roots into the final training's and the development's")
    path(command, "roots", "ROOT", "folders of artifacts", nargs="+")
    path(command, "--final", "CHECKPOINT", "folder of the final training or a checkpoint of it (default: the last)")


def _kpis(add: Add, config: Config) -> None:
    command = add("kpi-plan", "plan", "sign the plan of a KPI file, with its sample size, before the outcomes come in")
    command.set_defaults(group="kpi")
    config(command)
    path(command, "kpis", "KPIS", "the KPI file (TOML)")
    text = "test outcomes against their signed plan: did the model pay? The next report shows it"
    command = add("kpi-test", "test", text)
    command.set_defaults(group="kpi")
    config(command)
    path(command, "kpis", "KPIS", "the KPI file, as planned")
    path(command, "data", "OUTCOMES", "a row for each unit and arm: .csv, .jsonl or .parquet")
    text = "checkpoint that served the treatment arm (default: the final one of this run)"
    path(command, "--checkpoint", "CHECKPOINT", text, default=Path("last"))
    flag(command, "--early", "analyse fewer units than planned, without a decision")


def _keys(add: Add) -> None:
    command = add("keygen", "keygen", "make a key pair: Ed25519 for verdicts and statements, or a model's")
    path(command, "new_key", "PATH", "path of the key (default: your configuration folder)", nargs="?")
    kind = command.add_mutually_exclusive_group()
    path(kind, "--root", "PATH", "create a root key, to keep offline; it certifies job keys")
    path(kind, "--job", "PATH", "create a job's key, certified by --root-key")
    option(kind, "--model", str, "PATH", "create an EC P-256 key for model signatures", nargs="?", const="")
    path(command, "--root-key", "PATH", "the root's private key")
    option(command, "--days", positive, "N", "validity of a job's certificate in days (default: 30)", default=30)
    command.add_argument("--name", default="job", help="owner's name in the certificate (default: job)")
    command = add("sign", "sign", "sign a checkpoint in the OpenSSF model-signing format")
    path(command, "checkpoint", "CHECKPOINT", "a checkpoint's folder")
    path(command, "--key", "PATH", "the model key (default: your own)")
    path(command, "--signing-key", "PATH", "key that signs the journal entry (default: your own)")
    command = add("verify-model", "verify_model", "verify a model's OpenSSF signature, whoever made it")
    path(command, "model", "MODEL", "the signed folder or file")
    path(command, "--signature", "FILE", "its bundle (default: model.sig in the folder)")
    signer = command.add_mutually_exclusive_group(required=True)
    path(signer, "--key", "PUBLIC_KEY", "the signer's elliptic-curve key")
    path(signer, "--certificate", "AUTHORITY", "certificates that the signer's is under (repeatable)", action="append")
    signer.add_argument("--identity", metavar="NAME", help="the signer's Sigstore identity, with --issuer")
    command.add_argument("--issuer", default="", metavar="URL", help="the identity's OpenID Connect issuer")
    text = "a file or folder that need not be signed (repeatable)"
    path(command, "--ignore", "PATH", text, dest="ignored", action="append", default=[])


def checkpoint_option(command: argparse.ArgumentParser) -> None:
    """Add the position that names a checkpoint."""
    path(command, "checkpoint", "CHECKPOINT", 'a checkpoint\'s folder, or "last" for the final one of this run')


def trusted_keys(command: argparse.ArgumentParser) -> None:
    """Add the option that names the trusted public keys."""
    text = "trust this key, or keys certified by this root key, instead of your own (repeatable)"
    path(command, "--key", "PUBLIC_KEY", text, dest="keys", action="append", default=[])
