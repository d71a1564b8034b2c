"""Tables become pictures; neither jax nor penzai is imported here."""
