"""`python -m jaxinterp.cli`, where the command itself is not on the path."""

from jaxinterp.cli import main

main()
