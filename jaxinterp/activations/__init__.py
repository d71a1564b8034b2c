"""Reads: forward passes, captured activations, generation."""
