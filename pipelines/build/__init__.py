"""Bring a map up to date: images to segments, quantizer, shards and a manifest."""
