"""Tasks: prompts, data, scoring and tokenizers; no model is seen here."""
