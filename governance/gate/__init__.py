"""The gate: policy, checks' results, waivers, the signed verdict."""
