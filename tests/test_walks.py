"""The counter of walks, on a planted tree."""

import pytest

from tests.walks import Walk

_FILES = {
    "kinds": """
class LineSource:
    type: Literal["lines"]

class PageSource:
    type: Literal["pages", "leaves"]
""",
    "stage": """
from assay.kinds import LineSource, PageSource
from assay.lines import read_lines
from assay.pages import read_pages
from assay.store import Store, write

def stage(source, folder):
    if isinstance(source, PageSource):
        text = read_pages(source)
    else:
        text = READERS[source.type](source)
    write(text, folder)
    write(folder, folder)
    each([text], finish)
    Store(text).close()

def each(values, function):
    pass

def finish(value):
    write(value, value)

READERS = {"lines": read_lines}
""",
    "lines": "def read_lines(source):\n    return source.lines\n",
    "pages": "def read_pages(source):\n    return source.pages\n",
    "store": """
class Store:
    def __init__(self, text):
        self.text = text
        self.check()

    def check(self):
        pass

def write(text, folder):
    pass
""",
}


@pytest.mark.parametrize(
    ("of_type", "stays"),
    [
        # `write` with the folder alone gets nothing of the value; with the value twice it is another set of parameters.
        ("", ["stage", "pages", "lines", "store", "stage", "store"]),
        ("lines", ["stage", "lines", "store", "stage", "store"]),
        ("leaves", ["stage", "pages", "store", "stage", "store"]),
    ],
)
def test_a_walk_has_the_files_in_the_order_in_which_they_are_entered(tmp_path, of_type, stays):
    (tmp_path / "assay").mkdir()
    for name, text in _FILES.items():
        (tmp_path / "assay" / f"{name}.py").write_text(text)
    walk = Walk(tmp_path, ["assay"], of_type)
    walk.begin("assay.stage", "stage", "source")
    assert walk.stays == [f"assay.{name}" for name in stays]


def test_a_walk_stays_within_its_packages(tmp_path):
    for package, text in {
        "assay": "from pretrain.b import f\ndef g(x):\n    f(x)\n",
        "pretrain": "def f(x):\n    x\n",
    }.items():
        (tmp_path / package).mkdir()
        (tmp_path / package / f"{'a' if package == 'assay' else 'b'}.py").write_text(text)
    alone, both = Walk(tmp_path, ["assay"]), Walk(tmp_path, ["assay", "pretrain"])
    for walk in (alone, both):
        walk.begin("assay.a", "g", "x")
    assert (alone.stays, both.stays) == (["assay.a"], ["assay.a", "pretrain.b"])
