"""The command line and the whole run: raw corpus to report.

    assay run configs/quickstart.toml

The commands of `cli/` call `pipeline.py`, which finds or makes each part in turn; all other packages are below.
"""
