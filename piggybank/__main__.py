"""`python -m piggybank`."""

from piggybank.cli import main

main(prog_name="piggybank")
