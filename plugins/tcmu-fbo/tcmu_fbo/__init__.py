"""tcmu-fbo: an optical drive from a file or a block device."""

from tcmu_fbo.handler import Optical

__version__ = "0.1.0"

__all__ = ["Optical"]
