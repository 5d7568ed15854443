"""How the API says no: `{"field": [{"message", "code"}]}`, or `__all__` where no field is to blame."""

from msgspec import Struct

ALL = "__all__"


class Reason(Struct, frozen=True):
    """Why, for people and for programs."""

    message: str
    code: str


class Refused(Exception):
    """The request is answered with `status` and the reason under its field."""

    def __init__(self, message: str, code: str, *, field: str = ALL, status: int = 400) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.reason = Reason(message, code)
        self.status = status

    @property
    def body(self) -> dict[str, list[Reason]]:
        """The answer."""
        return {self.field: [self.reason]}


def not_found() -> Refused:
    """There is no such object."""
    return Refused("Not found.", "not_found", status=404)


def required(field: str) -> Refused:
    """A field is missing."""
    return Refused("This field is required.", "required", field=field)
