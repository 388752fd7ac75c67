"""The way out: items of four signals go through bounded queues to exporters that others may write.

Item -> `line` (one per exporter and signal: queue, batches, retries) -> `backlog` (memory, then disk) -> exporter.
`hub` runs all lines on one thread with a loop of its own, so that no backend can delay a tick.
"""
