"""What can be wrong with a host that serves disks: checks that only look, and what cures each finding."""
