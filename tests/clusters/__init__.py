"""Storage clusters of one node, on loopback: ordinary processes with all their state in one directory."""
