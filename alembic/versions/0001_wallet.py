"""The wallet: people, accounts, transactions, payments, effects, keys, outbox.

Ledger tables have the primary key (id, bucket): `bucket` is the last byte of every id and the distribution column when the
ledger is sharded. `transactions` is partitioned by id, which is by time, from the first day: one partition takes everything
until months are turned on. No foreign key points to it and no trigger hangs on a ledger table. Times of creation are in the ids.
"""

from alembic import op

revision = "0001"
down_revision = None

PEOPLE = """
CREATE TABLE users (
    id uuid PRIMARY KEY,
    email text,
    password_hash text,
    role text NOT NULL DEFAULT 'user' CHECK (role IN ('user', 'operator')),
    external_id text UNIQUE,
    name text,
    metadata jsonb NOT NULL DEFAULT '{}',
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX users_email ON users (lower(email));

-- Counted by address, known here or not, so that a lock does not tell who has an account.
CREATE TABLE failed_sign_ins (
    address_hash bytea PRIMARY KEY,
    failures integer NOT NULL,
    locked_until timestamptz,
    updated_at timestamptz NOT NULL
);
CREATE INDEX failed_sign_ins_age ON failed_sign_ins (updated_at);

CREATE TABLE sessions (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users (id),
    token_hash bytea NOT NULL UNIQUE,
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz
);
CREATE INDEX sessions_user ON sessions (user_id);

CREATE TABLE api_keys (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    token_hash bytea NOT NULL UNIQUE,
    hint text NOT NULL,
    scopes text[] NOT NULL,
    created_by uuid REFERENCES users (id),
    revoked_at timestamptz
);

CREATE TABLE links (
    id uuid PRIMARY KEY,
    token_hash bytea NOT NULL UNIQUE,
    purpose text NOT NULL CHECK (purpose IN ('operator', 'invite', 'reset')),
    user_id uuid REFERENCES users (id),
    expires_at timestamptz NOT NULL,
    used_at timestamptz
);

CREATE TABLE audit_log (
    id uuid PRIMARY KEY,
    actor text NOT NULL,
    action text NOT NULL,
    target text NOT NULL,
    details jsonb NOT NULL DEFAULT '{}'
);
"""

INSTALLATION = """
CREATE TABLE currencies (
    code text PRIMARY KEY CHECK (code ~ '^[A-Z]{3}$'),
    minor_unit smallint NOT NULL CHECK (minor_unit BETWEEN 0 AND 4),
    enabled boolean NOT NULL DEFAULT false
);

-- one row: who this installation is. A cache entry carries the epoch, which changes at failover and restore.
CREATE TABLE installation (
    one_row boolean PRIMARY KEY DEFAULT true CHECK (one_row),
    id uuid NOT NULL,
    epoch text NOT NULL,
    reports_through date
);
"""

LEDGER = """
CREATE TABLE accounts (
    id uuid NOT NULL,
    bucket smallint NOT NULL,
    user_id uuid NOT NULL REFERENCES users (id),
    currency text NOT NULL REFERENCES currencies (code),
    status text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'frozen', 'closed')),
    balance bigint NOT NULL DEFAULT 0,
    held bigint NOT NULL DEFAULT 0,
    owed bigint NOT NULL DEFAULT 0,
    clearing bigint NOT NULL DEFAULT 0,
    fees bigint NOT NULL DEFAULT 0,
    transfers bigint NOT NULL DEFAULT 0,
    adjustments bigint NOT NULL DEFAULT 0,
    version bigint NOT NULL DEFAULT 0,
    sequence bigint NOT NULL DEFAULT 0,
    transactions_count bigint NOT NULL DEFAULT 0,
    open_payments integer NOT NULL DEFAULT 0 CHECK (open_payments >= 0),
    last_transaction_id uuid,
    name text,
    external_id text,
    metadata jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (id, bucket),
    CONSTRAINT accounts_double_entry CHECK (balance + clearing + fees + transfers + adjustments = 0),
    CONSTRAINT accounts_held_and_owed CHECK (held >= 0 AND owed = GREATEST(0, held - balance))
) WITH (fillfactor = 70);
CREATE INDEX accounts_user ON accounts (user_id, id);
CREATE UNIQUE INDEX accounts_external_id ON accounts (bucket, user_id, external_id) WHERE external_id IS NOT NULL;

-- A row is one movement of one account against a system account: `amount` is signed and seen from the account.
CREATE TABLE transactions (
    id uuid NOT NULL,
    account_id uuid NOT NULL,
    amount bigint NOT NULL CHECK (amount <> 0),
    balance_after bigint NOT NULL,
    sequence bigint NOT NULL,
    bucket smallint NOT NULL,
    kind text NOT NULL CHECK (kind IN ('deposit', 'withdrawal', 'transfer_in', 'transfer_out', 'refund', 'chargeback',
        'chargeback_reversal', 'payout_return', 'reversal', 'adjustment', 'fee')),
    system_account text NOT NULL CHECK (system_account IN ('clearing', 'fees', 'transfers', 'adjustments')),
    transfer_id uuid,
    payment_id uuid,
    reverses uuid,
    reference text,
    description text,
    metadata jsonb,
    PRIMARY KEY (id, bucket)
) PARTITION BY RANGE (id);
CREATE TABLE transactions_all PARTITION OF transactions FOR VALUES FROM (MINVALUE) TO (MAXVALUE);
CREATE INDEX transactions_history ON transactions (account_id, id DESC);
CREATE INDEX transactions_transfer ON transactions (transfer_id) WHERE transfer_id IS NOT NULL;

CREATE TABLE payments (
    id uuid NOT NULL,
    bucket smallint NOT NULL,
    account_id uuid NOT NULL,
    kind text NOT NULL CHECK (kind IN ('deposit', 'withdrawal', 'refund')),
    method text NOT NULL CHECK (method IN ('direct', 'revio')),
    status text NOT NULL CHECK (status IN ('creating', 'pending', 'processing', 'unknown', 'completed', 'failed', 'cancelled', 'returned')),
    amount bigint NOT NULL CHECK (amount > 0),
    held bigint NOT NULL DEFAULT 0 CHECK (held >= 0),
    transaction_id uuid,
    destination jsonb,
    reference text,
    description text,
    metadata jsonb,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (id, bucket),
    FOREIGN KEY (account_id, bucket) REFERENCES accounts (id, bucket)
) WITH (fillfactor = 70);
CREATE INDEX payments_account ON payments (account_id, id DESC);
CREATE INDEX payments_open ON payments (id) WHERE status IN ('creating', 'pending', 'processing', 'unknown');

-- One row for each thing that may happen once, kept for ever: a provider's effect, a reversal.
CREATE TABLE effects (
    bucket smallint NOT NULL,
    source text NOT NULL,
    effect text NOT NULL,
    transaction_id uuid NOT NULL,
    PRIMARY KEY (bucket, source, effect)
);

CREATE TABLE idempotency_keys (
    owner uuid NOT NULL,
    created_at timestamptz NOT NULL,
    bucket smallint NOT NULL,
    actor "char" NOT NULL,
    key text NOT NULL,
    fingerprint bytea NOT NULL,
    answer bytea NOT NULL,
    PRIMARY KEY (bucket, owner, actor, key)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05);
CREATE INDEX idempotency_keys_age ON idempotency_keys USING brin (created_at) WITH (autosummarize = on);

-- Events that were committed with the change that they tell about. Taken FOR UPDATE SKIP LOCKED and deleted.
CREATE TABLE outbox (
    id uuid NOT NULL,
    bucket smallint NOT NULL,
    topic text NOT NULL,
    payload jsonb NOT NULL,
    attempts smallint NOT NULL DEFAULT 0,
    due_at timestamptz,
    PRIMARY KEY (id, bucket)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);

-- Sums of a day in UTC, built once when the day is over (installation.reports_through), read by the summary.
CREATE TABLE reports (
    account_id uuid NOT NULL,
    day date NOT NULL,
    kind text NOT NULL,
    bucket smallint NOT NULL,
    count bigint NOT NULL,
    credit bigint NOT NULL,
    debit bigint NOT NULL,
    PRIMARY KEY (account_id, day, kind, bucket)
);
"""


def upgrade() -> None:
    for script in (PEOPLE, INSTALLATION, LEDGER):
        for statement in script.split(";\n"):
            if statement.strip():
                op.execute(statement)


def downgrade() -> None:
    raise RuntimeError("the first migration has no way back: restore a backup instead")
