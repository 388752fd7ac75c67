"""Find, identify and read the watched processes, from outside and read-only."""
