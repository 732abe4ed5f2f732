"""Storage clusters of one node, on loopback, for tests and benchmarks: ordinary processes with all state in one directory."""
