"""Configuration: the cfgstring grammar and tcmu.conf."""
