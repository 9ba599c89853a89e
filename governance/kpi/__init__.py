"""KPIs: a signed plan, and the test of whether a model paid."""
