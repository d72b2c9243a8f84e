"""A made-up town and a camera to photograph it with, so that Folio can show and test itself without any download."""
