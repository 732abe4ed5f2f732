"""The simulation: initiators, sessions, engine and disks in virtual time, in an order that a seed decides."""
