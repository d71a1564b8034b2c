"""Edits: pure functions from a model to a model, whose numbers are arrays in the tree."""
