"""What can be read of a target: one file per thing."""
