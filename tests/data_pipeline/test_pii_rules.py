"""Credential rules read as data: their meaning, the faults of their files, the stage with them.

The file is written here in the format of gitleaks; no rule of a published file is part of it.
"""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.documents import read_table
from data_pipeline.pii.credential_rules import find_listed, read_rules, rules_of_digest
from data_pipeline.pii.detect import find, joined
from data_pipeline.pii.detections import Detection
from data_pipeline.pii.redact import PiiConfig, redact
from governance.errors import ConfigError, MissingInput
from governance.stage import Runtime
from tests.data_pipeline.test_pii import artifact

FILE = r"""
title = "made for this test"
[allowlist]
regexes = ['''^zz''']
stopwords = ["sample"]
paths = ['''\.lock$''']

[[rules]]
id = "acme-token"
regex = '''\b(acme_[a-z0-9]{12})\b'''
keywords = ["acme_"]
entropy = 2.5

[[rules]]
id = "second-group"
regex = '''(?i)(vault|box)\s*=\s*"([^"]{4,40})"'''
keywords = ["VAULT", "box"]
secretGroup = 2
[[rules.allowlists]]
regexTarget = "line"
regexes = ['''# public''']
[[rules.allowlists]]
condition = "AND"
regexes = ['''^open''']
stopwords = ["known"]

[[rules]]
id = "no-keywords"
regex = '''ZQ-[0-9]{6}'''

[[rules]]
id = "a-file"
path = '''\.p12$'''
"""
SECRET = "acme_k3v9x2m7q1w8"


@pytest.fixture
def rules(tmp_path):
    path = tmp_path / "rules.toml"
    path.write_text(FILE)
    return path


def found(text, path):
    return [(text[mark.start : mark.end], mark.type) for mark in find_listed(text, read_rules(path)[0])]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"é中 {SECRET} é {SECRET}", [(SECRET, "rule:acme-token")] * 2),
        (f"KEY {SECRET.upper()}", []),  # the keyword is found in any case, the expression states its own
        ("acme_aaaaaaaaaaaa", []),  # its entropy is too low
        ('vault = "s3cret"', [("s3cret", "rule:second-group")]),
        ('Box="s3cret"', [("s3cret", "rule:second-group")]),
        ('box = "zz-allowed"', []),
        ('box = "a-Sample-one"', []),
        ('box = "s3cret" # public', []),
        ('box = "open-known-1"', []),
        ('box = "open-other-1"', [("open-other-1", "rule:second-group")]),
        ("see ZQ-123456 there", [("ZQ-123456", "rule:no-keywords")]),
        ("nothing", []),
        ("", []),
    ],
)
def test_the_meaning_of_each_field(rules, text, expected):
    assert found(text, rules) == expected


def test_each_line_is_compared_with_a_list_once(rules):
    searched = []

    class Counting:
        def search(self, line):
            searched.append(line)
            return b"# public" in line

    book, _ = read_rules(rules)
    rule = book.rules[1]
    lines = rule.allowed[1]._replace(regexes=(Counting(),))
    counted = rule._replace(allowed=(rule.allowed[0], lines, *rule.allowed[2:]))
    book = book._replace(rules=(book.rules[0], counted, book.rules[2]))
    one = 'box="s3cret" ' * 500
    spread = 'box\n=\n"s3cret"'
    assert len(find_listed(f"{one}\n{one}# public\n{spread} {one}", book)) == 1001
    assert searched == [
        f"{one}".encode(),
        f"{one}# public".encode(),
        f"{spread} {one}".encode(),
        f'"s3cret" {one}'.encode(),
    ]


def test_rules_about_files_are_left_out_and_named(rules):
    book, digest = read_rules(rules)
    assert book.left_out == ("a-file",)
    assert book.types == ("rule:acme-token", "rule:second-group", "rule:no-keywords")
    assert len(rules_of_digest(rules, digest).rules) == 3
    rules.write_text(FILE + "\n")
    with pytest.raises(ConfigError, match="changed during the run"):
        rules_of_digest(rules, "0" * 64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (FILE[: FILE.index("{12}")], r"is not valid TOML: .*The file may be cut short"),
        ("\x00", "is not valid TOML"),
        ("title = 'x'", r"has no \[\[rules\]\]"),
        ("rules = 3", r"has no \[\[rules\]\]"),
        ("[extend]\nuseDefault = true\n[[rules]]\nid = 'a'\nregex = 'b'", "Give one whole file"),
        ("[[rules]]\nregex = 'a'", "rule 1: has no id"),
        ("[[rules]]\nid = 'a'\nregex = 'b'\n[[rules]]\nid = 'a'\nregex = 'b'", "rule a: occurs twice"),
        ("[[rules]]\nid = 'a'", "rule a: has no regex"),
        ("[[rules]]\nid = 'a'\nregex = '(?=x)y'", r"rule a: RE2 cannot read its regex: invalid perl operator"),
        ("[[rules]]\nid = 'a'\nregex = '(x'", "rule a: RE2 cannot read its regex: missing"),
        ("[[rules]]\nid = 'a'\nregex = '(a{1000}){1000}'", "rule a: RE2 cannot read its regex"),
        ("[[rules]]\nid = 'a'\nregex = 'x'\nsecretGroup = 1", "secretGroup = 1 is not a group"),
        ("[[rules]]\nid = 'a'\nregex = 'x'\nentropy = nan", "rule a: entropy = nan"),
        ("[[rules]]\nid = 'a'\nregex = 'x'\nkeywords = [3]", "rule a: keywords"),
        ("[[rules]]\nid = 'a'\nregex = 'x'\nallowlists = [{regexes = ['(']}]", "rule a, allowlist: RE2 cannot read"),
        ("[[rules]]\nid = 'a'\nregex = 'x'\nallowlists = 3", "rule a: its allowlist is not a table"),
        ("[[rules]]\nid = 'a'\nregex = '('\n[[rules]]\nid = 'b'\nregex = ')'", "rule a: .*; rule b: "),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_and_its_rules_named(tmp_path, content, message):
    path = tmp_path / "rules.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_rules(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read: No such file"):
        read_rules(tmp_path / "rules.toml")
    (tmp_path / "latin.toml").write_bytes(b"[[rules]]\nid = '\xe9'")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        read_rules(tmp_path / "latin.toml")


def test_an_expression_that_backtracking_never_ends_is_linear(tmp_path):
    """A backtracking engine would take 2^400,000 steps: with one, this test never ends."""
    path = tmp_path / "rules.toml"
    path.write_text("[[rules]]\nid = 'bomb'\nregex = '(?:(?:a+)+)+b$'\nkeywords = ['aaaa']")
    assert found("a" * 400_000 + "c", path) == []


WORDS = st.lists(
    st.sampled_from([SECRET, "é", " ", "\n", 'box = "s3cret"', "ZQ-123456", "acme_", "jane@example.org", "# public"]),
    max_size=12,
).map("".join)


@settings(max_examples=100)
@given(WORDS)
def test_the_findings_of_both_are_disjoint_and_cover_all_that_either_found(text):
    """Against a plain count of the characters that either covers."""
    exact = find(text)
    marks = [mark for word in ("acme_", "box") for mark in _occurrences(text, word)]
    whole = joined(exact, marks, text)
    assert all(first.end <= second.start for first, second in itertools.pairwise(whole))
    assert set(exact) <= set(whole)
    covered = {place for mark in whole for place in range(mark.start, mark.end)}
    assert all(place in covered for mark in marks for place in range(mark.start, mark.end) if text[place].isalnum())


def _occurrences(text, word):
    at = text.find(word)
    while at >= 0:
        yield Detection(at, at + len(word), "rule:x")
        at = text.find(word, at + len(word))


def test_the_stage_replaces_counts_and_is_named_by_the_file(tmp_path, rules):
    documents = artifact(tmp_path, [[f"token {SECRET} of jane@example.org", "plain"], ['box = "s3cret"']])
    config = PiiConfig(credential_rules=rules.name, actions={"email": "count"})
    made = redact(documents, config, Runtime(tmp_path), tmp_path)
    texts = [text for path in made.files("documents", tmp_path) for text in read_table(path)["text"].to_pylist()]
    assert texts == ["token [SECRET] of jane@example.org", "plain", 'box = "[SECRET]"']
    findings = {kind: count for kind, count in made.stats["findings"].items() if count}
    assert findings == {"rule:acme-token": 1, "rule:second-group": 1, "email": 1}
    assert made.config["rules_left_out"] == ["a-file"]
    rules.write_text(FILE.replace("{12}", "{11,12}"))
    with pytest.raises(MissingInput, match="redact"):
        redact(documents, config, Runtime(tmp_path, make=False), tmp_path)
