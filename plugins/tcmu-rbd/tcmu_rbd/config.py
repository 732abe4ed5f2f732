"""What a cfgstring says: `pool/image` and options, the C runner's and some more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tcmu_core import Body, ConfigError, Option, Options, path

OPTIONS = Options(
    Option("conf", path, "the cluster's configuration file, where it is not Ceph's default"),
    Option("id", help="who connects: client.ID"),
    Option(
        "lock",
        help="what to do when another client has the image",
        default="refuse",
        choices=("refuse", "break", "move"),
    ),
    Option("namespace", help="the namespace of the pool that the image is in"),
    Option("osd_op_timeout", int, "seconds after which an operation that no OSD answers is given up", least=1),
    Option("snapshot", help="a snapshot of the image; the disk is read-only"),
    body=Body("POOL/IMAGE", "POOL/IMAGE, such as rbd/disk", is_path=False),
    summary="The RBD image to use as a backstore.",
)


@dataclass(frozen=True, slots=True)
class Config:
    """A cfgstring, parsed. Empty where something was not given; `osd_op_timeout` is in seconds, 0 for Ceph's."""

    pool: str
    image: str
    conf: str = ""
    id: str = ""
    lock: str = "refuse"
    namespace: str = ""
    osd_op_timeout: int = 0
    snapshot: str = ""

    @property
    def name(self) -> str:
        """What `rbd` calls the image: pool/namespace/image@snapshot."""
        parts = [self.pool, self.namespace, self.image] if self.namespace else [self.pool, self.image]
        return "/".join(parts) + (f"@{self.snapshot}" if self.snapshot else "")


def parse(cfgstring: str, defaults: Mapping[str, str] | None = None) -> Config:
    """Return the configuration that `cfgstring` means, `defaults` being its options from tcmu.conf.

    Raises:
        ConfigError: it can't be right.
    """
    parsed = OPTIONS.parse(cfgstring, defaults)
    pool, slash, image = parsed.body.partition("/")
    if not pool or not slash or not image:
        raise ConfigError(f"{parsed.body!r} is no image: write POOL/IMAGE")
    if "/" in image:
        namespace, _, image = image.partition("/")
        raise ConfigError(f"{parsed.body!r} is no image: write {pool}/{image};namespace={namespace}")
    if "@" in image:
        image, _, snapshot = image.partition("@")
        raise ConfigError(f"{parsed.body!r} is no image: write {pool}/{image};snapshot={snapshot}")
    return Config(pool, image, **{name: value for name, value in parsed.options.items() if value is not None})
