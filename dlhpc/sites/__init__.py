"""What a centre has: its scheduler, queues, nodes, launchers, environments and paths, read from a site profile."""
