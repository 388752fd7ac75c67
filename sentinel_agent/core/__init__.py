"""The pure part: nouns, bounded history, rules and their states, limits. No I/O; `now` is always an argument."""
