"""What one photo may cost. Used wherever a photo of unknown origin is read."""

from dataclasses import dataclass

PILLOW_MAX_PIXELS = 178_956_970
"""Pillow refuses larger pictures itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PhotoLimits:
    """What one photo may cost before it is rejected."""

    max_pixels: int = 64_000_000
    """Width times height that the header may declare. Each million needs about 4 MB in the decoder."""

    max_bytes: int = 256 * 2**20
    """Size of the file. As many files as there are threads are in memory at once."""

    decode_timeout_s: float = 10.0
    """Time to decode one photo; a JPEG of 64 megapixels takes two to three seconds."""

    decoder_memory_bytes: int = 512 * 2**20
    """Memory of the decoder process, its own 20 MB and the file's bytes included. Enforced on Linux."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_pixels <= PILLOW_MAX_PIXELS:
            raise ValueError(f"max_pixels must be from 1 to {PILLOW_MAX_PIXELS:,}, got {self.max_pixels:,}")
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, got {self.max_bytes:,}")
        if self.decode_timeout_s <= 0:
            raise ValueError(f"decode_timeout_s must be above 0, got {self.decode_timeout_s}")
        if self.decoder_memory_bytes < 64 * 2**20:
            raise ValueError(f"decoder_memory_bytes must be at least 64 MiB, got {self.decoder_memory_bytes:,}")
