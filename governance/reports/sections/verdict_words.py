"""Verdict as text: reason, signer, approval, rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from governance.gate.explanation import closing_sentences, counted
from governance.reports.facts.problems import closing
from governance.reports.html.markup import number

_SHOWN = 3  # reasons
_DID = {"fail": "failed", "error": "could not be carried out", "missing": "without a result"}
_PLAIN = {
    "PASS": "Every critical gate passed. The corpus may be trained on.",
    "WAIVED": "The corpus may be trained on: the owners of the failed gates have waived them.",
    "BLOCK": "A critical gate failed. The corpus may not be trained on.",
    "INCONCLUSIVE": "A critical gate had too little data to judge, which does not count as a pass.",
    "ERROR": "A check could not be carried out, which does not count as a pass.",
    "NOT_RUN": "A gate has no result, which does not count as a pass.",
}


def meaning(found: Mapping[str, Any]) -> str:
    """Meaning of the verdict for the corpus."""
    word = found["summary"]["verdict"]
    text = _PLAIN.get(word, "This release does not know this verdict.")
    untouched = word not in ("PASS", "WAIVED") and not found["training"] and not found["begun"]
    return f"{text} Nothing was trained." if untouched else text


def reasons(found: Mapping[str, Any]) -> list[str]:
    """Reasons of a closed gate, or exceptions of an open one."""
    word = found["summary"]["verdict"]
    if word in ("PASS", "WAIVED"):
        return list(_open_reasons(found))
    sentences = [sentence for _, sentence in closing_sentences(closing(found), found["owners"])]
    more = [f"{counted(len(sentences) - _SHOWN, 'more reason')} below."] if len(sentences) > _SHOWN else []
    return [*(sentences[:_SHOWN] or ["The verdict gives no reason."]), *more]


def _open_reasons(found: Mapping[str, Any]) -> Iterator[str]:
    counts = found["verdict"].get("summary") or {}
    others = [f"{count:,} {_DID.get(status, status)}" for status, count in sorted(counts.items())
              if status != "pass" and count]  # fmt: skip
    only = ", in non-blocking gates" if found["summary"]["verdict"] == "PASS" else ""
    rest = f"{' and '.join(others)}{only}" if others else "none failed"
    yield f"{counted(counts.get('pass', 0), 'check')} passed; {rest}."
    for waiver in found["verdict"].get("waivers", [])[:_SHOWN]:
        yield f"Waived: {waiver.get('gate')} by {waiver.get('approver')} until {waiver.get('expires')}."


def signer(found: Mapping[str, Any]) -> str:
    """Signer, time and approval."""
    when = str(found["verdict"].get("signed_at") or "").replace("T", " ").replace("Z", " UTC")
    return f"The verdict is {found['summary']['signer']}{f' ({when})' if when else ''}."


def rules(found: Mapping[str, Any]) -> str:
    """Policy, its strength, and the site policy."""
    return f"Judged by {found['summary']['policy']}, {found['summary']['site']}."


def expiry(found: Mapping[str, Any]) -> str:
    """Expiry and scope of the verdict."""
    given = found["verdict"]
    names = len(given.get("subjects") or {})
    return f"until {str(given.get('expires', 'unknown'))[:10]}, for {number(names)} signed files"
