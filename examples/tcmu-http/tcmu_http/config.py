"""What the cfgstring says: the options, and where the file is."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from tcmu_core import Body, ConfigError, Option, Options, path, size

PORTS = {"http": 80, "https": 443}


def _block(text: str) -> int:
    number = size(text)
    if not 4096 <= number <= 16 << 20 or number & (number - 1):
        raise ConfigError("a power of two from 4K to 16M")
    return number


OPTIONS = Options(
    Option("block", _block, "bytes that are fetched and kept together, a power of two", default=64 << 10),
    Option("cache", size, "memory for what was fetched; 0 for none", default=64 << 20),
    Option("connections", int, "requests at a time", default=4, least=1, most=64),
    Option("timeout", int, "seconds for one request", default=10, least=1, most=3600),
    Option("retry", int, "seconds that a read is tried again; 0 for once only", default=15, least=0, most=3600),
    Option("ca", path, "the certificates that the server's has to go back to; the system's if not given"),
    body=Body("URL", "http://server/disk.img, or https", is_path=False),
    summary="A file behind an HTTP server as a read-only disk.",
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file is: an http or https URL, taken apart."""

    scheme: str
    host: str
    port: int
    target: str  # path and query, as a request has them

    @classmethod
    def of(cls, url: str) -> Place:
        """Return the place that `url` names; raises `ConfigError`."""
        if "://" not in url:  # the kernel's cfgstring can't hold a colon
            url = url.replace("%3A", ":").replace("%3a", ":")
        if not url.isascii() or not url.isprintable() or " " in url:
            raise ConfigError("a URL has no spaces and only ASCII: write %20 for a space, and so on")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"{url!r} is no URL: {error}") from None
        if parts.scheme not in PORTS or not parts.hostname:
            raise ConfigError(f"{url!r} is no URL of a web server: write http://server/disk.img, or https")
        if parts.username is not None or parts.password is not None:
            raise ConfigError("a password does not belong into a URL, which the log and `tcmu status` show")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(parts.scheme, parts.hostname, port or PORTS[parts.scheme], target)

    def to(self, location: str) -> Place:
        """Return where a redirection leads; raises `ConfigError` for what is no URL, or less safe than this one."""
        place = Place.of(urljoin(self.url, location))
        if (self.scheme, place.scheme) == ("https", "http"):
            raise ConfigError(f"{self} redirects to {place}, which is not encrypted")
        return place

    @property
    def url(self) -> str:
        """Return all of it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.target}"

    def __str__(self) -> str:
        """Return it for messages: a query may hold a signature, which is a password."""
        return self.url.partition("?")[0]


@dataclass(frozen=True, slots=True)
class Config:
    """Where the file is and how it is read. Times are seconds, sizes bytes."""

    place: Place
    block: int
    cache: int
    connections: int
    timeout: int
    retry: int
    ca: str | None = None

    def context(self) -> ssl.SSLContext:
        """Return what TLS needs; raises `ConfigError` for a file that can't be used."""
        try:
            return ssl.create_default_context(cafile=self.ca)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(f"ca={self.ca}: {error.strerror or error}") from None


def parse(cfgstring: str, defaults: Mapping[str, str] | None = None) -> Config:
    """Return what `cfgstring` means, `defaults` being the options from tcmu.conf; raises `ConfigError`."""
    parsed = OPTIONS.parse(cfgstring, defaults)
    return Config(Place.of(parsed.body), **parsed.options)
