"""Submits training to SLURM by submitit, runs it on the nodes, and watches it."""
