"""Reproductions: one module each, always with PAPER, Config, run, figure and check."""
