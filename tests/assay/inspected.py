"""Words for documents that `assay inspect` reads."""

import random

WORDS = """
the of and to a in is it that was he for on are with as his they at be this from have or by one had not but what all
were when we there can an your which their said if do will each about how up out them then she many some so these would
other into has more her two like him see time could no make than first been its who now people my made over did
"""


def prose(seed, sentences=8):
    draw = random.Random(seed)
    return " ".join(" ".join(draw.sample(WORDS.split(), 12)).capitalize() + "." for _ in range(sentences))


def tables(result):
    return {table.title.partition(":")[0]: table for table in result.tables}


def wiki(texts):
    """A wiki's dump with a page for each text."""
    page = "<page><title>Page {}</title><ns>0</ns><id>{}</id><revision><text>{}</text></revision></page>\n"
    pages = "".join(page.format(number, number, text) for number, text in enumerate(texts))
    head = "<siteinfo><base>https://wiki.example/wiki/Main</base></siteinfo>\n"
    return f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/">\n{head}{pages}</mediawiki>\n'.encode()
