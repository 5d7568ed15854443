"""A moment on the command line."""

from datetime import UTC, datetime

import click


class _Moment(click.ParamType[datetime]):
    """ISO 8601; without a zone it is UTC."""

    name = "time"

    def convert(self, value: str | datetime, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value} is no time like 2026-11-24T09:30:00Z", param, ctx)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)


MOMENT = _Moment()
