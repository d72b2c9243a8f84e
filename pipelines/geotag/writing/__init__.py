"""From geotags to the files where other tools look: exports, XMP sidecars and EXIF, and all of it taken back."""
