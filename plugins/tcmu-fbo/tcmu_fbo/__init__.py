"""tcmu-fbo: an optical drive from a file or a block device."""

from tcmu_fbo.handler import Optical

__all__ = ["Optical"]
