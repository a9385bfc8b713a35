"""Batch systems: one module each, behind the small interface of ``base``.

A scheduler knows jobs, not runs: it submits a script, says where jobs stand, finds a job by its tag and cancels it.
"""
