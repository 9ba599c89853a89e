"""The run as a Slurm job: a template that is valid bash before it is filled in, and the only callers of Slurm's tools."""
