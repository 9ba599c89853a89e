"""The card at the end of a run."""

from assay.run_card import card

SUMMARY = {
    "verdict": "PASS", "policy": "policy assay-default", "documents_in": 71341, "documents_kept": 2204,
    "train_tokens": 5194960, "steps": 200, "validation_loss": 5.891, "bits_per_byte": 2.7036, "energy_kwh": 2.3e-4,
    "energy_low_kwh": 6.8e-5, "energy_high_kwh": 4.7e-4,
}  # fmt: skip


def lines_of(folder, **changes):
    return card({**SUMMARY, **changes}, folder / "report.html", 312.0)


def test_a_card_has_the_figures_of_the_report(tmp_path):
    assert lines_of(tmp_path) == [
        "verdict     PASS under policy assay-default",
        "corpus      2,204 of 71,341 documents kept, 5,194,960 training tokens",
        "training    200 steps, validation loss 5.891, bits per byte 2.704",
        "energy      0.00023 kWh (at least 0.000068, at most 0.00047)",
        "time        5.2 minutes",
        f"report: {tmp_path / 'report.html'}",
    ]


def test_a_card_leaves_out_what_is_unknown(tmp_path):
    unknown = dict.fromkeys(("steps", "validation_loss", "bits_per_byte", "energy_kwh", "train_tokens"))
    found = lines_of(tmp_path, **unknown, verdict="BLOCK")
    assert [line.split()[0] for line in found] == ["verdict", "corpus", "time", "report:"]
    assert found[0].startswith("verdict     BLOCK")


def test_a_bound_that_is_missing_is_no_figure(tmp_path):
    assert lines_of(tmp_path, energy_high_kwh=None)[3].endswith("(at least 0.000068, no upper bound)")


def test_a_large_energy_has_no_exponent(tmp_path):
    assert lines_of(tmp_path, energy_kwh=123456.0)[3].startswith("energy      123000 kWh")
