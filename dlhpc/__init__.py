"""dlhpc: deep-learning training through the batch queue of a supercomputer centre."""

__version__ = "0.1.0"
