"""Block lists and word lists: the meaning of a line, the entries that block a URL, and the laws of a stage."""

import gzip
import logging

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.filters import blocklists as lists
from data_pipeline.filters.blocklists import (
    KEYED_SCHEMA,
    BlocklistsConfig,
    blocked_by,
    entries,
    key_of,
    make_lists,
    normal_url,
    with_parents,
    words_by_language,
)
from governance.config import validate
from governance.errors import ConfigError, ManifestError, MissingInput
from governance.manifest import verify
from governance.stage import Runtime

HOSTS = """# a hosts file
127.0.0.1 localhost  # this machine
::1 ip6-localhost
0.0.0.0 tracker.example.net ads.example.net

0.0.0.0 пример.рф
"""


def made(folder, files, **config):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return make_lists(BlocklistsConfig(**config), folder, Runtime(root=folder / "root"))


def blocker(folder, files, **config):
    """`by(url)`: the entry that blocks it."""
    manifest = made(folder, files, **config)
    return lambda url: blocked_by(url, folder / "root" / manifest.folder)


@pytest.mark.parametrize(
    ("url", "blocked"),
    [
        ("https://example.org/", "domain example.org"),
        ("http://www.EXAMPLE.org:8080/x?y#z", "domain example.org"),
        ("https://a.b.example.org/page", "domain example.org"),
        ("https://user:word@example.org./", "domain example.org"),
        ("https://notexample.org/", ""),
        ("https://example.org.uk/", ""),
        ("https://tracker.example.net/pixel", "domain tracker.example.net"),
        ("https://ads.example.net/", "domain ads.example.net"),
        ("https://example.net/", ""),
        ("https://xn--e1afmkfd.xn--p1ai/a", "domain xn--e1afmkfd.xn--p1ai"),
        ("https://пример.рф/a", "domain xn--e1afmkfd.xn--p1ai"),
        ("https://deep.wild.example.com/", "domain wild.example.com"),
        ("https://anything.xxx/", "domain xxx"),
        ("http://192.0.2.7/x", "domain 192.0.2.7"),
        ("http://[2001:db8::1]:80/x", "domain [2001:db8::1]"),
        ("ftp://example.org/file", "domain example.org"),
        ("mailto:someone", ""),
        ("", ""),
        ("not a url", ""),
    ],
)
def test_domains_block_their_subdomains(tmp_path, url, blocked):
    listed = "www.Example.org\r\n\n*.wild.example.com # a wildcard\n.xxx\n192.0.2.7\nhttp://[2001:db8::1]/\n"
    by = blocker(tmp_path, {"a.txt": listed, "hosts": HOSTS}, domains=("a.txt", "hosts"))
    assert by(url) == blocked


@pytest.mark.parametrize(
    ("url", "blocked"),
    [
        ("https://news.example.com/spam", "url news.example.com/spam"),
        ("http://www.news.example.com/spam/", "url news.example.com/spam"),
        ("https://news.example.com/spam/2024/05?page=2", "url news.example.com/spam"),
        ("https://news.example.com/spam?utm_source=x", "url news.example.com/spam"),
        ("https://news.example.com/./a/../spam", "url news.example.com/spam"),
        ("https://news.example.com/%73pam", "url news.example.com/spam"),
        ("https://news.example.com/spammer", ""),
        ("https://news.example.com/", ""),
        ("https://sub.news.example.com/spam", ""),
        ("https://shop.example.com/item?id=7", "url shop.example.com/item?id=7"),
        ("https://shop.example.com/item?id=8", ""),
        ("https://shop.example.com/item", ""),
        ("https://whole.example.com/any/page", "url whole.example.com"),
        ("https://under.whole.example.com/any/page", ""),
        ("https://mail.example.org/", ""),
        ("jane@whole.example.com", ""),
        ("https://blog.example.com/@jane/1", "url blog.example.com/@jane"),
        ("https://form.example.com?to=jane@mail.example.org", "url form.example.com?to=jane@mail.example.org"),
    ],
)
def test_urls_block_what_is_below_their_path(tmp_path, url, blocked):
    listed = "https://news.example.com/spam/\nshop.example.com/item?id=7#top\n//whole.example.com\n"
    listed += "jane@mail.example.org\nmailto:jane@mail.example.org\nblog.example.com/@jane\n"
    listed += "form.example.com?to=jane@mail.example.org\n"
    assert blocker(tmp_path, {"u.txt": listed}, urls=("u.txt",))(url) == blocked


@given(st.text(max_size=40))
def test_no_url_breaks_the_look_up(text):
    for url in (text, f"https://{text}", f"https://example.org/{text}"):
        domains, urls = with_parents(url)
        assert (urls != []) == (normal_url(url) != "")
        assert all(domains)
        if urls:
            assert urls[0] == normal_url(url)


@given(st.lists(st.integers(0, 300), max_size=40), st.integers(0, 300))
def test_an_entry_is_found_if_and_only_if_it_is_listed(tmp_path_factory, numbers, wanted):
    folder = tmp_path_factory.mktemp("lists")
    for kind, listed in (("domains", [f"d{n}.example" for n in numbers]), ("urls", [])):
        rows = sorted((key_of(entry), entry) for entry in set(listed))
        columns = [pa.array([key for key, _ in rows], pa.uint64()), pa.array([e for _, e in rows], pa.string())]
        with pa.ipc.new_file(str(folder / f"{kind}.arrow"), KEYED_SCHEMA) as writer:
            writer.write_batch(pa.record_batch(columns, KEYED_SCHEMA))
    expected = f"domain d{wanted}.example" if wanted in numbers else ""
    assert blocked_by(f"https://d{wanted}.example/", folder) == expected


def test_two_entries_of_one_key_are_not_taken_for_one(tmp_path, monkeypatch):
    monkeypatch.setattr(lists, "key_of", lambda entry: 7)
    by = blocker(tmp_path, {"a.txt": "one.example\nthree.example\ntwo.example\n"}, domains=("a.txt",))
    assert by("https://three.example/") == "domain three.example"
    assert by("https://four.example/") == ""


def test_keys_are_sorted_and_are_those_of_the_entries(tmp_path):
    manifest = made(tmp_path, {"a.txt": "\n".join(f"d{n}.example" for n in range(500)) + "\nd7.example"},
                    domains=("a.txt",))  # fmt: skip
    table = pa.ipc.open_file(str(tmp_path / "root" / manifest.folder / "domains.arrow")).read_all()
    assert len(table) == 500
    keys = table["key"].to_numpy()
    assert np.all(keys[:-1] < keys[1:])
    assert keys.tolist() == [key_of(entry) for entry in table["entry"].to_pylist()]


def test_lists_may_be_packed_and_begin_with_a_mark(tmp_path):
    import zstandard

    text = b"\xef\xbb\xbfexample.org\n"
    files = {
        "a.gz": gzip.compress(text),
        "b.txt": b"\xef\xbb\xbfexample.com",
        "c.zst": zstandard.compress(b"c.example"),
    }
    by = blocker(tmp_path, files, domains=("a.gz", "b.txt", "c.zst"))
    assert by("https://example.org/") == "domain example.org"
    assert by("https://example.com/") == "domain example.com"
    assert by("https://c.example/") == "domain c.example"


def test_words_by_language(tmp_path):
    files = {"en.txt": "Bad  Word\nworse # very\n#worst\n", "any.txt": "spam\n🖕\n", "de.txt": "STRASSE\ncafe\u0301\n"}
    manifest = made(tmp_path, files, words={"en": ("en.txt",), "de": ("de.txt",), "*": ("any.txt",)})
    found = words_by_language(tmp_path / "root" / manifest.folder)
    assert found["en"] == ("bad word", "spam", "worse", "🖕")
    assert found["de"] == ("café", "spam", "strasse", "🖕")
    assert found["*"] == ("spam", "🖕")
    assert manifest.stats == {"domains": 0, "urls": 0, "words": 6, "not_understood": 0}


def test_what_is_no_entry_is_counted_and_reported(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("data_pipeline"), "propagate", True)
    lines = [
        "good.example", "||ads.example^", "example.org/only/this/page", "two words", "address=/x.example/0.0.0.0",
        "[section]",
    ]  # fmt: skip
    files = {"a.txt": "\n".join(lines), "u.txt": "https://a.example/x\nhttps://b.example/ x\n", "w.txt": "...\nfine\n"}
    with caplog.at_level(logging.WARNING):
        manifest = made(tmp_path, files, domains=("a.txt",), urls=("u.txt",), words={"en": ("w.txt",)})
    assert manifest.stats == {"domains": 1, "urls": 1, "words": 1, "not_understood": 7}
    assert "7 lines" in caplog.text
    assert "a.txt, line 2" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "error", "output"),
    [
        (
            "torn.gz",
            gzip.compress(b"example.org\n" * 1000, mtime=0)[:-20],
            ManifestError,
            "torn.gz.*Fetch the list again",
        ),
        ("no.gz", b"example.org\n", ManifestError, "no.gz"),
        ("latin.txt", b"one.example\ncaf\xe9.example\n", ManifestError, "latin.txt, line 2: is not UTF-8"),
        ("picture.png", b"\x89PNG\r\n\x1a\n\x00\xff", ManifestError, "not UTF-8"),
        ("absent/*.txt", None, MissingInput, "^data.lists.domains: .*names no file.*Correct the pattern"),
    ],
)
def test_bad_lists_are_named(tmp_path, name, content, error, output):
    with pytest.raises(error, match=output):
        made(tmp_path, {} if content is None else {name: content}, domains=(name,))


def test_settings_are_strict():
    for words in ({"english": ["a.txt"]}, {"EN": ["a.txt"]}, {"": ["a.txt"]}):
        with pytest.raises(ConfigError, match="words"):
            validate({"words": words}, BlocklistsConfig, "run.toml")
    with pytest.raises(ConfigError, match="domain"):
        validate({"domain": ["a.txt"]}, BlocklistsConfig, "run.toml")


def test_it_is_an_artifact_like_any_other(tmp_path):
    files = {"a.txt": "one.example\n", "b.txt": "two.example\n"}
    first = made(tmp_path, files, domains=("a.txt",), urls=("b.txt",))
    assert verify(first, tmp_path / "root") == []
    assert made(tmp_path, {"c.txt": "one.example\n"}, domains=("c.txt",), urls=("b.txt",)).digest != ""
    assert made(tmp_path, files, domains=("a.txt",), urls=("b.txt",)) == first
    other = made(tmp_path / "other", files, domains=("a.txt",), urls=("b.txt",))
    assert other.digest == first.digest


def test_the_same_files_in_other_lists_are_another_artifact(tmp_path):
    files = {"a.txt": "one.example\n", "b.txt": "two.example\n"}
    keys = {
        made(tmp_path, files, **config).key
        for config in (
            {"domains": ("a.txt", "b.txt")},
            {"domains": ("a.txt",), "urls": ("b.txt",)},
            {"urls": ("a.txt", "b.txt")},
            {"domains": ("a.txt",), "words": {"en": ("b.txt",)}},
            {"domains": ("a.txt",), "words": {"*": ("b.txt",)}},
        )
    }
    assert len(keys) == 5


def test_a_torn_artifact_is_named(tmp_path):
    manifest = made(tmp_path, {"a.txt": "one.example\n"}, domains=("a.txt",))
    folder = tmp_path / "root" / manifest.folder
    (folder / "domains.arrow").write_bytes(b"ARROW1")
    with pytest.raises(ManifestError, match=r"domains\.arrow: cannot be read"):
        blocked_by("https://one.example/", folder)
    (folder / "words.parquet").write_bytes(b"PAR1")
    with pytest.raises(ManifestError, match=r"words\.parquet: cannot be read"):
        words_by_language(folder)


def test_lines_keep_their_numbers(tmp_path):
    (tmp_path / "a.txt").write_text("# head\n\none.example\n0.0.0.0 a.example b.example\nx^y\n")
    assert list(entries(tmp_path / "a.txt", "domains")) == [
        (3, "one.example"), (4, "a.example"), (4, "b.example"), (5, ""),
    ]  # fmt: skip
