"""Every way in which a request can end badly: a closed list.

    Error                       code, one sentence, retryable
    +-- Refusal                 a rule of the ledger said no: an answer, stored with the idempotency key
    +-- (the others)            raised; never stored, so the same key may be sent again

Only `api/problems.py` knows HTTP; `cli/` prints the sentence and the details.
"""

import re
from typing import Any, ClassVar


class Error(Exception):
    """`code` is the class name in snake case, the docstring is the sentence that people read."""

    retryable: ClassVar[bool] = False

    code: ClassVar[str] = "error"
    title: ClassVar[str] = "Something went wrong."

    def __init_subclass__(cls) -> None:
        cls.code = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
        cls.title = (cls.__doc__ or "").strip().split("\n")[0]

    def __init__(self, **details: Any) -> None:
        super().__init__(details)
        self.details = details
        self.replayed = False  # a refusal that was given before

    def __str__(self) -> str:
        return f"{self.title} ({', '.join(f'{name}: {value}' for name, value in self.details.items())})" if self.details else self.title


# What the caller sent -------------------------------------------------------------------------------------------------


class InvalidRequest(Error):
    """The request is not well formed."""


class IdempotencyKeyRequired(Error):
    """Send an Idempotency-Key header: every request that moves money needs one."""


class IdempotencyKeyReused(Error):
    """This Idempotency-Key was used with another body."""


class IdempotencyKeyInUse(Error):
    """A request with this Idempotency-Key is still running; ask again in a moment."""

    retryable = True


class Unauthenticated(Error):
    """Send a valid token: Authorization: Bearer <token>."""


class WrongCredentials(Error):
    """The e-mail address or the password is wrong."""


class SignInLocked(Error):
    """Too many failed sign-ins; wait, or have an operator unlock the user."""


class Forbidden(Error):
    """This token may not do that."""


class NotFound(Error):
    """There is no such thing, or it is not yours."""


class Archived(Error):
    """This was archived: it is no longer in the database, but in a file that the operator keeps."""


class MethodNotAllowed(Error):
    """This path does not take that method."""


class PayloadTooLarge(Error):
    """The body is too large."""


class UnsupportedMediaType(Error):
    """Send application/json."""


class TooManyRequests(Error):
    """Too many requests; wait for Retry-After seconds."""

    retryable = True


# Identity -------------------------------------------------------------------------------------------------------------


class EmailTaken(Error):
    """Another user has this e-mail address."""


class ExternalIdTaken(Error):
    """This external_id is in use."""


class SignUpClosed(Error):
    """Signing up is not open here; ask an operator."""


class InviteRequired(Error):
    """Signing up needs a valid invite."""


class LinkInvalid(Error):
    """This link was used, has expired, or never was; ask for a new one."""


class WeakPassword(Error):
    """The password is too short or too common."""


class UserNotFound(Error):
    """No user has this e-mail address or id."""


# Refusals of the ledger -----------------------------------------------------------------------------------------------


class Refusal(Error):
    """A rule of the ledger said no."""


class InsufficientFunds(Refusal):
    """The account does not have that much available."""


class AccountFrozen(Refusal):
    """The account is frozen."""


class AccountClosed(Refusal):
    """The account is closed."""


class AccountOwes(Refusal):
    """The account owes money; nothing can go out until that is covered."""


class AccountNotEmpty(Refusal):
    """Only an account without balance, holds, debts and open payments can be closed."""


class BalanceLimit(Refusal):
    """The balance would pass its limit."""


class CurrencyMismatch(Refusal):
    """The account has another currency."""


class SameAccount(Refusal):
    """A transfer needs two different accounts."""


class AlreadyReversed(Refusal):
    """This transaction was reversed before."""


class NotReversible(Refusal):
    """A transaction of this kind cannot be reversed."""


class PaymentNotOpen(Refusal):
    """The payment has ended."""


class PaymentUnderWay(Refusal):
    """The provider carries this payment out; it can no longer be cancelled."""


class PaymentMovedOn(Refusal):
    """The payment is in another state by now."""


class NotDirect(Refusal):
    """What a provider carries out, only the provider completes."""


class NotRefundable(Refusal):
    """This payment does not have that much to give back."""


class RefundUnderWay(Refusal):
    """Another refund of this payment is under way; wait until it has ended."""


class NotUnknown(Refusal):
    """Only a payment whose outcome nobody knows can be resolved by hand."""


class ResolutionDiffers(Refusal):
    """Another operator has proposed another outcome for this payment."""


class NotReplayable(Refusal):
    """An unsigned callback is a hint; it can never post anything."""


class NotUnmatched(Refusal):
    """Only an event that names nothing of ours can be dismissed, and once."""


class SecondOperatorNeeded(Refusal):
    """Two different operators have to agree on this."""


class CurrencyNotEnabled(Error):
    """This currency is not enabled here."""


class ProviderNotConfigured(Error):
    """No payment provider is configured; use method "direct" or ask the operator."""


class ProviderUnavailable(Error):
    """The payment provider does not answer; nothing was charged. Send it again with the same Idempotency-Key."""

    retryable = True


class ProviderRefused(Error):
    """The payment provider refused this."""


class BadSignature(Error):
    """The body is not signed by a key that this installation knows."""


# The house is in trouble ----------------------------------------------------------------------------------------------


class DatabaseUnavailable(Error):
    """The database cannot be reached; nothing was changed. Try again."""

    retryable = True


class QueueUnavailable(Error):
    """The queue of jobs cannot be reached right now; nothing was asked for."""

    retryable = True


class NoSynchronousStandby(Error):
    """No replica can confirm a commit, so nothing is written; nothing was changed. Try again."""

    retryable = True


class StorageFull(Error):
    """The database's disk is full, so nothing is written; nothing was changed. Make room on it, then try again."""

    retryable = True


class StandbysNotVisible(Error):
    """The application's database role may not see the replicas (piggybank doctor says what to grant); nothing was changed."""

    retryable = True


class InRecovery(Error):
    """This database was restored from a backup: it is only read until an operator runs `piggybank restore finish`."""

    retryable = True


class Overloaded(Error):
    """Too much at once; nothing was changed. Try again."""

    retryable = True


class AccountBusy(Error):
    """The account is locked by something else, maybe by an earlier try of this. Send it again with the same Idempotency-Key."""

    retryable = True


class OutcomeUnknown(Error):
    """It is not known whether this was done. Send it again with the same Idempotency-Key."""

    retryable = True


class ShuttingDown(Error):
    """The server is stopping. Try again."""

    retryable = True


class MailFailed(Error):
    """The mail server did not take a mail; it is tried again."""

    retryable = True


class InternalError(Error):
    """Something went wrong on our side; the request_id finds it in the log."""


# The operator's ------------------------------------------------------------------------------------------------------


class BadSetting(Error):
    """A setting is unknown or has a value that is not allowed."""


class AlreadyRunning(Error):
    """Another process runs this data folder."""


class StoreFailed(Error):
    """An embedded store did not start; its log says why."""


class UnknownCurrency(Error):
    """There is no such currency; see: piggybank currencies list --all."""


class SchemaBehind(Error):
    """The database's schema is older than this version; run: piggybank migrate."""


class CannotProceed(Error):
    """Something that must be true first is not."""


def _tree(root: type[Error]) -> list[type[Error]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


BY_CODE: dict[str, type[Error]] = {error.code: error for error in _tree(Error)[1:]}
