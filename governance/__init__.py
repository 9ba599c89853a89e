"""The ground floor: whatever a run leaves behind is written here, and nowhere else.

The ground modules (`errors`, `log`, `config`, `files`, `provenance`, `manifest`, `stage`, `policy`, `gate`,
`signing`) import none of our other packages. `checks`, `energy` and `reports` are built on them.
"""
