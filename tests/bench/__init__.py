"""Benchmarks: each measures dlhpc against a peer in the same run on the same machine, and prints the ratio.

``make bench`` runs them all and rewrites the table in ``docs/performance.md``. None is a test: a slow machine is not
a fault.
"""
