"""Interactive review of open gates; records the owner's signed decision.

For each reason of the verdict that closes: the gate, why it is there, its owner, the threshold, what was observed, the
rows that break it, and, where its table is one of documents, some of them with personal data masked. The answer is a
waiver, a refusal, or nothing; for a policy that is looser than its parent, an approval.

Promise: a waiver or an approval is written only if it would hold, by the very rules that judge it later, and after the
last question about it; the end of the input is the answer "quit". It reads and
writes lines, so it works over a pipe as on a terminal.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from governance.checks.judgeable import limits, shown
from governance.checks.messages import offending_rows, row_text, rows_where
from governance.errors import ConfigError, MissingInput
from governance.files import sha256_bytes
from governance.gate.approvals import APPROVAL, Approval, links, policy_differences
from governance.gate.explanation import counted
from governance.gate.gate_expectations import bound_text
from governance.gate.policy import Gate, Policy
from governance.gate.refusals import REFUSALS, Refused, withdrawal_faults
from governance.gate.signed_statements import (
    SignedStatement,
    person_fault,
    signature_fields,
    signer_id,
    write_statement,
)
from governance.gate.waivers import (
    REFUSAL,
    WAIVABLE,
    WAIVER,
    WITHDRAWAL,
    Case,
    Refusal,
    Waiver,
    Withdrawal,
    ruling_faults,
)
from governance.reports.facts.samples import shorten
from governance.reports.html.markup import visible
from governance.signing.dsse import private_key

if TYPE_CHECKING:
    import pandas as pd

_DAYS = 30
_ROWS = 5
_SAMPLES = 3
_LETTERS = 10  # least characters of a reason


@dataclass(frozen=True)
class Bench:
    """Inputs of a review, and where its decisions go."""

    case: Case
    """The corpus and its policy; `today` is the day of the review."""
    verdict: Mapping[str, Any]
    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    """Suite -> the rows that were judged, of those suites whose table the audit keeps."""
    root: Path
    waivers: Path
    approvals: Path


class _Quit(Exception):
    """The person quits, or the input has ended."""


def reviewer_key(path: Path) -> Any:
    """The reviewer's own key, which must be there.

    A key made now would belong to no person of the policy.

    Raises:
        MissingInput: there is no such file.
    """
    if not path.exists():
        raise MissingInput(f"{path}: no such key. Give your own, the one that [people] of the policy knows.")
    return private_key(path)


def kept_tables(audit: Path, bias: Path | None) -> dict[str, list[dict[str, Any]]]:
    """Tables of an audit and of stage `bias`, as suite -> rows."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(audit.glob("*.json")):
        content = json.loads(path.read_bytes())
        rows = content.get("rows") if isinstance(content, Mapping) else content
        if path.stem not in ("results", "manifest") and isinstance(rows, list):
            found[path.stem] = rows
    if bias is not None and (bias / "tables.json").exists():
        found |= json.loads((bias / "tables.json").read_bytes())
    return found


def review(
    bench: Bench, key: Any, source: TextIO, target: TextIO, signed: Callable[[Path], None] = lambda path: None
) -> list[Path]:
    """Walk through the open results; return the statements that were written.

    Args:
        bench: what is reviewed.
        key: the reviewer's key.
        source: where answers come from, a line each.
        target: where questions and evidence go.
        signed: called with each statement before the next question.

    Raises:
        ConfigError: the key belongs to no person of the policy, nor of one that it is compared with.
    """
    policies = [bench.case.policy, *(parent for _, parent in links(bench.case.policy))]
    if not any(_name(policy, key) for policy in policies):
        raise ConfigError(
            f"the key {signer_id(key)} is in [people] of none of the policies "
            f"{', '.join(policy.name for policy in policies)}. Have it added there, or give another with --key."
        )
    written: list[Path] = []
    talk = _Talk(source, target)

    def keep(statements: list[Path]) -> None:
        for path in statements:
            written.append(path)
            talk.say(f"signed: {path}")
            signed(path)

    try:
        for child, parent in links(bench.case.policy):
            keep(_review_policy(bench, (child, parent), key, talk))
        open_reasons = [reason for reason in bench.verdict["reasons"] if reason["closes"]]
        talk.say(f"verdict {bench.verdict['verdict']}: {len(open_reasons)} reason(s) keep the gate closed")
        for number, reason in enumerate(open_reasons, 1):
            talk.say("", f"[{number}/{len(open_reasons)}] {reason['status']} {reason['gate']} on {reason['subject']}")
            keep(_review_reason(bench, reason, key, talk))
    except _Quit:
        talk.say("stopped; what was signed is kept")
    return written


class _Talk:
    """Questions and answers, a line each.

    Text that comes from a corpus cannot control the terminal.
    """

    def __init__(self, source: TextIO, target: TextIO) -> None:
        self._source, self._target = source, target

    def say(self, *lines: str) -> None:
        for line in lines:
            self._target.write(visible(line).replace("\n", " ") + "\n")
        self._target.flush()

    def ask(self, question: str, fault: Callable[[str], str], default: str = "") -> str:
        """Ask until the answer has no fault."""
        while True:
            self._target.write(visible(f"{question}{f' [{default}]' if default else ''}: "))
            self._target.flush()
            line = self._source.readline()
            if not line:
                self._target.write("\n")
                raise _Quit
            answer = line.strip() or default
            if not (words := fault(answer)):
                return answer
            self.say(words)

    def choose(self, question: str, letters: str) -> str:
        """One of some letters."""
        answer = self.ask(
            question, lambda text: "" if text in [*letters] else f"answer with one of {', '.join(letters)}"
        )
        if answer == "q":
            raise _Quit
        return answer

    def reason(self) -> str:
        """The reason given."""
        return self.ask("reason", lambda text: "" if len(text) >= _LETTERS else "write ten characters or more")


def _name(policy: Policy, key: Any) -> str:
    """Name of a key's owner in a policy; "" for unknown keys."""
    return next((name for name, known in policy.people.items() if known == signer_id(key)), "")


def _review_policy(bench: Bench, link: tuple[Policy, Policy], key: Any, talk: _Talk) -> list[Path]:
    policy, parent = link
    found = policy_differences(policy, parent)
    if not any(difference.loosened for difference in found):
        return []
    talk.say(f"policy {policy.name} is looser than its parent {parent.name}:", *(f"  {item.text()}" for item in found))
    draft = {"approver": _name(parent, key), "parent": parent.digest}
    content = Approval(
        **{**signature_fields(draft["approver"] or "nobody", "not yet given", key), "parent": parent.digest},
        differences=tuple(item.text() for item in found),
    )
    signed = SignedStatement("", "", APPROVAL, policy.digest, content, signer_id(key), "")
    if fault := person_fault(signed, content, parent.people, bench.case.submitters):
        talk.say(f"your approval would not count: {fault}")
        return []
    if talk.choose("a(pprove), s(kip), q(uit)", "asq") == "s":
        return []
    content = content.model_copy(update={"reason": talk.reason()})
    path = _path(bench.approvals, f"{policy.digest[:16]}-{content.approver}", content.signed_at)
    write_statement(path, APPROVAL, ("policy", policy.digest), content, key)
    return [path]


def _review_reason(bench: Bench, reason: Mapping[str, Any], key: Any, talk: _Talk) -> list[Path]:
    gate = next((gate for gate in bench.case.policy.gates() if gate.id == reason["gate"]), None)
    if gate is None or reason["subject"] == "policy":
        talk.say(f"  {reason['detail']}", "  nothing can be waived here")
        return []
    people = ", ".join(bench.case.policy.owners_of(gate)) or "nobody"
    talk.say(
        f"  why        {gate.why}",
        f"  owner      {gate.owner}: {people}",
        f"  threshold  {_threshold(gate)}",
        f"  observed   {_observed(reason)}",
        f"  finding    {reason['detail']}",
        *_evidence(bench, gate, str(reason["subject"])),
    )
    name = _name(bench.case.policy, key)
    may = "rsq" if name else "sq"
    if name and reason["status"] in WAIVABLE:
        faults = _waiver_faults(bench, gate, reason, key)
        if faults:
            talk.say(f"  your waiver would not hold: {'; '.join(faults)}")
        else:
            may = "w" + may
    words = {"w": "w(aive)", "r": "r(efuse)", "s": "s(kip)", "q": "q(uit)"}
    answer = talk.choose(", ".join(words[letter] for letter in may), may)
    if answer == "s":
        return []
    said = talk.reason()
    fields = {**signature_fields(name, said, key), **_about(bench, reason)}
    if answer == "r":
        return [_write(bench, REFUSAL, Refusal(**fields), key)]
    return [_write(bench, WAIVER, Waiver(**fields, **_terms(bench, reason, talk)), key)]


def _about(bench: Bench, reason: Mapping[str, Any]) -> dict[str, Any]:
    return {"gate": reason["gate"], "result": reason["subject"], "policy": bench.case.policy.digest}


def _terms(bench: Bench, reason: Mapping[str, Any], talk: _Talk) -> dict[str, Any]:
    """Until when a waiver holds, and how far it goes."""
    today = bench.case.today
    day = talk.ask(
        "expires on (YYYY-MM-DD)", lambda text: _day_fault(text, today), str(today + datetime.timedelta(days=_DAYS))
    )
    least = reason["deviation"]
    most = None
    if least is not None:
        most = float(talk.ask("greatest deviation", lambda text: _most_fault(text, least), f"{least:.12g}"))
    return {"observed": reason["observed"], "expires": day, "max_deviation": most}


def _day_fault(text: str, today: datetime.date) -> str:
    try:
        day = datetime.date.fromisoformat(text)
    except ValueError:
        return f"{text!r} is not a day; write it as YYYY-MM-DD"
    return "" if day >= today else f"{text} is past"


def _most_fault(text: str, least: float) -> str:
    try:
        number = float(text)
    except ValueError:
        return f"{text!r} is not a number"
    return "" if least <= number < float("inf") else f"the deviation is {bound_text(least)}; {text} would not cover it"


def _waiver_faults(bench: Bench, gate: Gate, reason: Mapping[str, Any], key: Any) -> list[str]:
    """Reasons why a waiver by this key would be void."""
    fields = {**signature_fields(_name(bench.case.policy, key), "not yet given", key), **_about(bench, reason)}
    draft = Waiver(**fields, observed=None, max_deviation=None, expires=str(bench.case.today))
    signed = SignedStatement("", "", WAIVER, bench.case.corpus, draft, signer_id(key), "")
    return ruling_faults(replace(bench.case, verdict_key=str(bench.verdict["key_id"])), gate, signed)


def _write(bench: Bench, kind: str, content: Refusal, key: Any) -> Path:
    result = sha256_bytes(content.result.encode("utf-8"))[:8]
    name = f"{kind.split(':')[2]}-{content.gate}-{result}-{content.approver}"
    path = _path(bench.root / REFUSALS if kind == REFUSAL else bench.waivers, name, content.signed_at)
    write_statement(path, kind, ("corpus", bench.case.corpus), content, key)
    return path


def withdraw(case: Case, refused: Refused, key: Any, reason: str, root: Path) -> Path:
    """Sign the withdrawal of one refusal, if it would hold.

    Raises:
        ConfigError: the reason is too short, or the person may not withdraw it.
    """
    if len(reason) < _LETTERS:
        raise ConfigError(f"--reason: say why {refused.name} is withdrawn, in {_LETTERS} characters or more")
    fields = signature_fields(_name(case.policy, key) or f"the key {signer_id(key)[:16]}", reason, key)
    content = Withdrawal(**fields, refusal=refused.name, gate=refused.gate, corpus=case.corpus)
    signed = SignedStatement("", "", WITHDRAWAL, refused.sha256, content, signer_id(key), "")
    if faults := withdrawal_faults(signed, refused, case.policy, case.corpus, case.submitters):
        raise ConfigError(f"your withdrawal of {refused.name} would not hold: {'; '.join(faults)}")
    name = f"withdrawal-{refused.gate}-{refused.sha256[:8]}-{content.approver}"
    path = _path(root / REFUSALS, name, content.signed_at)
    write_statement(path, WITHDRAWAL, ("refusal", refused.sha256), content, key)
    return path


def _path(folder: Path, name: str, moment: str) -> Path:
    """A file that does not exist yet.

    The name of a person is not trusted as the name of a file.
    """
    safe = "".join(letter if letter.isalnum() or letter in ".-_" else "_" for letter in name)
    day = moment[:10]
    number, path = 1, folder / f"{safe}-{day}.json"
    while path.exists():
        number += 1
        path = folder / f"{safe}-{day}-{number}.json"
    return path


_COMPARED = {"point": "value", "lower_ci": "lower end", "upper_ci": "upper end", "whole_ci": "whole interval"}


def _threshold(gate: Gate) -> str:
    number = gate.column or _COMPARED[gate.rule]
    quantile = f"quantile {gate.quantile:g} of " if gate.quantile is not None else ""
    bounds = limits(gate) or (f"one of {', '.join(gate.values)}" if gate.values else gate.regex)
    arguments = {**({"column": gate.column} if gate.column else {}), **gate.kwargs}
    named = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    parts = [f"{gate.gx}({named})" if gate.gx else f"{gate.expectation}: {quantile}{number} {bounds}".rstrip()]
    parts += [f"in a share of {bound_text(gate.mostly)}"] if gate.mostly < 1 else []
    parts += [f"where {name} = {value or 'nothing'}" for name, value in sorted(gate.where.items())]
    return "; ".join([*parts, f"severity {gate.severity}"])


def _observed(reason: Mapping[str, Any]) -> str:
    observed = reason["observed"]
    text = observed if isinstance(observed, str) else shown(observed)
    beyond = reason["deviation"]
    return f"{text} in {counted(reason['rows'], 'row')}" + (f", deviation {beyond:.12g}" if beyond is not None else "")


def _evidence(bench: Bench, gate: Gate, subject: str) -> list[str]:
    """Rows that break the gate, with documents where rows are documents."""
    import pandas as pd

    path = bench.root / subject
    documents = path.suffix == ".parquet" and path.is_file()
    table = _shard(path) if documents else pd.DataFrame(list(bench.tables.get(gate.suite, ())))
    if not {*gate.where, *filter(None, [gate.column])} <= set(table.columns) or table.empty:
        return []
    chosen = rows_where(table, gate.where)
    try:
        places = offending_rows(gate, chosen)
    except (TypeError, ValueError, KeyError):  # unjudgeable results have no offending row; the finding states why
        return []
    lines = [f"  row        {row_text(gate, chosen, place)}" for place in places[:_ROWS]]
    if len(places) > _ROWS:
        lines.append(f"             and {len(places) - _ROWS} more")
    if documents and "id" in chosen.columns:
        ids = [str(chosen.at[place, "id"]) for place in places[:_SAMPLES]]
        lines += [f"  sample     {name}: {text}" for name, text in _texts(path, ids)]
    return lines


def _shard(path: Path) -> pd.DataFrame:
    """A shard of documents or of their features, without texts.

    Where a column marks the kept rows, only those are in it.
    """
    import pyarrow.parquet as pq

    names = [name for name in pq.read_schema(path).names if name != "text"]
    table = pq.read_table(path, columns=names, partitioning=None).to_pandas()
    return table[table["kept"].eq(True)].reset_index(drop=True) if "kept" in table.columns else table


def _texts(path: Path, ids: Sequence[str]) -> list[tuple[str, str]]:
    """The beginnings of these documents, masked.

    The documents of a features shard are next to it.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    source = path if path.parent.name == "documents" else path.parent.parent / "documents" / path.name
    if not ids or not source.is_file():
        return []
    found = pq.read_table(source, columns=["id", "text"], filters=pc.field("id").isin(list(ids)), partitioning=None)
    return [(shorten(str(row["id"])), shorten(str(row["text"]))) for row in found.to_pylist()]
