"""Read a live CPython from outside: no code run in it, no pause unless asked for, nothing written."""
