"""tcmu_http: a file behind an HTTP server, read by ranges."""

from tcmu_http.handler import HttpHandler

__all__ = ["HttpHandler"]
