"""What work costs: the machine, operations, seconds."""
