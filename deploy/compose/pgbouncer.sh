#!/bin/sh
# PgBouncer before postgres-1, as `piggybank up` has it (piggybank/appliance/pooler.py; a test compares them). Its files are in memory.
set -eu
umask 077
ulimit -n "$(ulimit -H -n)" # engines begin at 1,024 files, and each client is one
cat > /tmp/userlist.txt <<USERS
"piggybank_app" "$APPLICATION_PASSWORD"
USERS
cat > /tmp/pgbouncer.ini <<INI
[databases]
* = host=postgres-1 port=5432

[pgbouncer]
listen_addr = *
listen_port = 6432
unix_socket_dir =
auth_type = scram-sha-256
auth_file = /tmp/userlist.txt
admin_users = piggybank_app
stats_users = piggybank_app
pool_mode = transaction
max_client_conn = $CLIENTS
default_pool_size = $CONNECTIONS
max_user_connections = $CONNECTIONS
min_pool_size = 0
reserve_pool_size = 0
query_wait_timeout = 10
server_connect_timeout = 5
server_login_retry = 1
server_lifetime = 3600
server_idle_timeout = 600
query_timeout = 0
idle_transaction_timeout = 0
client_idle_timeout = 0
ignore_startup_parameters = extra_float_digits
tcp_keepalive = 1
tcp_keepidle = 10
tcp_keepintvl = 5
tcp_keepcnt = 3
log_connections = 0
log_disconnections = 0
log_stats = 0
INI
exec pgbouncer /tmp/pgbouncer.ini
