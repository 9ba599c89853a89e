"""Documents about a run for other people's tools and forms, each filled from report.json and the manifests."""
