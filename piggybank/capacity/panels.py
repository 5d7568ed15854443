"""What Grafana's dashboards show: pages of panels, each a question to Prometheus (`dashboards.py` makes files of them)."""

from typing import NamedTuple

from piggybank.capacity import alerts

RATE = "$__rate_interval"

_PEOPLE = 'http_route!~"/health/live|/health/ready|/metrics"'
_COUNT = "http_server_request_duration_seconds_count"
_BUCKET = "http_server_request_duration_seconds_bucket"


class Panel(NamedTuple):
    """One picture: `lines` are (expression, legend); `alert`: whose thresholds are drawn; a `stat` is a number, else it is a graph."""

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    alert: str = ""
    stat: bool = False
    says: str = ""


class Dashboard(NamedTuple):
    """One page; its file and its UID are `piggybank-<name>`."""

    name: str
    title: str
    panels: tuple[Panel, ...]


def stat(title: str, unit: str, expression: str, alert: str = "", says: str = "") -> Panel:
    """A number."""
    return Panel(title, unit, ((expression, ""),), alert, stat=True, says=says)


def graph(title: str, unit: str, *lines: tuple[str, str], alert: str = "", says: str = "") -> Panel:
    """Lines over time."""
    return Panel(title, unit, lines, alert, says=says)


def _quantiles(bucket: str, by: str = "le") -> tuple[tuple[str, str], ...]:
    return tuple((f"histogram_quantile({rank / 100}, sum by ({by}) (rate({bucket}[{RATE}])))", f"p{rank}") for rank in (50, 95, 99))


def _of_alert(name: str) -> str:
    return alerts.expression(next(alert for alert in alerts.table() if alert.name == name))


DASHBOARDS = (
    Dashboard(
        "overview",
        "piggybank: overview",
        (
            stat("Phase", "none", "max(app_phase)", says="As which phase the installation runs: its limits are on the capacity dashboard."),
            stat(
                "Requests a second",
                "reqps",
                f"sum(rate({_COUNT}{{{_PEOPLE}}}[5m]))",
                says="What people and programs ask for, without probes, in five minutes.",
            ),
            stat("p95", "s", _of_alert("ApiSlow"), "ApiSlow"),
            stat("Errors", "percentunit", _of_alert("ApiErrors"), "ApiErrors"),
            stat(
                "Postings a second",
                "ops",
                'sum(rate(ledger_postings_total{outcome="posted"}[5m]))',
                says="Movements that were posted, in five minutes; a transfer is one.",
            ),
            stat("Books are off by", "none", "max(ledger_trial_balance_difference_minor)", "TrialBalanceBroken"),
            graph("Time of requests", "s", *_quantiles(f"{_BUCKET}{{{_PEOPLE}}}"), alert="ApiSlow"),
            graph(
                "Requests",
                "reqps",
                (f"sum by (http_response_status_code) (rate({_COUNT}[{RATE}]))", "{{http_response_status_code}}"),
                says="Answers by their status, probes included. No line at all: no web process answers.",
            ),
            graph(
                "Postings",
                "ops",
                (f"sum by (kind) (rate(ledger_postings_total[{RATE}]))", "{{kind}}"),
                says="Commands that the ledger decided, by their kind.",
            ),
            graph("Cache hit rate", "percentunit", (_of_alert("CacheMisses"), "hits"), alert="CacheMisses"),
            graph("PostgreSQL's CPU, of all cores", "percentunit", ("max(db_cpu_ratio)", "used"), alert="DatabaseCpu"),
            graph("Replication lag", "s", ("max by (replica) (replica_lag_seconds)", "{{replica}}"), alert="ReplicaLag"),
        ),
    ),
    Dashboard(
        "api",
        "piggybank: API by route",
        (
            graph(
                "Requests by route",
                "reqps",
                (f"sum by (http_route) (rate({_COUNT}[{RATE}]))", "{{http_route}}"),
                says="By the route's template. A route without a line was not asked.",
            ),
            graph(
                "p95 by route",
                "s",
                (f"histogram_quantile(0.95, sum by (le, http_route) (rate({_BUCKET}[{RATE}])))", "{{http_route}}"),
                alert="ApiSlow",
            ),
            graph(
                "Answers of 4xx by route",
                "reqps",
                (f'sum by (http_route) (rate({_COUNT}{{http_response_status_code=~"4.."}}[{RATE}]))', "{{http_route}}"),
                says="What clients did wrong, or may not do. No data: there was no such answer, or nobody answers (see requests by route).",
            ),
            graph(
                "Answers of 5xx by route",
                "reqps",
                (f'sum by (http_route) (rate({_COUNT}{{http_response_status_code=~"5.."}}[{RATE}]))', "{{http_route}}"),
                says="What was our fault, or a store's. No data: there was no such answer, or nobody answers (see requests by route).",
            ),
            graph(
                "Idempotent replays",
                "ops",
                (f"sum(rate(ledger_idempotent_replays_total[{RATE}]))", "replays"),
                says="Commands that were answered from their idempotency key: clients that sent again.",
            ),
            graph(
                "Movements refused",
                "ops",
                (f'sum by (outcome) (rate(ledger_postings_total{{outcome!="posted"}}[{RATE}]))', "{{outcome}}"),
                says="Commands that the ledger refused, by the reason. No data: none was, or nobody posts.",
            ),
        ),
    ),
    Dashboard(
        "ledger",
        "piggybank: ledger",
        (
            graph(
                "Postings by kind",
                "ops",
                (f"sum by (kind, outcome) (rate(ledger_postings_total[{RATE}]))", "{{kind}} {{outcome}}"),
                says="Commands that the ledger decided, by their kind and what came of them.",
            ),
            graph(
                "Commands in a batch",
                "none",
                *_quantiles("ledger_batch_size_bucket"),
                says="One database transaction posts a batch: the busier, the larger.",
            ),
            graph("Time of a batch", "s", *_quantiles("ledger_batch_duration_seconds_bucket"), says="From BEGIN to the end of the commit."),
            graph(
                "Time of a commit",
                "s",
                *_quantiles("ledger_commit_duration_seconds_bucket"),
                says="The disk, and from phase 2 on a replica's.",
            ),
            graph(
                "Wait in the queue",
                "s",
                *_quantiles("ledger_queue_wait_seconds_bucket"),
                says="How long the oldest command of a batch had waited for the one before.",
            ),
            graph(
                "Batches posted again",
                "ops",
                (f"sum by (why) (rate(ledger_batch_retries_total[{RATE}]))", "{{why}}"),
                says="By the reason: a key known, an account locked, a connection lost. No data: none was, or nobody posts.",
            ),
            graph("Outbox: oldest", "s", ("max(ledger_outbox_oldest_age_seconds)", "age"), alert="OutboxStuck"),
            graph(
                "Outbox: waiting",
                "none",
                ("max(ledger_outbox_waiting)", "events"),
                says="Events that are committed and not carried out, without mails.",
            ),
            graph(
                "Books are off by, minor units",
                "none",
                ("max by (currency) (ledger_trial_balance_difference_minor)", "{{currency}}"),
                alert="TrialBalanceBroken",
            ),
            graph(
                "Writes refused, commits local",
                "none",
                ("max(ledger_writes_refused)", "refused"),
                ("max(ledger_commits_local)", "local"),
                says="1: no replica confirms commits (alert WritesRefused), or none is waited for (alert DurabilityLocal).",
            ),
        ),
    ),
    Dashboard(
        "database",
        "piggybank: PostgreSQL",
        (
            graph("CPU, of all cores", "percentunit", ("max(db_cpu_ratio)", "used"), alert="DatabaseCpu"),
            graph("Connections", "percentunit", (_of_alert("ConnectionsShort"), "taken"), alert="ConnectionsShort"),
            graph("Slow statements in ten minutes", "none", (_of_alert("SlowQueries"), "statements"), alert="SlowQueries"),
            graph("Replication lag", "s", ("max by (replica) (replica_lag_seconds)", "{{replica}}"), alert="ReplicaLag"),
            graph(
                "Reads by who answered",
                "ops",
                (f"sum by (target, reason) (rate(db_reads_total[{RATE}]))", "{{target}} {{reason}}"),
                says="From phase 2 on most go to replicas; the reason says why one went to the primary.",
            ),
            graph(
                "Replicas that stream",
                "none",
                ("max(db_replicas)", "replicas"),
                says="As the primary sees them; missing where the role may not.",
            ),
            graph("Size", "bytes", ("max(db_size_bytes)", "database"), says="Of the database, with its indexes."),
            graph("Disk that is free", "percentunit", ("min(disk_free_ratio)", "free"), alert="DiskShort"),
            graph("Months missing", "none", ("max(partitions_missing)", "missing"), alert="MonthMissing"),
            graph(
                "Age of the last good backup", "s", ("max(backup_age_seconds)", "age"), says="Or of the installation, where there is none."
            ),
            graph("A backup is overdue by", "s", ("max(backup_overdue_seconds)", "overdue"), alert="BackupStale"),
        ),
    ),
    Dashboard(
        "stores",
        "piggybank: cache and jobs",
        (
            graph(
                "Look-ups",
                "ops",
                (f"sum by (kind, result) (rate(cache_lookups_total[{RATE}]))", "{{kind}} {{result}}"),
                says="Values looked for in the cache, by kind and whether they were there.",
            ),
            graph(
                "Hit rate by kind",
                "percentunit",
                (
                    f'sum by (kind) (rate(cache_lookups_total{{result="hit"}}[{RATE}]))'
                    f" / sum by (kind) (rate(cache_lookups_total[{RATE}]))",
                    "{{kind}}",
                ),
                alert="CacheMisses",
            ),
            graph("Memory of the cache", "percentunit", ("max(cache_memory_ratio)", "used"), alert="CacheMemory"),
            graph("Answers: 1, away: 0", "none", ("min(cache_up)", "cache"), ("min(queue_up)", "queue"), alert="CacheAway"),
            graph(
                "Jobs in the queue",
                "none",
                ("max by (state) (saq_queue_depth)", "{{state}}"),
                says="By their state; they wait for a second or two.",
            ),
            graph("Oldest job", "s", ("max(saq_oldest_job_age_seconds)", "age"), alert="JobsStuck"),
            graph(
                "Jobs by how they ended",
                "ops",
                (f"sum by (task, status) (rate(saq_jobs_total[{RATE}]))", "{{task}} {{status}}"),
                says="By their name; what failed is in the log of the worker.",
            ),
        ),
    ),
    Dashboard(
        "provider",
        "piggybank: payment provider",
        (
            graph("Events come late by", "s", *_quantiles("psp_webhook_lag_seconds_bucket"), alert="WebhookLag"),
            graph("Wrong signatures in ten minutes", "none", (_of_alert("WebhookSignatures"), "events"), alert="WebhookSignatures"),
            graph("Inbox: oldest", "s", ("max(ledger_inbox_oldest_age_seconds)", "age"), alert="InboxStuck"),
            graph("Inbox: waiting", "none", ("max(ledger_inbox_waiting)", "events"), says="Events of the provider that are not applied."),
            graph(
                "Payments that have not ended",
                "none",
                ("max by (status) (psp_open_payments)", "{{status}}"),
                says="By their status: checkouts that wait for the payer, payouts under way.",
            ),
            graph("Nobody knows", "none", ("max(psp_unknown_payouts)", "payouts"), alert="UnknownPayouts"),
            graph("Events that name nothing of ours", "none", ("max(psp_unmatched_events)", "events"), alert="UnmatchedEvents"),
            graph("Last compared with the statement", "s", ("max(reconciliation_age_seconds)", "age"), alert="ReconciliationStale"),
        ),
    ),
    Dashboard(
        "capacity",
        "piggybank: capacity",
        (
            stat("Phase", "none", "max(app_phase)", says="As which phase the installation runs: its limits are on the capacity dashboard."),
            stat(
                "Of its peak",
                "percentunit",
                'sum(rate(ledger_postings_total{outcome="posted"}[5m])) / max(phase_limit{measure="tps"})',
                says="Postings a second, of what the phase is made for.",
            ),
            stat(
                "Of its day",
                "percentunit",
                'sum(increase(ledger_postings_total{outcome="posted"}[1d])) / max(phase_limit{measure="transactions_a_day"})',
                says="Transactions of the last 24 hours, of what the phase is made for.",
            ),
            stat(
                "Of its users", "percentunit", 'max(users) / max(phase_limit{measure="users"})', says="Of as many as the phase is made for."
            ),
            stat(
                "Of its database",
                "percentunit",
                'max(db_size_bytes) / max(phase_limit{measure="database_bytes"})',
                says="Its size, of what the phase is made for.",
            ),
            stat("Of its connections", "percentunit", _of_alert("ConnectionsShort"), "ConnectionsShort"),
            graph(
                "Postings a second, and the phase's peak",
                "ops",
                (f'sum(rate(ledger_postings_total{{outcome="posted"}}[{RATE}]))', "postings"),
                ('max(phase_limit{measure="tps"})', "limit"),
                says="Where the lines meet, the next phase is due.",
            ),
            graph(
                "Users, and the phase's",
                "none",
                ("max(users)", "users"),
                ('max(phase_limit{measure="users"})', "limit"),
                says="Where the lines meet, the next phase is due.",
            ),
            graph(
                "Database, and the phase's",
                "bytes",
                ("max(db_size_bytes)", "database"),
                ('max(phase_limit{measure="database_bytes"})', "limit"),
                says="Where the lines meet, the next phase is due.",
            ),
            graph("Memory of the cache", "bytes", ("max(cache_memory_bytes)", "used"), says="All masters together."),
        ),
    ),
)
