"""`python -m piggybank.bench.server`: `piggybank serve` with the routes to compare with."""

from piggybank import app
from piggybank.bench import comparisons
from piggybank.cli import main

if __name__ == "__main__":
    comparisons.add_routes(app.ROUTES)
    main(["serve"])
