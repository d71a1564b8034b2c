"""Parts of the experiment on models of one family: their tables, their vectors, and the claims."""
