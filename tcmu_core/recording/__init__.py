"""Recordings: what reached a disk, in a file; played again, and turned into what a power cut could have left."""
