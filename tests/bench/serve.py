"""The shipped server with the route of `one_by_one.py`."""

from piggybank import app
from piggybank.cli import main
from tests.bench import one_by_one

if __name__ == "__main__":
    one_by_one.add_route(app.ROUTES)
    main(["serve"])
