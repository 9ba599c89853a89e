"""Facts of a report: the numbers of `report.json`, computed from the evidence."""
