"""Slurm: a run as a graph of jobs."""
