"""The training loop: micro-steps, schedule, checkpoints, log, and how a run stops and continues."""
