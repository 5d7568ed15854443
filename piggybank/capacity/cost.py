"""What a phase costs a month: the design's figures, for a hosted platform. A machine of your own costs what it costs."""

from msgspec import Struct

from piggybank.capacity import phases


class Cost(Struct, frozen=True, kw_only=True):
    """A phase at its full load. `managed_*`: the same from a managed cloud."""

    phase: int
    users: int
    usd_a_month: int
    usd_a_user: float
    managed_usd_least: int
    managed_usd_most: int
    and_more: bool  # the last phase has no upper end

    @property
    def text(self) -> str:
        """`$2,500`, or `$5,000+`."""
        return f"${self.usd_a_month:,}{'+' if self.and_more else ''}"


class Difference(Struct, frozen=True, kw_only=True):
    """From one phase to another; `usd_a_month` is below 0 where it gets cheaper."""

    before: Cost
    after: Cost
    usd_a_month: int
    usd_a_user: float

    def line(self) -> str:
        """In words."""
        sign = "-" if self.usd_a_month < 0 else "+"
        users = f"${self.before.usd_a_user:g} -> ${self.after.usd_a_user:g} a user"
        return f"{self.before.text} -> {self.after.text} a month ({sign}${abs(self.usd_a_month):,}); {users} at full load"


def of(number: int) -> Cost:
    """What the phase of that number costs."""
    phase, managed = phases.of(number), phases.limits().managed
    return Cost(
        phase=number,
        users=phase.users,
        usd_a_month=phase.cost_usd_a_month,
        usd_a_user=round(phase.cost_usd_a_month / phase.users, 3),
        managed_usd_least=phase.cost_usd_a_month * managed.cost_times_least,
        managed_usd_most=phase.cost_usd_a_month * managed.cost_times_most,
        and_more=phase.open_ended,
    )


def difference(current: int, target: int) -> Difference:
    """What a flip changes in the bill."""
    before, after = of(current), of(target)
    return Difference(
        before=before,
        after=after,
        usd_a_month=after.usd_a_month - before.usd_a_month,
        usd_a_user=round(after.usd_a_user - before.usd_a_user, 3),
    )
