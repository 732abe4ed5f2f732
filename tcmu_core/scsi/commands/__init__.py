"""The commands, one function each: it takes the unit and the command, and knows no transport."""
