"""Parts of the steering experiment: vectors and maps, the texts that judge them, and what they do."""
