"""`python -m peregrine`."""

from peregrine.cli import main

main()
