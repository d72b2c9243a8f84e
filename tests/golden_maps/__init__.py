"""Complete maps as each format of the manifest wrote them, kept so that today's Folio goes on reading what users have."""
