"""The commands: `tcmu`, the person's tool, and `tcmu-runner`, the daemon."""
