"""Governance: artifacts, signatures, checks, energy and reports.

The ground modules (`errors`, `log`, `config`, `files`, `provenance`, `manifest`, `stage`, `policy`, `gate`,
`signing`) import none of our other packages. `checks`, `energy` and `reports` are built on them.
"""
