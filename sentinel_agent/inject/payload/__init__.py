"""Code that runs inside targets, sent as source text. It imports nothing of ours and runs on CPython 3.8 to 3.15."""
