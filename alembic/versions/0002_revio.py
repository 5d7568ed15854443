"""Revio: payments that a provider carries out, its events, its keys, what has no user, and the nightly comparison.

`payments` get what the provider says of them. `provider_events` is the inbox: the raw body first, once, for ever. `system_entries`
are double entries without an account: fees, and what was paid out to the bank. Whether the provider is the real one or the
simulator stands in `installation`, and on every payment.
"""

from alembic import op

revision = "0002"
down_revision = "0001"

INSTALLATION = """
ALTER TABLE installation
    ADD COLUMN provider_mode text NOT NULL DEFAULT 'simulator' UNIQUE CHECK (provider_mode IN ('simulator', 'live'));

-- Public keys that events are signed with: several while one is being changed for another.
CREATE TABLE provider_keys (
    fingerprint text NOT NULL,
    provider text NOT NULL CHECK (provider IN ('simulator', 'live')),
    pem text NOT NULL,
    webhook_id text,
    note text NOT NULL DEFAULT '',
    added_at timestamptz NOT NULL,
    PRIMARY KEY (provider, fingerprint)
);
"""

# A payment's provider is the installation's: while play payments are here the mode cannot become real, and no process that believes
# in an older mode can open one.
PAYMENTS = """
ALTER TABLE payments
    ADD COLUMN provider text REFERENCES installation (provider_mode),
    ADD COLUMN provider_id text,
    ADD COLUMN provider_url text,
    ADD COLUMN refund_of uuid,
    ADD COLUMN stamp bigint NOT NULL DEFAULT 0,
    ADD COLUMN paid bigint NOT NULL DEFAULT 0,
    ADD COLUMN refunded bigint NOT NULL DEFAULT 0,
    ADD COLUMN refunding bigint NOT NULL DEFAULT 0,
    ADD COLUMN charged_back bigint NOT NULL DEFAULT 0,
    ADD COLUMN failure text,
    ADD COLUMN return_url text,
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN due_at timestamptz,
    ADD COLUMN attempts integer NOT NULL DEFAULT 0,
    ADD CONSTRAINT payments_provider CHECK ((method = 'revio') = (provider IS NOT NULL)),
    ADD CONSTRAINT payments_refund CHECK ((kind = 'refund') = (refund_of IS NOT NULL));
CREATE UNIQUE INDEX payments_provider_id ON payments (provider_id, bucket) WHERE provider_id IS NOT NULL;
-- For the jobs, each second: not through the holds that wait for their own people.
CREATE INDEX payments_to_send ON payments (id)
    WHERE status IN ('creating', 'pending') AND method = 'revio' AND kind IN ('withdrawal', 'refund');
CREATE INDEX payments_under_way ON payments (id)
    WHERE status IN ('creating', 'pending', 'processing', 'unknown') AND method = 'revio';
CREATE INDEX payments_refunds ON payments (refund_of) WHERE refund_of IS NOT NULL;
CREATE INDEX payments_differing ON payments (id) WHERE method = 'revio' AND status = 'completed' AND paid <> amount;

-- Two operators decide what became of a payment that nobody else can tell about.
CREATE TABLE resolutions (
    id uuid PRIMARY KEY,
    payment_id uuid NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('completed', 'failed')),
    note text NOT NULL,
    proposed_by uuid NOT NULL REFERENCES users (id),
    confirmed_by uuid REFERENCES users (id),
    ended_at timestamptz,
    CONSTRAINT resolutions_by_two CHECK (confirmed_by <> proposed_by)
);
CREATE UNIQUE INDEX resolutions_open ON resolutions (payment_id) WHERE ended_at IS NULL;
"""

PROVIDER = """
-- The inbox. A body is kept once, whatever becomes of it; an unsigned one is a hint and posts nothing.
CREATE TABLE provider_events (
    id uuid PRIMARY KEY,
    body_hash bytea NOT NULL UNIQUE,
    provider text NOT NULL CHECK (provider IN ('simulator', 'live')),
    body bytea NOT NULL,
    status text NOT NULL CHECK (status IN ('new', 'applied', 'ignored', 'unmatched', 'hint')),
    event_type text NOT NULL DEFAULT '',
    object_id text NOT NULL DEFAULT '',
    payment_id uuid,
    note text NOT NULL DEFAULT '',
    attempts integer NOT NULL DEFAULT 0,
    due_at timestamptz,
    updated_at timestamptz NOT NULL
) WITH (fillfactor = 80);
CREATE INDEX provider_events_due ON provider_events (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX provider_events_new ON provider_events (due_at) WHERE status = 'new';
CREATE INDEX provider_events_payment ON provider_events (payment_id, id) WHERE payment_id IS NOT NULL;
CREATE INDEX provider_events_status ON provider_events (status, id) WHERE status <> 'applied';
CREATE INDEX provider_events_object ON provider_events (object_id, id);

-- Double entries without a user; only ever added. `effect` makes each happen once.
CREATE TABLE system_entries (
    id uuid PRIMARY KEY,
    provider text NOT NULL CHECK (provider IN ('simulator', 'live')),
    currency text NOT NULL REFERENCES currencies (code),
    amount bigint NOT NULL CHECK (amount > 0),
    debit text NOT NULL CHECK (debit IN ('clearing', 'bank', 'provider_fees', 'write_offs')),
    credit text NOT NULL CHECK (credit IN ('clearing', 'bank', 'provider_fees', 'write_offs')),
    effect text NOT NULL UNIQUE,
    payment_id uuid,
    description text NOT NULL DEFAULT '',
    CONSTRAINT system_entries_two_sides CHECK (debit <> credit)
);

-- A night's comparison of our payments with the provider's statement and balance.
CREATE TABLE reconciliations (
    id uuid PRIMARY KEY,
    provider text NOT NULL CHECK (provider IN ('simulator', 'live')),
    since timestamptz NOT NULL,
    until timestamptz NOT NULL,
    status text NOT NULL CHECK (status IN ('running', 'finished', 'failed')),
    rows integer NOT NULL DEFAULT 0,
    matched integer NOT NULL DEFAULT 0,
    mended integer NOT NULL DEFAULT 0,
    note text NOT NULL DEFAULT '',
    finished_at timestamptz
);
-- Which of our rows a statement of the provider has had; a row that is in none is ours only.
CREATE TABLE booked_transactions (
    transaction_id uuid PRIMARY KEY,
    reconciliation_id uuid NOT NULL REFERENCES reconciliations (id)
);
CREATE TABLE reconciliation_items (
    reconciliation_id uuid NOT NULL REFERENCES reconciliations (id),
    number integer NOT NULL,
    kind text NOT NULL CHECK (kind IN ('ours_only', 'theirs_only', 'amount_differs', 'fee_differs', 'balance_differs', 'unknown')),
    provider_id text,
    payment_id uuid,
    currency text NOT NULL,
    ours bigint,
    theirs bigint,
    what text NOT NULL,
    what_to_do text NOT NULL,
    PRIMARY KEY (reconciliation_id, number)
);
"""


def upgrade() -> None:
    for script in (INSTALLATION, PAYMENTS, PROVIDER):
        for statement in script.split(";\n"):
            if statement.strip():
                op.execute(statement)


def downgrade() -> None:
    raise RuntimeError("payments of a provider cannot be unlearnt: restore a backup instead")
