"""One process: a loop, a log, disks, and the transports by which they are reached."""
