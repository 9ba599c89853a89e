"""The run as jobs of a Slurm cluster: templates that are valid bash unfilled, and the only callers of Slurm's tools."""
