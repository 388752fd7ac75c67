"""Running a small piece of our own code inside a target. Off unless the operator allows it: `capture.allow_injection`."""
