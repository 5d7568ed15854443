#!/bin/sh
# One Valkey of compose.yaml: `cache` forgets the least used and keeps nothing, `queue` keeps every job, `node` is one of the cache's
# cluster. `valkey.sh healthy` asks the running one. Its configuration is written to memory: no password is in a process list.
set -eu
umask 077
if [ "${1:-}" = healthy ]; then
  [ "$(REDISCLI_AUTH=$PASSWORD valkey-cli ping)" = PONG ]
  exit
fi
{
  echo "bind * -::*
port 6379
requirepass $PASSWORD
dir /data
save \"\"
daemonize no
maxmemory ${MEMORY_MIB}mb"
  case $1 in
    queue) echo "maxmemory-policy noeviction
appendonly yes
appendfsync everysec
aof-load-truncated yes" ;;
    cache) echo "maxmemory-policy allkeys-lru
appendonly no" ;;
    # a node is known by its name, which stays, and says at each start which address it has now; the rest as in appliance/cache_cluster.py
    node) echo "maxmemory-policy allkeys-lru
appendonly no
masterauth $PASSWORD
cluster-enabled yes
cluster-config-file nodes.conf
cluster-announce-ip $(hostname -i | cut -d ' ' -f 1)
cluster-announce-hostname $(hostname)
cluster-preferred-endpoint-type hostname
cluster-node-timeout 1500
cluster-require-full-coverage no
cluster-allow-replica-migration no
cluster-replica-validity-factor 0
repl-diskless-sync-delay 0" ;;
  esac
} > /tmp/valkey.conf
exec valkey-server /tmp/valkey.conf
