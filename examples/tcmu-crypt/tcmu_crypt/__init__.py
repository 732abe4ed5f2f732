"""tcmu_crypt: a filter that encrypts what the layer below it keeps."""

from tcmu_crypt.filter import Crypt

__all__ = ["Crypt"]
