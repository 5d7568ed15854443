#!/bin/sh
# One PostgreSQL server of compose.yaml: postgres-1 is the primary, the others stream from it. `postgres.sh healthy` asks the running one,
# `postgres.sh promote` puts the standby that goes furthest in the place of a primary whose disk is gone.
#
# From phase 2 on (STANDBYS names the standbys) a commit waits for any one of them, from the moment when the first streams until the
# phase is changed back; a primary that was restarted waits from its first moment on, so no answered write is ever on one server only.
set -eu
PRIMARY=postgres-1
DATA=/var/lib/postgresql/18/piggybank
REPLICATION=piggybank_replication
OWNER=piggybank_owner
APPLICATION=piggybank_app
DATABASE=piggybank
PGDATA=$DATA.new # only while it is made
export PGDATA LC_ALL=C PGHOST=/tmp
umask 077

say() { echo "postgres.sh: $*" >&2; }
ask() { psql --no-psqlrc --quiet --no-align --tuples-only --set=ON_ERROR_STOP=1 --username=postgres --dbname=postgres "$@"; }

healthy() {
  pg_isready --quiet --host=/tmp
  [ "$NODE" = "$PRIMARY" ] || [ "$(ask -c "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'")" = 1 ]
}

make_primary() { # beside its place, then renamed: what is interrupted leaves no half database
  say "making the database"
  rm -rf "$PGDATA"
  initdb --username=postgres --auth=peer --encoding=UTF8 --locale=C --locale-provider=builtin --builtin-locale=C.UTF-8 --data-checksums >/dev/null
  pg_ctl --silent --wait --options="-c listen_addresses= -c unix_socket_directories=/tmp -c log_min_error_statement=panic" start
  # a here-document: passwords are in no process list, and in no log
  ask <<SQL
SET password_encryption = 'scram-sha-256';
CREATE ROLE $OWNER LOGIN CREATEDB CREATEROLE PASSWORD '$OWNER_PASSWORD';
CREATE ROLE $APPLICATION LOGIN PASSWORD '$APPLICATION_PASSWORD';
CREATE ROLE $REPLICATION LOGIN REPLICATION PASSWORD '$REPLICATION_PASSWORD';
GRANT $APPLICATION TO $OWNER WITH ADMIN TRUE, INHERIT FALSE, SET FALSE;
GRANT pg_read_all_stats TO $APPLICATION;
CREATE DATABASE $DATABASE OWNER $OWNER;
SQL
  pg_ctl --silent --wait stop
  mv "$PGDATA" "$DATA"
}

slot() { echo "$NODE" | tr - _; }
primary_says() { PGPASSWORD=$REPLICATION_PASSWORD PGCONNECT_TIMEOUT=5 psql -qAt -h "$PRIMARY" -U "$REPLICATION" -d postgres -c "$1"; }

system_of() { control_of "$1" 'Database system identifier'; }
control_of() { pg_controldata "$1" | sed -n "s/^$2: *//p"; }

check_is_copy() { # or the book would be lost with it, to a primary that was made anew because its disk was not there
  [ -d "$DATA" ] || return 0
  here=$(system_of "$DATA")
  there=$(primary_says "SELECT system_identifier FROM pg_control_system()")
  [ "$here" = "$there" ] && return 0
  say "this server's data is no copy of $PRIMARY, but of another database ($here, not $there): it stays as it is. If $PRIMARY" \
    "is new and empty, its disk is not there: stop everybody and mount it, or, if it is gone for good, see \"A primary's disk is gone\"" \
    "in the README. If what is here is not wanted any more, remove the volume of $NODE."
  exit 1
}

make_standby() {
  say "copying $PRIMARY"
  rm -rf "$PGDATA"
  primary_says "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '$(slot)' AND NOT active" >/dev/null
  PGPASSWORD=$REPLICATION_PASSWORD pg_basebackup --pgdata="$PGDATA" --host="$PRIMARY" --username="$REPLICATION" --no-password \
    --checkpoint=fast --wal-method=stream --create-slot --slot="$(slot)"
  touch "$PGDATA/standby.signal"
  rm -rf "$DATA" # a copy of what the primary has
  mv "$PGDATA" "$DATA"
}

standby() {
  until primary_says "SELECT 1" >/dev/null 2>&1; do say "waiting for $PRIMARY"; sleep 1; done
  if [ -d "$DATA" ] && [ ! -f "$DATA/standby.signal" ]; then
    say "this server was promoted: it may hold writes that $PRIMARY lacks. Look at both before you remove one's volume."
    exit 1
  fi
  check_is_copy
  # without its slot the primary kept nothing for it: it may have missed what it cannot get any more
  kept=$(primary_says "SELECT count(*) FROM pg_replication_slots WHERE slot_name = '$(slot)' AND wal_status <> 'lost'")
  [ -d "$DATA" ] && [ "$kept" = 1 ] || make_standby
  echo "*:*:*:$REPLICATION:$REPLICATION_PASSWORD" > /tmp/pgpass
  set -- -c "primary_slot_name=$(slot)" \
    -c "primary_conninfo=host=$PRIMARY user=$REPLICATION passfile=/tmp/pgpass application_name=$NODE connect_timeout=5"
  serve "$@"
}

end_of() { # of a standby's log, in bytes: all that it has, replayed or not
  from=$(control_of "$1" "Latest checkpoint's REDO location")
  line=$(control_of "$1" "Latest checkpoint's TimeLineID")
  last=$(pg_waldump --path="$1/pg_wal" --timeline="$line" --start="$from" 2>/dev/null | sed -n '$s/.* lsn: \([0-9A-F]*\/[0-9A-F]*\),.*/\1/p')
  [ -n "$last" ] || { say "the log in $1 cannot be read"; exit 1; }
  echo $((0x${last%/*} * 4294967296 + 0x${last#*/}))
}

promote() { # the standbys' volumes are below /from; they are only read, and what is in the primary's stays beside the new one
  furthest=-1
  for name in $STANDBYS; do
    copy=/from/$name/${DATA#/var/lib/postgresql/}
    [ -f "$copy/standby.signal" ] || { say "there is no standby's data in the volume of $name: an answered write may be there alone"; exit 1; }
    answers=0
    pg_isready --quiet --host="$name" || answers=$?
    [ "$answers" = 2 ] || { say "$name runs: stop everybody first"; exit 1; }
    end=$(end_of "$copy")
    say "$name goes to $end"
    [ "$end" -le "$furthest" ] || { furthest=$end; best=$copy; }
  done
  [ "$furthest" -ge 0 ] || { say "this phase has no standbys: restore from a backup"; exit 1; }
  rm -rf "$PGDATA"
  mkdir -p "${PGDATA%/*}"
  cp -a "$best" "$PGDATA"
  rm -f "$PGDATA/postmaster.pid"
  # its copy of the settings may name standbys that nobody can wait for here
  pg_ctl --silent --wait --options="-c listen_addresses= -c unix_socket_directories=/tmp -c max_connections=$MAX_CONNECTIONS \
    -c synchronous_standby_names=" start
  pg_ctl --silent --wait promote
  # what the caches know may be of a past that is gone
  ask --dbname="$DATABASE" -c "UPDATE installation SET epoch = left(md5(random()::text), 8)"
  pg_ctl --silent --wait stop
  if [ -d "$DATA" ]; then
    before=$DATA.before-$(date +%s)
    mv "$DATA" "$before"
    say "what was here is kept as $before"
  fi
  mv "$PGDATA" "$DATA"
  say "$PRIMARY has what ${best#/from/} had: start again"
}

primary() {
  [ -d "$DATA" ] || make_primary
  if [ -f "$DATA/standby.signal" ]; then
    say "$PRIMARY has a standby's data: another server was promoted. This setup knows $PRIMARY only."
    exit 1
  fi
  # what a phase without standbys must not wait for, from its first commit on
  [ -n "$STANDBYS" ] || sed -i '/^synchronous_standby_names/d' "$DATA/postgresql.auto.conf"
  after_start &
  serve
}

put_passwords() { # of the environment: who edits .env and starts it again is let in with what stands there
  ask <<SQL
\getenv owner OWNER_PASSWORD
\getenv application APPLICATION_PASSWORD
\getenv replication REPLICATION_PASSWORD
SET synchronous_commit = local; -- no standby may be there yet, for want of the new password
SET log_min_duration_statement = -1;
SET log_min_error_statement = panic;
BEGIN;
ALTER ROLE $OWNER PASSWORD :'owner';
ALTER ROLE $APPLICATION PASSWORD :'application';
ALTER ROLE $REPLICATION PASSWORD :'replication';
COMMIT;
SQL
}

after_start() { # beside the primary, and gone when it is done
  until pg_isready --quiet --host=/tmp; do sleep 0.5; done
  tries=30 # the migration changes the roles, too, and of two at once PostgreSQL refuses one
  until put_passwords; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || { say "the roles keep the passwords that they had"; break; }
    sleep 1
  done
  if [ -z "$STANDBYS" ]; then # or they would keep the log for nobody, until the disk is full
    until [ "$(ask -c "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'postgres\_%'")" = 0 ]; do
      ask -c "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active AND slot_name LIKE 'postgres\_%'" >/dev/null
      sleep 2
    done
    return
  fi
  until [ "$(ask -c "SELECT count(*) > 0 FROM pg_stat_replication WHERE state = 'streaming' AND application_name LIKE 'postgres-%'")" = t ]; do sleep 1; done
  names=$(echo "$STANDBYS" | sed 's/[^ ][^ ]*/"&"/g; s/ /, /g')
  ask -c "SET synchronous_commit = local" -c "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 ($names)'" -c "SELECT pg_reload_conf()" >/dev/null
  say "commits wait for any one of $names"
}

serve() {
  # a quarter of the memory that there is, be it this container's limit or less
  limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes)
  machine=$(awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
  case $limit in max) limit=$machine ;; *) limit=$((limit / 1048576)) ;; esac
  [ "$limit" -lt "$machine" ] || limit=$machine
  exec postgres -D "$DATA" -c config_file=/piggybank/postgresql.conf -c hba_file=/piggybank/pg_hba.conf \
    -c "cluster_name=$NODE" -c "max_connections=$MAX_CONNECTIONS" -c "shared_buffers=$((limit / 4))MB" \
    -c "effective_cache_size=${limit}MB" -c "maintenance_work_mem=$((limit / 32 > 128 ? 128 : limit / 32 > 16 ? limit / 32 : 16))MB" "$@"
}

case ${1:-} in
  healthy) healthy ;;
  promote) promote ;;
  *) if [ "$NODE" = "$PRIMARY" ]; then primary; else standby; fi ;;
esac
