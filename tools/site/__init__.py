"""The documentation as a site: the repository's own pages, and references made from the code."""
