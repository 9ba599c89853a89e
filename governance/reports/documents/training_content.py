"""The public summary of training content (AI Act, Article 53(1)(d)).

The items are those of the European Commission's template of 24 July 2025, adopted by its Communication C(2025) 8311 of
5 December 2025, paraphrased and in its order. A provider publishes the template itself; this document supplies what the
run knows. Sizes are given in the template's ranges.
"""

from __future__ import annotations

from governance.reports.documents.corpus_facts import domains, parents, read_on, shares_of, years
from governance.reports.documents.datasheet import sources
from governance.reports.documents.evidence import TO_COMPLETE, Evidence, Field, joined
from governance.reports.documents.markdown import form, section
from governance.reports.html.markup import number, share

RANGES = ((1e9, "fewer than 1 billion tokens"), (1e13, "1 billion to 10 trillion tokens"))
"""Below this many tokens: the range's name. From the last one up: more than 10 trillion."""


def training_content(evidence: Evidence) -> str:
    """The summary, section by section."""
    return "\n".join(
        [
            "# Summary of training content\n",
            "Items after the European Commission's template of 24 July 2025, adopted by its Communication C(2025) 8311"
            " of 5 December 2025, for Article 53(1)(d) of Regulation (EU) 2024/1689, paraphrased. Filled from the"
            " evidence of the run: numbers are those of report.json."
            f" Entries without evidence are marked: {TO_COMPLETE}.\n",
            section("1.1 Provider", form(_open("name and contact", "representative in the Union and contact"))),
            section("1.2 Model", form(_model(evidence))),
            section("1.3 Modalities, size and character of the data", form(_size(evidence))),
            section("2. Sources", _sources(evidence)),
            section(
                "2.1 Public data sets", form(_open("large public data sets: names and links", "other public ones"))
            ),
            section("2.2 Data sets that are not public", form(_open("licensed by rights holders", "from others"))),
            section("2.3 Crawled and scraped from the web", form(_crawled(evidence))),
            section("2.4 Data of users", form(_open("from the provider's services", "what kind, which service"))),
            section("2.5 Synthetic data", form(_open("generated for this model", "by which models"))),
            section("2.6 Other sources", form(_open("what, and how it was obtained"))),
            section("3.1 Reservation of rights", form(_reservations(evidence))),
            section("3.2 Unlawful content", form(_unlawful(evidence))),
            section("3.3 Other", form(_other(evidence))),
        ]
    )


def _open(*names: str) -> list[Field]:
    return [Field(name, None) for name in names]


def _model(evidence: Evidence) -> list[Field]:
    return [
        *_open("name and version"),
        evidence.field("training, by the digest of its manifest", "training.digest", str),
        parents(evidence, "parent model"),
        *_open("date of placing on the Union market"),
    ]


def _size(evidence: Evidence) -> list[Field]:
    return [
        Field("modality", "text"),
        evidence.field("size, as a range", "summary.train_tokens", token_range),
        evidence.field("tokens for training", "summary.train_tokens"),
        evidence.field("documents", "summary.documents_kept"),
        Field("kinds of content", None),
        read_on(evidence, "latest date at which data was collected", "not after "),
        Field("whether the model is trained on new data after that", None),
        Field("languages", joined(evidence.languages), "representation.documents" if evidence.languages else ""),
        *_countries(evidence),
    ]


def _countries(evidence: Evidence) -> list[Field]:
    name, found = "regions and demographics in the data", shares_of(evidence, "country", "share")
    text = ", ".join(f"{row['group']} {share(row['value'])}" for row in found)
    by_domain = [Field("countries of the documents' domains", text, "bias.shares")] if text else []
    return [*by_domain, Field(name, None)]


def token_range(tokens: int) -> str:
    """The template's range for a count of tokens."""
    return next((name for bound, name in RANGES if tokens < bound), "more than 10 trillion tokens")


def _sources(evidence: Evidence) -> str:
    return (
        f"{sources(evidence)}\nAssignment of these sources to the six kinds below: {TO_COMPLETE}; the run records"
        " how a source was read, not how it was obtained.\n"
    )


def _crawled(evidence: Evidence) -> list[Field]:
    return [
        *_open("crawlers: names, owners, purposes, behaviour towards robots.txt, log-ins and captchas"),
        years(evidence, "when it was collected: years in the URLs"),
        *_open("kinds of content and of sites"),
        domains(
            evidence,
            "the largest tenth of the domains by size (for small enterprises the largest twentieth, at most 1,000)",
        ),
    ]


def _reservations(evidence: Evidence) -> list[Field]:
    refused = [row["name"] for row in evidence.found["sources"] if row["fate"] == "refused: licence"]
    return [
        Field("signatory of the code of practice, chapter on copyright", None),
        evidence.field("licences that the policy allows", "licences_allowed", lambda names: ", ".join(names) or "none"),
        Field("sources refused for their licence", joined(refused) or "none", "sources"),
        Field("documents removed for a reservation (robots.txt and other signals)", _removed(evidence, "opted_out")),
        Field("other measures before and after collection", None),
    ]


def _unlawful(evidence: Evidence) -> list[Field]:
    removed = sum(count for row in evidence.found["funnel"] for count in row["removed"].values())
    return [
        Field("documents removed by filters, all reasons", number(removed), "funnel"),
        Field("documents removed by URL block lists", _removed(evidence, "blocked")),
        Field("measures against child sexual abuse material, terrorist content and other unlawful content", None),
    ]


def _removed(evidence: Evidence, reason: str) -> str | None:
    """Documents removed for a reason; None where no stage counted it."""
    counts = [row["removed"][reason] for row in evidence.found["funnel"] if reason in row["removed"]]
    return number(sum(counts)) if counts else None


def _other(evidence: Evidence) -> list[Field]:
    return [
        evidence.field("verdict of the corpus's gate", "summary.verdict", str),
        evidence.field("checks", "verdict.summary", lambda counts: ", ".join(f"{n} {k}" for k, n in counts.items())),
        *_open("other remarks"),
    ]
