"""The version of all distributions of this repository: each plugin has a link to this file."""

__version__ = "0.1.0"
