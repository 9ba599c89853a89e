"""Handlers of `assay governance ...`."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, replace
from pathlib import Path

from assay.cli.output import artifact, say
from assay.cli.run_commands import Arguments, argv_of, checkpoint_of, command_line, keyring_of, load, load_corpus
from assay.config import LoadedRun
from assay.corpus_gate import pass_gate
from assay.planning.cluster import read_cluster
from assay.receipts.unknown_ids import id_note
from governance.checks.audit import tables_again
from governance.checks.data_docs import data_docs, write_data_docs
from governance.checks.drift import write_reference
from governance.checks.gx.suite_files import gates_toml, read_suite, write_suites
from governance.checks.shards import sketch_corpus
from governance.energy.development_share import BEFORE, DATA, FINAL, development
from governance.energy.ledger import joules_of
from governance.errors import ConfigError, GateClosed, ManifestError
from governance.files import write_json, write_text
from governance.gate.explanation import explain
from governance.gate.policy import load_policy
from governance.gate.signed_statements import submitters
from governance.gate.verdict import GovernanceConfig, Keyring, read_verdict
from governance.lineage.attest import open_journal, refuse_strange_key, refuse_unstated, state_model_signature
from governance.lineage.lineage_graph import describe_node, read_graph
from governance.manifest import Manifest, differences
from governance.recomputation.audit_statement import FALSIFIED
from governance.reports.sections.memorisation_section import copies_words, read_words, trend_words
from governance.signing import model_bundles
from governance.signing.dsse import (
    create_job_key,
    create_key,
    default_key_path,
    key_bytes,
    key_id,
    private_key,
    public_path,
)
from governance.signing.git_anchor import anchor_words
from governance.signing.journal_lines import FILE_NAME as JOURNAL
from governance.signing.journal_lines import SKEW, ahead_words, stamp
from governance.signing.openssf import FILE_NAME as BUNDLE
from governance.signing.openssf import create_model_key, default_model_key_path
from governance.stage import Runtime, read_artifact, root_of
from governance.verification import verify_artifact, verify_root
from governance.verified_files import intact
from pretrain.checkpoint.format import read_checkpoint


def check(arguments: Arguments) -> int:
    """Audit the corpus and sign the verdict; the gate's exit status."""
    from assay.pipeline import judge_corpus

    loaded, runtime, artifacts = load_corpus(arguments)
    checked, verdict = judge_corpus(loaded, artifacts, runtime)
    if arguments.data_docs is not None:
        _data_docs(arguments.data_docs or None, checked, artifacts, loaded, runtime)
    if arguments.json:
        say("", **verdict)
    pass_gate(loaded, artifacts, runtime)  # a closed gate is explained by the error
    say(explain(verdict))
    return 0


def _data_docs(
    folder: Path | None, checked: Manifest, artifacts: dict[str, Manifest], loaded: LoadedRun, runtime: Runtime
) -> None:
    """Evaluate an audit again and write Great Expectations' Data Docs.

    Without a folder, they become an artifact that the report links.
    """
    tables, gates = tables_again(checked, artifacts, loaded.policy, runtime), loaded.policy.gates()
    if folder is None:
        made = data_docs(tables, gates, checked, runtime)
        folder, shown = runtime.root / made.folder, made.stats["tables"]
    else:
        shown = write_data_docs(tables, gates, folder)
    page = folder / "index.html"
    say(f"{page}: {shown} tables by Great Expectations; the pages need no network", data_docs=page)


def freeze(arguments: Arguments) -> None:
    """Sign the distributions of an accepted corpus as a reference for audits.

    Raises:
        GateClosed: the verdict does not let this corpus through.
        ConfigError: the file exists; a reference never changes.
    """
    file: Path = arguments.file
    if file.exists():
        raise ConfigError(f"{file}: exists already, and a reference never changes. Give another name.")
    loaded, runtime, artifacts = load_corpus(arguments)
    pass_gate(loaded, artifacts, runtime)
    sketch = sketch_corpus(artifacts["clean"], runtime.root)
    key = loaded.keyring.signer()
    write_reference(file, sketch, artifacts["encode"], artifacts["clean"], key)
    say(
        f"{file}: {len(sketch)} features of corpus {artifacts['encode'].digest[:16]}; name it in [audit] reference",
        reference=file,
        features=len(sketch),
    )


def suites(arguments: Arguments) -> None:
    """Write gates as suites of Great Expectations, or a suite as gates."""
    if arguments.policy.suffix == ".json":
        text = gates_toml(read_suite(arguments.policy, arguments.suite, arguments.owner)).rstrip()
        say(text, gates=text)
        return
    if arguments.folder is None:
        raise ConfigError("assay governance suites POLICY FOLDER: name a new folder for the suites")
    for path in write_suites(load_policy(arguments.policy).gates(), arguments.folder):
        say(str(path), suites=[path])


def clock(arguments: Arguments) -> int:
    """Show times ahead of the clock, or sign that they are void."""
    from assay.start_preflight import require_site_rules

    loaded, runtime = load(arguments, "governance clock")
    journal, moment = loaded.journal(runtime.root), datetime.datetime.now(datetime.UTC)
    verdicts = _verdicts_ahead(loaded, runtime.root, moment)
    lines = [*(f"journal {words}" for words in ahead_words(journal.verified(), moment)), *verdicts.values()]
    for line in lines:
        say(line, ahead=[line])
    if not lines:
        say(f"nothing is dated ahead of this machine's clock, {stamp(moment)}", ahead=[])
        return 0
    if arguments.accept is None:
        say("if this clock is the right one: assay governance clock CONFIG --accept YYYY-MM-DD --reason '...'")
        return GateClosed.exit_code
    if arguments.accept != moment.date().isoformat():
        raise ConfigError(
            f"--accept {arguments.accept}: this machine's clock shows {moment.date()}. Give today's date by "
            "another clock; if the two differ, set this machine's clock first"
        )
    if len(arguments.reason) < 10:
        raise ConfigError(
            f"--reason {arguments.reason!r}: say in ten characters or more which clock was wrong, and why"
        )
    require_site_rules(loaded)
    count = journal.state_clock(sorted(verdicts), arguments.reason, submitters(loaded.config.governance.submitter)[0])
    say(
        f"signed: the times of {count} line(s) of the journal are void, and so is each verdict given before", void=count
    )
    line = command_line(arguments, "governance check")
    say(f"next: {line}", next=line)
    return 0


def _verdicts_ahead(loaded: LoadedRun, root: Path, moment: datetime.datetime) -> dict[str, str]:
    """Verdicts that are dated ahead of a clock: file -> words."""
    found = {}
    for path in sorted(root.glob("verdicts/*.json")):
        try:
            signed = read_verdict(path, loaded.keyring)["signed_at"]
        except ManifestError:
            continue  # an untrusted verdict opens no gate
        if signed > stamp(moment + SKEW):
            name = path.relative_to(root).as_posix()
            found[name] = f"{name}: is signed at {signed}, ahead of this machine's clock ({stamp(moment)})"
    return found


def verify(arguments: Arguments) -> int:
    """Read an artifact, or everything below a root.

    `deep` also checks what was signed about it.
    """
    artifact: Path = arguments.artifact
    root = root_of(artifact)
    keyring = Keyring(GovernanceConfig(trusted_keys=tuple(str(key.absolute()) for key in arguments.keys)))
    alone = artifact.resolve() != root
    look = verify_artifact if alone else verify_root
    files, problems, notes = look(artifact if alone else root, keyring, deep=arguments.deep)
    for problem in problems:
        say(problem, problems=[problem])
    for note in notes:
        say(f"note: {note}", notes=[note])
    where = f"of {artifact}" if alone else f"below {root}"
    if problems:
        raise ManifestError(f"{len(problems)} problem(s) in {files} files {where}")
    signed = ", and as the journal states" if arguments.deep else ""
    say(f"{files} files {where}: all as their manifests say{signed}", files=files, problems=[])
    for line in anchor_words(open_journal(keyring, root)) if arguments.deep else ():
        say(f"{JOURNAL}: {line}", journal=[line])
    return 0


def anchor(arguments: Arguments) -> int:
    """Return whether the journal lacks lines that it had.

    `--accept` signs that they are given up. The exit status is 77 while lines are missing.
    """
    loaded, runtime = load(arguments, "governance anchor")
    journal = loaded.journal(runtime.root)
    if arguments.accept is not None:
        if not arguments.accept.strip():
            raise ConfigError('--accept: say why these lines are given up: --accept "restored from a backup"')
        owners = loaded.keyring.trusted()
        count = len(journal.accept(arguments.accept, owners))
        say(f"{JOURNAL}: {count} head(s) given up", given_up=count)
    for line in anchor_words(journal):
        say(f"{JOURNAL}: {line}", journal=[line])
    return GateClosed.exit_code if journal.behind() else 0


def site(arguments: Arguments) -> None:
    """Show the site's rules, or the digest of a policy to pin."""
    from governance.gate.site_policy import SYSTEM, VARIABLE, sites

    if arguments.policy is not None:
        digest = load_policy(arguments.policy).digest
        say(digest, digest=digest)
        return
    found = sites()
    for each in found:
        facts = {"policy": each.policy.name, "digest": each.policy.digest, "path": each.path}
        trusts = {"keys": [key_id(key) for key in each.keys], "verdict_by": each.verdict_by}
        say(
            f"{each.name}: policy {each.policy.name} {each.policy.digest} ({each.path})",
            sites={each.name: facts | trusts},
        )
        for key in each.keys:
            say(f"  trusts the key {key_id(key)}, and those that it certified")
        if each.verdict_by:
            say(f"  {each.verdict_by[0]} signs the audit's statement, {each.verdict_by[1]} the verdict")
    if not found:
        say(f"no site policy applies here: neither {SYSTEM} nor a file named by ${VARIABLE} is there", sites={})


def trace(arguments: Arguments) -> None:
    """An artifact's ancestors, as lines, a picture, and PROV."""
    manifest = read_artifact(arguments.artifact)
    graph = read_graph(root_of(arguments.artifact))
    node = graph.find(manifest)
    say(describe_node(node), artifact=describe_node(node), ancestors=[])
    above = list(graph.ancestors(node))
    for depth, item in above:
        say(f"{'  ' * depth}{describe_node(item)}", ancestors=[{"depth": depth, "artifact": describe_node(item)}])
    if arguments.svg is not None:
        from governance.lineage.svg import draw

        write_text(arguments.svg, draw(graph, node))
    if arguments.prov is not None:
        from governance.lineage.lineage_graph import prov_document

        write_json(arguments.prov, prov_document(graph, [node, *(item for _, item in above)]))
    _say_unverified()


def _say_unverified() -> None:
    """Say that the answer rests on files whose signatures nobody checked."""
    line = "note: no signature was verified; this does: assay governance verify ROOT --deep"
    say(line, signatures_verified=False)


def impact(arguments: Arguments) -> None:
    """Print shards, rows, checkpoints and children that saw a document."""
    from assay.impact import explain, require_whole_shards
    from assay.impact import impact as find

    roots = [root.absolute() for root in arguments.roots]
    require_whole_shards(roots)
    impacts = find(arguments.document, roots)
    say(explain(impacts), **asdict(impacts))
    _say_unverified()


def audit_training(arguments: Arguments) -> int:
    """Repeat drawn stretches of a training; 65 where weights differ."""
    from assay.recomputation.training_audit import audit_training as audit
    from assay.recomputation.training_audit import explain

    loaded, runtime, artifacts = load_corpus(arguments)
    made, facts = audit(loaded, artifacts, replace(runtime, make=True), arguments.share, arguments.beacon)
    say(explain(facts), **facts, **artifact(made, runtime.root))
    return ManifestError.exit_code if facts["verdict"] == FALSIFIED else 0


def takedown(arguments: Arguments) -> None:
    """Print the plan of a replay without some documents; replay with `execute`.

    With `settings`, write its settings for a job.
    """
    from assay.replay.replay_plan import explain, replay_plan

    loaded, runtime, artifacts = load_corpus(arguments)
    named = arguments.cluster or loaded.config.slurm.cluster
    cluster = read_cluster(named, Path() if arguments.cluster else loaded.folder) if named else None
    plan = replay_plan(loaded, artifacts, runtime, arguments.documents, cluster)
    say(explain(plan), **plan.facts())
    if not (arguments.execute or arguments.settings):
        return
    from assay.replay.replay_run import certificate_words, certify, write_settings

    file, settled = write_settings(loaded, plan)
    arguments.more = [*arguments.more, file]
    arguments.overrides = [
        override for override in arguments.overrides if override.partition("=")[0].strip() not in settled
    ]
    if arguments.settings:
        line = command_line(arguments, "slurm submit")
        say(f"{file}: the settings of the replay; next: {line}, then this command with --execute, which signs it",
            settings=file, next=line)  # fmt: skip
        return
    from assay.pipeline import training

    child, runtime = load(arguments, "data prepare")
    made = training(child, artifacts, runtime, arguments.nproc, argv_of(arguments, runtime))
    facts = certify(child, plan, made, runtime)
    say(certificate_words(facts), replay=facts, settings=file, **artifact(made, runtime.root))
    line = command_line(arguments, "report")
    say(f"{file}: the settings of the replay; next: {line}", next=line)


def prove(arguments: Arguments) -> None:
    """Write a document's receipt for a checkpoint, and print it in words.

    Raises:
        ConfigError: the file exists already.
    """
    from assay.receipts.receipt_requests import explain, verifier_text
    from assay.receipts.receipt_requests import prove as find

    file: Path = arguments.receipt
    if file.exists():
        raise ConfigError(f"{file}: exists already. Give another name: --receipt FILE")
    keyring = keyring_of(arguments.signing_key)
    evidence = find(arguments.asked, arguments.checkpoint, keyring, arguments.nearest)
    write_text(file, json.dumps(evidence, ensure_ascii=False, separators=(",", ":")) + "\n")
    if arguments.verifier is not None:
        write_text(arguments.verifier, verifier_text())
    verifier = arguments.verifier or "verify_receipt.py"
    line = f"python {verifier} {file} --key {public_path(keyring.own)}"
    said = evidence["statement"]
    unknown = said["asked"]["kind"] == "id" and said["found"] is None and not said.get("removed")
    note = id_note(arguments.asked, root_of(arguments.checkpoint)) if unknown else ""
    say(explain(evidence, note), **evidence, note=note, file=file, verify=line)
    say(f"{file}: others check it with: {line}")


def diff(arguments: Arguments) -> int:
    """Two artifacts compared; 1 when they differ, as diff does."""
    lines = differences(read_artifact(arguments.ours), read_artifact(arguments.theirs))
    if lines or arguments.json:
        say("\n".join(lines), differences=lines)
    _say_unverified()
    return 1 if lines else 0


def keygen(arguments: Arguments) -> None:
    """Make a personal, root, job or model key pair."""
    if arguments.root_key is not None and arguments.job is None:
        raise ConfigError("--root-key certifies a job's key. Give the path of that key: --job PATH")
    path: Path
    if arguments.job is not None:
        if arguments.root_key is None:
            raise ConfigError("--job needs the root's key, which certifies it: --root-key PATH")
        path = arguments.job
        create_job_key(path, private_key(arguments.root_key, make=False), arguments.name, arguments.days)
        text = f"job key {path}, certified for {arguments.days} days; verify with the root's public key"
        say(text, private_key=path, days=arguments.days)
    elif arguments.model is not None:
        path = Path(arguments.model) if arguments.model else default_model_key_path()
        create_model_key(path)
        say(f"model key {path}, public key {public_path(path)}", private_key=path, public_key=public_path(path))
    else:
        path = arguments.root or arguments.new_key or default_key_path()
        create_key(path)
        say(f"private key {path}, public key {public_path(path)}", private_key=path, public_key=public_path(path))
        if arguments.root is not None:
            say("keep the private key offline; it is needed only to make a job's key: keygen --job PATH --root-key ...")


def audit_model(arguments: Arguments) -> None:
    """Print a checkpoint's strongest biases on templates and published sets."""
    from assay.checkpoint_evaluation import model_audit

    loaded, runtime, artifacts = load_corpus(arguments)
    audit = model_audit(loaded, artifacts, checkpoint_of(arguments, loaded, artifacts, runtime)[0], runtime)
    with intact(audit.named("leanings.json"), runtime.root) as path:
        found = json.loads(path.read_bytes())
    title = f"biases at step {audit.stats['step']}, in nats, with 95 % intervals; the ten largest:"
    say(title, **artifact(audit, runtime.root), **found)
    for row in sorted(found["templates"], key=lambda row: -max(row["lower"] or 0, -(row["upper"] or 0)))[:10]:
        place = f"{row['axis']}/{row['group']} {row['category']}"
        interval = "no interval" if row["lower"] is None else f"[{row['lower']:+.3f}, {row['upper']:+.3f}]"
        say(f"  {place:<40} {row['lean']:+.3f} {interval}")
    for name, rows in found["sets"].items():
        figures = ", ".join(f"{key} {value}" for key, value in rows[0].items() if key != "category")
        say(f"{name}: {figures}")
    bias = found["corpus"]
    if bias["rho"] is not None:
        say(
            f"against the corpus: rank correlation {bias['rho']:+.3f} [{bias['lower']:+.3f}, {bias['upper']:+.3f}]"
            f" over {bias['pairs']} pairs of group and category"
        )
    say(f"{runtime.root / audit.folder / 'leanings.json'}")


def audit_memorisation(arguments: Arguments) -> None:
    """Print the extraction rate of training sequences by copies."""
    from assay.checkpoint_evaluation import memorisation, verbatim

    loaded, runtime, artifacts = load_corpus(arguments)
    checkpoint = checkpoint_of(arguments, loaded, artifacts, runtime)[0]
    audit = memorisation(loaded, artifacts, checkpoint, runtime)
    stats = audit.stats
    words = f"{stats['prefix_tokens']} tokens given, {stats['continuation_tokens']} to repeat"
    say(f"memorisation at step {stats['step']}, {words}:", **artifact(audit, runtime.root), **stats)
    say(read_words(stats))
    say("  copies     sequences  extracted  rate, 95 % interval      tokens right")
    for row in stats["rows"]:
        interval = f"{row['rate']:.4f} [{row['lower']:.4f}, {row['upper']:.4f}]"
        counts = f"{row['sequences']:>9,}  {row['extracted']:>9,}"
        say(f"  {copies_words(row):<9}  {counts}  {interval:<23}  {row['tokens_right']:.3f}")
    say(trend_words(stats["trend"]))
    say(f"{runtime.root / audit.folder / 'sequences.json'}")
    if (traced := verbatim(loaded, artifacts, checkpoint, runtime)) is None:
        say("to measure how much of its generations is verbatim in the corpus, make an index: assay data index CONFIG")
        return
    say("\ngenerations with a passage that is verbatim in the corpus:", verbatim=traced.stats)
    say("  prompts of  characters  generations  with one  rate, 95 % interval      of all characters")
    for row in traced.stats["rows"]:
        interval = f"{row['rate']:.4f} [{row['lower']:.4f}, {row['upper']:.4f}]"
        counts = f"{row['characters_from']:>10,}  {row['generations']:>11,}  {row['with_passage']:>8,}"
        share = f"{row['characters']:.4f} [{row['characters_lower']:.4f}, {row['characters_upper']:.4f}]"
        say(f"  {row['prompts_of']:<10}  {counts}  {interval:<23}  {share}")
    say(f"{runtime.root / traced.folder / 'generations.json'}")


def energy(arguments: Arguments) -> None:
    """Print the energy of all roots, and the development share."""
    from governance.reports.html.markup import UNKNOWN, share
    from governance.reports.html.markup import energy as watt_hours

    spent = development(arguments.roots, arguments.final)
    sums = {**spent.rows, "all": spent.total}
    shares = {"development": spent.share(FINAL), "other trainings and work": spent.share(FINAL, BEFORE, DATA)}
    facts = {
        "final": f"{spent.root / spent.final}",
        "millijoules": {
            name: {part: getattr(one, part) for part in ("measured", "surviving", "wasted", "unknown", "low", "high")}
            for name, one in sums.items()
        },
        "shares": {
            name: None if one is None else {"value": float(one.value), "low": one.low, "high": one.high}
            for name, one in shares.items()
        },
        "methods": list(spent.total.methods), "copied": spent.copied, "missing": list(spent.missing),
    }  # fmt: skip
    say(f"final training: {spent.root / spent.final}", **facts)
    for name, one in sums.items():
        used, lost = (watt_hours(joules_of(value)) for value in (one.measured, one.wasted))
        part = "" if not one.measured or not spent.total.measured else share(one.measured / spent.total.measured)
        say(f"  {name:<16} {used:>12} {part:>8}  of which wasted {lost}")
    for name, value in shares.items():
        if value is None:
            say(f"share of {name}: {UNKNOWN}: the final training was not measured")
            continue
        words = [UNKNOWN if one is None else share(one) for one in (value.low, value.high)]
        say(f"share of {name}: {share(float(value.value))} (from {words[0]} to {words[1]})")
    say(f"meters: {'; '.join(spent.total.methods)}")
    for name in spent.missing:
        say(f"note: {name} has no manifest here: name its root, or its energy is counted as development")
    _say_unverified()


def sign(arguments: Arguments) -> None:
    """Sign a checkpoint as an OpenSSF model.

    Raises:
        ConfigError: the key does not exist, or no line of the journal is by the key that would sign the next one.
        GateClosed: none by that key states the checkpoint as it is.
    """
    root = root_of(arguments.checkpoint)
    manifest = read_checkpoint(arguments.checkpoint, root)
    key = arguments.key or default_model_key_path()
    if arguments.key is not None:  # only the account's own key is made on first use
        key_bytes(key, " Make one: assay governance keygen --model PATH")
    keyring = keyring_of(arguments.signing_key)
    refuse_strange_key(keyring, root)
    refuse_unstated(manifest, keyring, root)
    name = state_model_signature(open_journal(keyring, root), manifest, key, root)
    folder = root / manifest.folder
    words = f"{folder} --signature {root / name} --public_key {public_path(key)}"
    line = f"model_signing verify key {words}"
    say(f"{root / name}: others check it with: {line}", signature=root / name, verify=line)


def verify_model(arguments: Arguments) -> None:
    """Verify a model's OpenSSF signature.

    Raises:
        ConfigError: an identity without its issuer.
        ManifestError: another signer, or files that are not as they were signed.
    """
    model: Path = arguments.model
    if bool(arguments.identity) != bool(arguments.issuer):
        raise ConfigError("--identity and --issuer require each other: --identity NAME --issuer URL")
    if arguments.key is not None:
        by, signer = model_bundles.by_key(arguments.key), f"key {arguments.key}"
    elif arguments.certificate:
        by, signer = model_bundles.by_certificate(arguments.certificate), "a certificate of the given authorities"
    else:
        by, signer = model_bundles.by_identity(arguments.identity, arguments.issuer), arguments.identity
    verified = model_bundles.verify_model(model, arguments.signature or model / BUNDLE, by, arguments.ignored)
    count = len({name.split(":")[0] for name in verified.files})
    say(f"{model}: {count} file(s), all as {signer} signed them", files=count, model=verified.name, problems=[])
