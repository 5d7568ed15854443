"""What the API sends: purchases, payments, payouts, EFT credits.

The quirks of the real API are here: empty strings where one would expect null, `quantity` and `tax_percent` as strings, times as
whole unix seconds, the newest attempt first.
"""

from msgspec import Struct


class Step(Struct, frozen=True):
    """A status and when it began."""

    status: str
    timestamp: int


class Sent(Struct, kw_only=True):
    """What every object that is sent begins with."""

    id: str
    type: str
    status: str
    status_history: list[Step]
    created_on: int
    updated_on: int
    is_test: bool = True
    company_id: str
    brand_id: str
    reference: str = ""

    def become(self, status: str, now: int) -> None:
        """Take a status, and note when."""
        self.status = status
        self.status_history.append(Step(status, now))
        self.updated_on = now


class Client(Struct, kw_only=True):
    """Who pays or is paid. `country` has two letters."""

    email: str
    full_name: str = ""
    phone: str = ""
    country: str = ""
    state: str = ""
    city: str = ""
    zip_code: str = ""
    street_address: str = ""
    personal_code: str = ""
    bank_account: str = ""
    bank_code: str = ""
    legal_name: str = ""
    brand_name: str = ""
    registration_number: str = ""
    tax_number: str = ""
    shipping_country: str = ""
    shipping_state: str = ""
    shipping_city: str = ""
    shipping_zip_code: str = ""
    shipping_street_address: str = ""
    cc: list[str] = []
    bcc: list[str] = []


class PaymentBlock(Struct, kw_only=True):
    """Money that moved or is to move."""

    payment_type: str
    is_outgoing: bool
    amount: int
    currency: str
    net_amount: int
    fee_amount: int = 0
    pending_amount: int = 0
    pending_unfreeze_on: int | None = None
    description: str = ""
    paid_on: int | None = None
    remote_paid_on: int | None = None


class AttemptError(Struct, frozen=True):
    """Why a try to pay failed."""

    code: str
    message: str


class Attempt(Struct, kw_only=True):
    """One try to pay."""

    type: str = "execute"
    successful: bool
    payment_method: str
    fee_amount: int = 0
    error: AttemptError | None = None
    processing_time: int
    processing_tx_id: str
    client_ip: str
    country: str = ""
    flow: str = "payform"


class TransactionData(Struct, kw_only=True):
    """How it was paid; the newest attempt comes first."""

    payment_method: str = ""
    flow: str = "payform"
    country: str = ""
    extra: dict[str, str] = {}
    attempts: list[Attempt] = []


class Product(Struct, kw_only=True):
    """One line of a purchase."""

    name: str
    quantity: str
    price: int
    discount: int
    tax_percent: str
    category: str
    total_price_override: int | None


class Details(Struct, kw_only=True):
    """What is bought."""

    currency: str
    products: list[Product]
    total: int
    language: str
    timezone: str
    notes: str
    due_strict: bool
    email_message: str
    debt: int
    subtotal_override: int | None
    total_tax_override: int | None
    total_discount_override: int | None
    total_override: int | None
    request_client_details: list[str]
    metadata: dict[str, object]
    payment_method_details: dict[str, object]


class IssuerDetails(Struct, kw_only=True):
    """Who sells."""

    legal_name: str = "Simulated Seller (Pty) Ltd"
    brand_name: str = "Simulated Seller"
    website: str = ""
    registration_number: str = ""
    tax_number: str = ""
    legal_country: str = "ZA"
    legal_city: str = ""
    legal_zip_code: str = ""
    legal_street_address: str = ""
    bank_accounts: list[dict[str, str]] = []


class Purchase(Sent, kw_only=True):
    """A purchase as it is sent."""

    type: str = "purchase"
    client: Client
    client_id: str
    purchase: Details
    payment: PaymentBlock | None = None
    issuer_details: IssuerDetails
    transaction_data: TransactionData
    refund_availability: str = "none"
    refundable_amount: int = 0
    reference_generated: str
    issued: str
    due: int | None
    viewed_on: int | None = None
    checkout_url: str
    direct_post_url: str | None = None
    invoice_url: str | None = None
    success_redirect: str
    failure_redirect: str
    cancel_redirect: str
    success_callback: str
    payment_method_whitelist: list[str]
    send_receipt: bool
    skip_capture: bool
    force_recurring: bool
    is_recurring_token: bool = False
    recurring_token: str | None = None
    creator_agent: str
    platform: str = "api"
    product: str = "purchases"
    created_from_ip: str
    marked_as_paid: bool = False
    user_id: str | None = None
    order_id: str | None = None


class RelatedTo(Struct, frozen=True):
    """The object that a payment belongs to."""

    type: str
    id: str


class Payment(Sent, kw_only=True):
    """A refund, a chargeback or the reversal of one, as it is sent."""

    type: str = "payment"
    client: Client
    payment: PaymentBlock
    related_to: RelatedTo
    transaction_data: TransactionData


class Payout(Sent, kw_only=True):
    """A payout as it is sent."""

    type: str = "payout"
    client: Client
    client_id: str
    payment: PaymentBlock
    sender_name: str
    execution_url: str
    transaction_data: TransactionData


class EftCredit(Struct, kw_only=True):
    """An EFT credit as it is sent."""

    id: str
    status: str
    contractReference: str  # noqa: N815 - the API's own name
    amountCents: int  # noqa: N815
    serviceType: str  # noqa: N815
    paymentDate: str  # noqa: N815
