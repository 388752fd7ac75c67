"""The flight recorder: the last minutes of every thread's stack, in fixed bytes, on disk too.

A sampler puts a `sample.Tick` into a target's `ring.Ring`; what the ring gives out is written by `spool.Spool`;
`window.window` makes a profile of both. `rate.plan` says how often to sample.
"""
