"""Documents for other tools and forms, filled from report.json."""
