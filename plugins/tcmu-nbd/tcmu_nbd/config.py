"""The handler's configuration: cfgstring, tcmu.conf, and NBD URIs."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from tcmu_core import Body, ConfigError, Option, Options, boolean, path, size
from tcmu_nbd.constants import MAX_NAME, PORT
from tcmu_nbd.handshake import Tls

MAX_CONNECTIONS = 16
URI_SCHEMES = {"nbd": Tls.OFF, "nbds": Tls.REQUIRE, "nbd+unix": Tls.OFF, "nbds+unix": Tls.REQUIRE}


def _port(text: str) -> int:
    number = int(text)
    if not 0 < number < 65536:
        raise ConfigError("a port is 1 to 65535")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 86400:
        raise ConfigError("write seconds, up to 86400; 0 is no limit")
    return number or float("inf")


def _connections(text: str) -> int:
    number = int(text)
    if not 0 < number <= MAX_CONNECTIONS:
        raise ConfigError(f"1 to {MAX_CONNECTIONS}")
    return number


def _tls(text: str) -> Tls:
    try:
        return Tls(text)
    except ValueError:
        raise ConfigError("write off, on (if the server can) or require") from None


def _block_size(text: str) -> int:
    number = size(text)
    if number < 512 or number > 65536 or number & (number - 1):
        raise ConfigError("a power of two from 512 to 65536")
    return number


OPTIONS = Options(
    Option("host", str, "the server, where it is not a Unix socket", names_storage=True),
    Option("port", _port, f"the server's; {PORT} if not given"),
    Option("export", str, "the name of the export; the server's own one if not given"),
    Option("tls", _tls, "off, on (if the server can) or require"),
    Option("ca", path, "the certificates that the server's has to go back to"),
    Option("cert", path, "our own certificate"),
    Option("key", path, "the key of our own certificate"),
    Option("tls_hostname", str, "the name in the server's certificate, where it is not host"),
    Option("connections", _connections, f"to the server at a time, 1 to {MAX_CONNECTIONS}"),
    Option("timeout", _seconds, "seconds for an answer; 0 is no limit"),
    Option("reconnect", _seconds, "seconds to look for a server that has gone; 0 is no limit"),
    Option("replay", size, "data of writes that were not flushed, kept to send again"),
    Option("block_size", _block_size, "bytes of a block; as the server has it if not given"),
    Option("ro", boolean, "refuse writes"),
    Option("sync", boolean, "make each write stable before it is answered"),
    body=Body("SOCKET|URI", "/path/of/the.sock, or a URI such as nbd+unix", required=False, is_path=False),
    summary="An export of an NBD server as a disk.",
)


@dataclass(frozen=True, slots=True)
class Config:
    """Where the export is and how to treat it. Times are seconds, infinite where there is no limit; sizes are bytes.

    `path` is a Unix socket's; without one the server is at `host` and `port`.
    """

    path: str = ""
    host: str = ""
    port: int = PORT
    export: str = ""
    tls: Tls = Tls.OFF
    ca: str = ""
    cert: str = ""
    key: str = ""
    tls_hostname: str = ""
    connections: int = 1
    timeout: float = 30.0
    reconnect: float = 60.0
    replay: int = 64 << 20
    block_size: int = 0  # as the server has it, at least 512
    ro: bool = False
    sync: bool = False

    def __str__(self) -> str:
        """Where it is, for messages."""
        return self.path or f"{self.host}, port {self.port}"

    def context(self) -> ssl.SSLContext | None:
        """Return what TLS needs; None when it is off. Raises ConfigError for files that can't be used."""
        if self.tls is Tls.OFF:
            return None
        for name in filter(None, (self.ca, self.cert, self.key)):
            if Path(name).exists() and not Path(name).is_file():  # a FIFO would be waited for
                raise ConfigError(f"the TLS file {name} is no regular file")
        try:
            context = ssl.create_default_context(cafile=self.ca or None)
            if self.cert:
                context.load_cert_chain(self.cert, self.key or None, password=_no_password)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            files = ", ".join(filter(None, (self.ca, self.cert, self.key)))
            raise ConfigError(f"the TLS files ({files}) can't be used: {error}") from None
        return context

    @property
    def server_name(self) -> str:
        """The name that the server's certificate has to have."""
        return self.tls_hostname or self.host or "localhost"


def parse(cfgstring: str, defaults: Mapping[str, str] | None = None) -> Config:
    """Return the configuration that `cfgstring` means, `defaults` being its options from tcmu.conf.

    Raises:
        ConfigError: what is wrong, and what to write instead.
    """
    parsed = OPTIONS.parse(cfgstring, defaults)
    options = {name: value for name, value in parsed.options.items() if value is not None}
    place = _place(parsed.body)
    if place.keys() & parsed.given:
        raise ConfigError(f"{sorted(place.keys() & parsed.given)[0]!r} is given twice: in the URI and as an option")
    if "path" in place:
        if parsed.given & {"host", "port"}:
            raise ConfigError("give a Unix socket or host= and port=, not both")
        options = {name: value for name, value in options.items() if name not in {"host", "port"}}
    config = Config(**{**options, **place})
    if not config.path and not config.host:
        raise ConfigError("no server: write /path/of/the.sock, or ;host=NAME;port=10809;export=NAME")
    _check_host(config.host)
    if len(config.export.encode()) > MAX_NAME:
        raise ConfigError(f"an export's name has at most {MAX_NAME} bytes")
    if config.tls is Tls.OFF and (
        named := [name for name in ("ca", "cert", "key", "tls_hostname") if name in parsed.given]
    ):
        raise ConfigError(f"{named[0]}= needs tls=on or tls=require")
    if config.key and not config.cert:
        raise ConfigError("key= needs cert=")
    return config


def _check_host(host: str) -> None:
    """Raise ConfigError for what no name server can be asked for (RFC 1035 2.3.4)."""
    try:
        if "\0" in host:
            raise UnicodeError
        host.encode("idna")
    except UnicodeError:
        raise ConfigError(
            f"{host!r} is no host: parts of a name have 1 to 63 characters, with a dot in between"
        ) from None


def _place(body: str) -> dict[str, object]:
    """Return what the part before the options says: a Unix socket's path, or a URI."""
    if not body:
        return {}
    scheme, separator, _ = body.partition(":")
    if separator and not body.startswith("/"):
        return _uri(body, scheme)
    if not Path(body).is_absolute():
        raise ConfigError(f"{body!r} is no absolute path of a Unix socket; for a TCP server write ;host={body}")
    if "\0" in body:
        raise ConfigError("a path can't hold a NUL byte")
    return {"path": body}


def _uri(text: str, scheme: str) -> dict[str, object]:
    """Return what an NBD URI says (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md)."""
    if scheme not in URI_SCHEMES:
        raise ConfigError(f"{text!r} is no NBD URI: they begin with {', '.join(f'{name}:' for name in URI_SCHEMES)}")
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise ConfigError(f"{text!r}: {error}") from None
    query = parse_qs(parts.query)
    found: dict[str, object] = {"export": unquote(parts.path.removeprefix("/"))} if parts.path.strip("/") else {}
    if URI_SCHEMES[scheme] is not Tls.OFF:
        found["tls"] = URI_SCHEMES[scheme]
    if scheme.endswith("unix"):
        (socket, *more) = query.pop("socket", [""])
        if not socket.startswith("/") or more:
            raise ConfigError(f"{text!r} needs one ?socket=/path/of/the.sock")
        found["path"] = socket
    else:
        try:
            port = parts.port
        except ValueError:
            raise ConfigError(f"{text!r}: a port is 1 to 65535") from None
        if not parts.hostname:
            raise ConfigError(f"{text!r} names no host")
        found |= {"host": parts.hostname, **({"port": port} if port else {})}
    if query:
        raise ConfigError(f"{text!r}: {sorted(query)[0]!r} is not known here: write it as an option, after a ;")
    return found


def _no_password() -> str:
    raise ConfigError("the key is encrypted: a disk can't ask for its password; use one that is not")
