"""The run as a Slurm job: a template that is valid bash unfilled, and the only callers of Slurm's tools."""
