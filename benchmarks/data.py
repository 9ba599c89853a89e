"""Claims on the data pipeline: speed against rivals, exactness against planted truth, memory, the same bytes.

    ASSAY_TEST_DATA=... python benchmarks/data.py [--quick] [GROUP ...]

Groups: chain truth_duplicates truth_personal_data names_and_places truth_contamination truth_web truth_languages
truth_rules truth_fineweb code rates classifiers memory same_digest. Rivals are installed from the package index into
`~/.cache/assay/rivals` (or $ASSAY_RIVALS). `truth_fineweb` needs apt and a folder for its pages, $ASSAY_PAGES; without
them it is skipped. Rates are MB of UTF-8 text per CPU-second, that is, a core; compare them within one run. Prints a
line per goal and exits 1 when one falls short.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measures.data import (
    data_rules,
    data_sameness,
    data_speed,
    data_truth,
    fineweb_example,
    names_and_places,
    source_code,
    structure,
)
from benchmarks.measures.goals import Goal, command_line


def groups(quick: bool) -> dict[str, Callable[[], list[Goal]]]:
    """Measurements by name."""
    return {
        "chain": lambda: data_speed.whole_chain(quick),
        "truth_duplicates": data_truth.duplicates,
        "truth_personal_data": data_truth.personal_data,
        "names_and_places": lambda: names_and_places.names_and_places(quick),
        "truth_contamination": data_truth.contamination,
        "truth_web": lambda: [*data_truth.web_pages(), *data_truth.public_pages(), *structure.kept_structure()],
        "truth_languages": lambda: [*data_truth.languages(), *data_truth.help_pages()],
        "truth_rules": lambda: data_rules.rules(quick),
        "truth_fineweb": lambda: fineweb_example.example(quick),
        "code": lambda: source_code.code(quick),
        "rates": lambda: [*data_speed.personal_data_rate(), *data_speed.pdf_pages(), *data_speed.trafilatura()],
        "classifiers": lambda: data_speed.fasttext_rates(quick),
        "memory": lambda: data_sameness.memory(quick),
        "same_digest": lambda: data_sameness.same_digest(quick),
    }


if __name__ == "__main__":
    raise SystemExit(command_line(__doc__, groups))
