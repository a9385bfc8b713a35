"""From a spec to a job in the queue: planning, rendering, crash-safe submission and going on after an attempt."""
