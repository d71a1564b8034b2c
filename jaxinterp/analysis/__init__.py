"""Measurements on plain arrays: probes, heads, statistics."""
