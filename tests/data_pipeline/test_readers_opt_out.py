"""Statements of rights holders: robots.txt by its standard's own examples, TDMRep, ai.txt, headers, elements."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.readers.opt_out import (
    AI_CRAWLERS,
    Host,
    TdmRule,
    header_signals,
    host_rules,
    is_host_file,
    meta_signals,
    page_opt_out,
    parse_tdmrep,
)
from data_pipeline.readers.robots import MAX_ROBOTS_BYTES, matches, normal_path, parse_robots

# --- robots.txt (RFC 9309)


def allows(text, agent, path):
    return parse_robots(text.encode()).allows(agent, path)


@pytest.mark.parametrize("agent", ["User-agent: x", "Useragent: x", "user agent: x", "User-agent x"])
@pytest.mark.parametrize(
    "rule",
    ["Disallow: /", "Dissallow: /", "dissalow:/", "Disalow: /", "diasllow: /", "Disallaw: /", "Disallow / # all"],
)
def test_frequent_misspellings_are_read_as_google_reads_them(agent, rule):
    assert not allows(f"{agent}\n{rule}\nAllow: /open", "x", "/page")
    assert allows(f"{agent}\n{rule}\nAllow: /open", "x", "/open")
    assert allows(f"{agent}\nDisallowed: /\nDisallow it all", "x", "/page")


SIMPLE = """
User-Agent: *
Disallow: *.gif$
Disallow: /example/
Allow: /publications/

User-Agent: foobot
Disallow:/
Allow:/example/page.html
Allow:/example/allowed.gif

User-Agent: barbot
User-Agent: bazbot
Disallow: /example/page.html

User-Agent: quxbot
"""


@pytest.mark.parametrize(
    ("agent", "path", "may"),
    [
        ("other", "/pic.gif", False),
        ("other", "/pic.gif?x", True),
        ("other", "/example/", False),
        ("other", "/publications/a", True),
        ("FooBot", "/example/page.html", True),
        ("foobot", "/other", False),
        ("barbot", "/example/page.html", False),
        ("bazbot", "/example/page.html", False),
        ("bazbot", "/example/", True),
        ("quxbot", "/example/", True),
    ],
)
def test_the_groups_of_the_standards_simple_example(agent, path, may):
    assert allows(SIMPLE, agent, path) is may


def test_the_longest_match_holds_and_allow_wins_a_tie():
    text = "User-Agent: a\nAllow: /example/page/\nDisallow: /example/page/disallowed.gif"
    assert not allows(text, "a", "/example/page/disallowed.gif")
    assert allows(text, "a", "/example/page/other.gif")
    assert allows("User-agent: a\nDisallow: /x\nAllow: /x", "a", "/x")


def test_groups_of_one_crawler_are_joined_also_across_others():
    text = "User-agent: a\nDisallow: /1\n\nUser-agent: b\nDisallow: /2\n\nuser-agent: A\ndisallow: /3"
    assert [allows(text, "a", path) for path in ("/1", "/2", "/3")] == [False, True, False]


@pytest.mark.parametrize(
    ("pattern", "path", "hit"),
    [
        ("/", "/", True),
        ("/fish", "/fish.html", True),
        ("/fish", "/Fish", False),
        ("/*.php", "/a/b.php?x", True),
        ("/*.php$", "/a/b.php?x", False),
        ("/*.php$", "/a.php/b.php", True),
        ("/a*b*c", "/a-b", False),
        ("/a*$", "/abc", True),
        ("/a$", "/ab", False),
        ("*", "/anything", True),
        ("/%7Ejoe/", "/~joe/index", True),
        ("/~joe/", "/%7ejoe/index", True),
        ("/a%3cd", "/a%3Cd", True),
        ("/a%2fb", "/a/b", False),
        ("/ツ", "/%E3%83%84", True),
    ],
)
def test_patterns(pattern, path, hit):
    assert matches(normal_path(pattern), normal_path(path)) is hit


@settings(max_examples=200)
@given(st.text("ab*", max_size=6), st.booleans(), st.text("ab", max_size=8))
def test_patterns_are_those_of_a_plain_search(pattern, ends, path):
    def plain(pattern, path):
        if not pattern:
            return not path if ends else True
        if pattern[0] == "*":
            return any(plain(pattern[1:], path[at:]) for at in range(len(path) + 1))
        return path[:1] == pattern[0] and plain(pattern[1:], path[1:])

    assert matches(pattern + "$" * ends, path) is plain(pattern, path)


def test_a_pattern_of_many_stars_takes_no_time():
    assert not matches("*a" * 5000 + "b", "/" + "a" * 20_000)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_robots_file(data):
    parse_robots(b"User-agent: *\nDisallow: " + data).allows("x", "/y")


LINES = st.sampled_from(
    ["User-agent: x", "User-agent: y", "User-agent: *", "User-agent: 1"]
    + [f"{kind}: {path}" for kind in ("Allow", "Disallow") for path in ("", "/", "/a", "/a$", "/*b", "/ab")]
)


@given(st.lists(LINES, max_size=12), st.sampled_from(["/", "/a", "/ab", "/cb"]))
def test_the_longest_rule_of_a_crawlers_groups_holds(lines, path):
    of, agents, after_rules = {}, [], True
    for line in lines:  # one list of rules for each crawler
        key, _, value = line.partition(": ")
        if key == "User-agent":
            agents = [value] if after_rules else [*agents, value]
            of.setdefault(value, [])
        else:
            for agent in agents:
                of[agent].append((len(value), key == "Allow", value))
        after_rules = key != "User-agent"
    robots = parse_robots("\n".join(lines).encode())
    for agent in ("x", "y", "z"):
        rules = [rule for rule in of.get(agent, of.get("*", [])) if rule[2] and matches(rule[2], path)]
        may = max(rules, default=(0, True, ""))[1]
        assert robots.allows(agent, path) is may
        assert robots.refused([agent], path) == [agent] * (not may)
        assert robots.names(agent) is (agent in of)


def test_rules_are_stored_once_for_all_crawlers_of_a_group():
    agents = "".join(f"User-agent: {''.join('abcdefghij'[int(d)] for d in str(number))}\n" for number in range(10_000))
    robots = parse_robots((agents + "".join(f"Disallow: /{number}\n" for number in range(10_000))).encode())
    assert len(robots.members) == 10_000
    assert sum(map(len, robots.groups)) == 10_000
    assert robots.refused(["a", "bad", "none"], "/17/x") == ["a", "bad"]


def test_byte_order_marks_comments_and_the_size_bound():
    assert not allows("\ufeffUser-agent: * # all\nDisallow: /a # this\nSitemap: /b", "x", "/a")
    long = "User-agent: *\n" + "# padding\n" * (MAX_ROBOTS_BYTES // 10) + "Disallow: /"
    assert allows(long, "x", "/a")
    assert allows("Disallow: /", "x", "/a")  # of no group


# --- headers and elements


@pytest.mark.parametrize(
    ("headers", "signals"),
    [
        ([("X-Robots-Tag", "noai, noimageai")], ("robots:noai", "robots:noimageai")),
        ([("x-robots-tag", "gptbot: noai"), ("x-robots-tag", "noindex")], ("robots:noai",)),
        ([("X-Robots-Tag", "noaim")], ()),
        ([("TDM-Reservation", "1 ")], ("tdm:reserved",)),
        ([("tdm-reservation", "0"), ("tdm-policy", "https://h/p")], ()),
        ([("tdm-reservation", "1"), ("tdm-policy", "https://h/p")], ("tdm-policy:https://h/p", "tdm:reserved")),
    ],
)
def test_headers(headers, signals):
    assert header_signals(headers) == signals


@pytest.mark.parametrize(
    ("page", "signals"),
    [
        ('<META NAME="Robots" CONTENT="NoAI,NoImageAI">', ("robots:noai", "robots:noimageai")),
        ("<meta content=1 name=tdm-reservation>", ("tdm:reserved",)),
        ("<meta name='tdm-reservation' content='1'><meta name=tdm-policy content='a&amp;b'/>",
         ("tdm-policy:a&b", "tdm:reserved")),
        ('<meta name="description" content="noai">', ()),
        ("<meta name=robots content=index>", ()),
        ("<p>noai", ()),
    ],
)  # fmt: skip
def test_elements(page, signals):
    assert meta_signals("<html><head>" + page) == signals


def test_only_the_head_is_searched_and_hostile_attributes_take_no_time():
    assert meta_signals("<meta " + "a" * 200_000 + ">") == ()
    assert meta_signals(" " * (1 << 16) + "<meta name=tdm-reservation content=1>") == ()


# --- TDMRep


def test_the_first_rule_that_matches_holds():
    rules = parse_tdmrep(
        b'[{"location": "/free/*", "tdm-reservation": 0}, 5, {"location": 1}, '
        b'{"location": "/", "tdm-reservation": "1", "tdm-policy": "https://h/policy"}]'
    )
    assert rules == (TdmRule("/free/*", False, ""), TdmRule("/", True, "https://h/policy"))
    hosts = {"h": Host(tdm=rules)}
    assert page_opt_out("https://h/free/a", (), "2024", hosts) == ("none", "2024")
    assert page_opt_out("https://h/a", (), "2024", hosts)[0] == "tdm-policy:https://h/policy tdm:reserved"


@pytest.mark.parametrize("data", [b"", b"{}", b"[[[", b"\xff", b'"x"', b"[" * 100_000])
def test_nonsense_holds_no_rule(data):
    assert parse_tdmrep(data) == ()


# --- hosts


FILES = [
    ("https://a.example/robots.txt", "2024-01-01", b"User-agent: GPTBot\nDisallow: /\nUser-agent: *\nDisallow: /x"),
    ("https://a.example/robots.txt", "2023-01-01", b"User-agent: *\nDisallow: /"),
    ("https://b.example/ai.txt", "2024-01-02", b"User-Agent: *\nDisallow: /\nAllow: *.html"),
    ("http://c.example:8080/ai.txt", "2024-01-03", b"User-Agent: *\nAllow: /\nDisallow: *.html"),
    ("https://d.example/page", "2024-01-03", b"no host file"),
]


@pytest.mark.parametrize(
    ("url", "opt_out"),
    [
        ("https://A.example/page", "robots.txt:GPTBot"),
        ("https://user@a.example/x?q", "robots.txt:* robots.txt:GPTBot"),
        ("https://b.example/page", "none"),
        ("https://b.example/page.html", "none"),
        ("https://b.example/page.txt", "ai.txt:disallowed"),
        ("http://c.example:8080/", "ai.txt:disallowed"),
        ("http://c.example/", "none"),
        ("no url", "none"),
        ("http://[", "none"),
    ],
)
def test_what_hosts_say_of_a_page(url, opt_out):
    assert page_opt_out(url, (), "2025-01-01", host_rules(FILES))[0] == opt_out


def test_the_date_is_the_oldest_of_what_was_read_and_order_does_not_matter():
    assert page_opt_out("https://a.example/", (), "2025", host_rules(FILES))[1] == "2024-01-01"
    assert host_rules(FILES) == host_rules(FILES[::-1])
    assert sorted(host_rules(FILES)) == ["a.example", "b.example", "c.example:8080"]


def test_other_crawlers_can_be_named():
    rules = host_rules([("https://a/robots.txt", "2024", b"User-agent: OwnBot\nDisallow: /")])
    assert page_opt_out("https://a/", (), "2024", rules)[0] == "none"
    assert page_opt_out("https://a/", (), "2024", rules, [*AI_CRAWLERS, "OwnBot"])[0] == "robots.txt:OwnBot"


@pytest.mark.parametrize(
    ("url", "is_one"),
    [
        ("https://h/robots.txt", True),
        ("https://h/.well-known/tdmrep.json", True),
        ("https://h/a/robots.txt", False),
        ("https://h/robots.txt?x", False),
    ],
)
def test_host_files(url, is_one):
    assert is_host_file(url) is is_one
