"""Facts of a report: each number of `report.json`, computed from the evidence."""
