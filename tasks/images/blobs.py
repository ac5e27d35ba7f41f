"""Blobs by digest, and the layers that they are forms of.

The terms are those of the OCI image layout,
https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blocks.content import Content

Compression = Literal["none", "gzip", "zstd"]

_MEDIA_TYPES: dict[Compression, str] = {
    "none": "application/vnd.oci.image.layer.v1.tar",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}


@dataclass(frozen=True)
class Descriptor:
    """What a manifest says of a blob.

    Args:
        digest: `sha256:…` of its bytes.
        size: How many they are.
    """

    digest: str
    size: int

    @property
    def hex(self) -> str:
        """The digest without its algorithm."""
        return self.digest.removeprefix("sha256:")


@dataclass(frozen=True)
class Blob(Descriptor):
    """Bytes with a known digest, and where they lie here.

    Args:
        content: The bytes.
    """

    content: Content


@dataclass(frozen=True)
class Layer:
    """One form of a layer.

    Args:
        diff_id: `sha256:…` of its unpacked tar.
        compression: How this form is compressed.
        blob: This form: a `Blob` where its bytes lie here, a mere `Descriptor` where
            they need not, because the far side has them. Of compression `none` the
            digest is the diff id.
    """

    diff_id: str
    compression: Compression
    blob: Blob | Descriptor

    @property
    def media_type(self) -> str:
        """The type by which a manifest tells how it is compressed."""
        return _MEDIA_TYPES[self.compression]

    @property
    def here(self) -> Blob:
        """The blob of a layer whose bytes lie here.

        Raises:
            TypeError: They do not.
        """
        if not isinstance(self.blob, Blob):
            raise TypeError(f"the bytes of {self.diff_id} are not here")
        return self.blob
