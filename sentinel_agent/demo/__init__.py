"""The tour: a real service that is spoilt on purpose while the agent watches it."""
