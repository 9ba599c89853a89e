"""Equality of URLs: the examples of RFC 3986 and the stated policy beyond it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.urls import normalise_url

SAME = [
    ("HTTP://www.EXAMPLE.com/", "https://example.com"),
    ("http://example.com:80/a", "https://example.com:443/a"),
    ("http://example.com/%7Ebob/%2f", "http://example.com/~bob/%2F"),
    ("http://example.com/a/./b/../c", "http://example.com/a/c"),
    ("http://example.com/mid/content=5/../6", "http://example.com/mid/6"),
    ("http://example.com/../../g", "http://example.com/g"),
    ("http://example.com/a?utm_source=x&id=3&fbclid=9", "http://example.com/a?id=3"),
    ("http://example.com/a?gclid=1", "http://example.com/a"),
    ("http://example.com/a;jsessionid=AF12?x=1", "http://example.com/a?x=1"),
    ("http://example.com/a#section", "http://example.com/a"),
    ("http://user:secret@example.com/a", "http://example.com/a"),
    ("http://bücher.example/straße", "http://xn--bcher-kva.example/stra%C3%9Fe"),
    (" http://example.com./a\n", "http://example.com/a"),
    ("http://[2001:DB8::1]:80/", "http://[2001:db8::1]/"),
]
OTHER = [
    ("http://example.com/a", "http://example.com/A"),
    ("http://example.com/a", "http://example.com/a/"),
    ("http://example.com/a?id=1", "http://example.com/a?id=2"),
    ("http://example.com/a?x=1&y=2", "http://example.com/a?y=2&x=1"),
    ("http://example.com/", "http://example.com:8080/"),
    ("http://example.com/%2F", "http://example.com//"),
    ("http://example.com/#!/one", "http://example.com/#!/two"),
    ("ftp://example.com/a", "http://example.com/a"),
    ("http://en.example.com/", "http://de.example.com/"),
]


@pytest.mark.parametrize(("one", "two"), SAME)
def test_urls_of_one_page(one, two):
    assert normalise_url(one) == normalise_url(two) != ""


@pytest.mark.parametrize(("one", "two"), OTHER)
def test_urls_of_two_pages(one, two):
    assert normalise_url(one) != normalise_url(two)


@pytest.mark.parametrize(
    "value", ["", "page 7", "/local/path", "doi:10.1/x", "http://", "http://h:port/", "http://[x/"]
)
def test_what_names_no_page(value):
    assert normalise_url(value) == ""


PIECES = st.sampled_from(
    ["a", "B", "%41", "%2f", "%", "..", ".", "/", "?", "&", "=", "#", "!", "ü", " ", "utm_id=1", ";", ":"]
)


@given(st.lists(PIECES, max_size=12).map("".join))
def test_the_form_is_settled(tail):
    once = normalise_url("http://example.com/" + tail)
    assert normalise_url(once) == once


@pytest.mark.parametrize(
    ("value", "form"),
    [
        ("http://h:443/a", "https://h:443/a"),
        ("http://www.www.h/", "https://www.h/"),
        ("http://h\u3002/", "https://h./"),
    ],
)
def test_forms_that_are_not_settled_stay(value, form):
    """Token shards name documents by their hash; another form would give them a false answer."""
    assert normalise_url(value) == form


@given(st.text(max_size=40))
def test_any_text_has_an_answer(value):
    assert isinstance(normalise_url(value), str)
