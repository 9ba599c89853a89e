"""One attempt of a job, on its node: records, checks, signals, retries.

A job's script runs this folder with any Python of 3.11 or later: `python -I slurm/attempt [options] -- COMMAND`. It
imports the standard library, `governance.files` and `governance.errors` alone, so that a copy of these files below the
root runs on a node whose environment is broken, and a job that waits is not changed by another release.
"""
