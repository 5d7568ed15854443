{{- /* What cannot work is refused here, with what to do: a pod that fails later says less. */ -}}
{{- define "pb.check" -}}
{{- $v := include "pb.values" . | fromJson -}}
{{- $set := include "pb.nonNull" .Values | fromJson -}}
{{- $phase := int $v.phase -}}
{{- $presets := .Files.Get "files/phases.json" | fromJson -}}

{{- if not (regexMatch "^[a-z]" (include "pb.name" .)) -}}
{{- fail (printf "names would begin with %q, and a Service's begins with a letter: name the release otherwise, or set fullnameOverride" (include "pb.name" . | trunc 1)) -}}
{{- end -}}
{{- range $part := list "web" "worker" -}}
{{- $own := get $v $part -}}
{{- if and $own.autoscaling.enabled (hasKey (get $set $part) "replicas") -}}
{{- fail (printf "%s.replicas is fixed and %s.autoscaling.enabled is true: they exclude each other; take one of them out" $part $part) -}}
{{- end -}}
{{- if gt (int $own.autoscaling.minReplicas) (int $own.autoscaling.maxReplicas) -}}
{{- fail (printf "%s.autoscaling.minReplicas is %d and maxReplicas %d: the least is more than the most" $part (int $own.autoscaling.minReplicas) (int $own.autoscaling.maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- if $v.worker.keda.enabled -}}
{{- if $v.worker.autoscaling.enabled -}}
{{- fail "worker.keda.enabled and worker.autoscaling.enabled: KEDA makes a HorizontalPodAutoscaler of its own; take one of them out" -}}
{{- end -}}
{{- if hasKey $set.worker "replicas" -}}
{{- fail "worker.replicas is fixed and worker.keda.enabled is true: they exclude each other; take one of them out" -}}
{{- end -}}
{{- if $v.valkey.external -}}
{{- fail "worker.keda.enabled with valkey.external: the queue's address is in a Secret, so KEDA is not told; scale by worker.autoscaling" -}}
{{- end -}}
{{- end -}}

{{- if $v.postgres.external -}}
{{- if not $v.existingSecret -}}
{{- fail (printf "postgres.external is true and existingSecret is empty: name the Secret with database-url and owner-database-url%s" (ge $phase 2 | ternary ", replica-urls and, with a pooler, pooler-url" "")) -}}
{{- end -}}
{{- if $v.postgres.backup.objectStore -}}
{{- fail "postgres.backup.objectStore with postgres.external: whoever runs that PostgreSQL makes its backups; take it out" -}}
{{- end -}}
{{- if $v.postgres.recovery -}}
{{- fail "postgres.recovery with postgres.external: whoever runs that PostgreSQL restores it; then, before this chart starts anything on it: piggybank restore begin" -}}
{{- end -}}
{{- else -}}
{{- with $v.postgres.recovery -}}
{{- $pg := include "pb.postgres" $ -}}
{{- $since := include "pb.restoredSince" . -}}
{{- if not $since -}}
{{- fail "postgres.recovery without targetTime and startedAt: for the newest that the backup has set startedAt to the time now, which tells this restore from one before it" -}}
{{- end -}}
{{- if and .targetTime .startedAt -}}
{{- fail "postgres.recovery has targetTime and startedAt: with a moment to restore nothing else is needed; take startedAt out" -}}
{{- end -}}
{{- if and (eq .objectStore $v.postgres.backup.objectStore) (eq (.serverName | default $pg) ($v.postgres.backup.serverName | default $pg)) -}}
{{- fail (printf "postgres.recovery restores from %s in %s, where the new Cluster would archive, too, and CloudNativePG refuses that: set postgres.backup.serverName to a name that was not used yet, and leave it so" (.serverName | default $pg) .objectStore) -}}
{{- end -}}
{{- $there := include "pb.cluster" $ | fromJson -}}
{{- if and $there (ne (dig "metadata" "annotations" "piggybank/restored-since" "" $there) $since) -}}
{{- fail (printf "postgres.recovery makes a new Cluster, and %s is there: it would not be restored, only closed to writes. Restore under another release name, or delete it first if its backup is good" $pg) -}}
{{- end -}}
{{- if not $there -}}
{{- range $part := list "web" "worker" -}}
{{- if lookup "apps/v1" "Deployment" $.Release.Namespace (printf "%s-%s" (include "pb.name" $) $part) -}}
{{- fail (printf "postgres.recovery while the old %s still runs: it would write into what is restored before that is in recovery. Delete the Deployment %s-%s first" $part (include "pb.name" $) $part) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (ge $phase 2) (lt (int $v.postgres.instances) 2) -}}
{{- fail (printf "phase %d without standbys: postgres.instances is %d; reads go to standbys and a commit waits for one, so it is 3, or 2 at least" $phase (int $v.postgres.instances)) -}}
{{- end -}}
{{- if and $v.postgres.synchronous (lt (int $v.postgres.instances) 2) -}}
{{- fail "postgres.synchronous is true and postgres.instances is 1: no commit would ever end; set postgres.instances to 2 or more" -}}
{{- end -}}
{{- if and (ge $phase 2) (not $v.postgres.synchronous) (eq $v.durability "synchronous") -}}
{{- fail (printf "phase %d with postgres.synchronous false: every write would answer 503, since no standby confirms it; set durability to local if answered writes may be lost" $phase) -}}
{{- end -}}
{{- end -}}
{{- if not $v.postgres.external -}}
{{- range $name, $value := $v.postgres.parameters -}}
{{- $name = lower $name -}}
{{- $taken := get (dict "fsync" (list "on") "full_page_writes" (list "on") "synchronous_commit" (list "on" "remote_apply")) $name -}}
{{- $said := regexReplaceAll "^(true|yes|1)$" (toString $value | lower) "on" -}}
{{- if and $taken (not (has $said $taken)) -}}
{{- fail (printf "postgres.parameters.%s is %v: writes that were answered would be lost, so it is %s; take it out" $name $value (join " or " $taken)) -}}
{{- end -}}
{{- if eq $name "max_connections" -}}
{{- fail (printf "postgres.parameters.max_connections is %v: set postgres.maxConnections, which is compared with what all processes may open" $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $v.valkey.external (not $v.existingSecret) -}}
{{- fail "valkey.external is true and existingSecret is empty: name the Secret with cache-url and queue-url" -}}
{{- end -}}
{{- if and (gt (int $v.valkey.cache.masters) 1) (lt (int $v.valkey.cache.masters) 3) -}}
{{- fail (printf "valkey.cache.masters is %d: a cluster has 3 masters or more, and 1 is no cluster" (int $v.valkey.cache.masters)) -}}
{{- end -}}
{{- if and (eq (int $v.valkey.cache.masters) 1) (gt (int $v.valkey.cache.replicas) 0) -}}
{{- fail "valkey.cache.replicas without a cluster: nobody would make one of them take over; set masters to 3, or replicas to 0" -}}
{{- end -}}

{{- if and $v.ingress.enabled (not $v.ingress.host) -}}
{{- fail "ingress.enabled without ingress.host: name the host" -}}
{{- end -}}
{{- if and $v.gateway.enabled (or (not $v.gateway.host) (not $v.gateway.parentRefs)) -}}
{{- fail "gateway.enabled needs gateway.host, and gateway.parentRefs with the Gateway's name" -}}
{{- end -}}
{{- if and (eq $v.provider.mode "live") (not (include "pb.publicUrl" (list . $v))) -}}
{{- fail "provider.mode is live and nobody knows the public URL: Revio's events come there; set publicUrl, or ingress.host" -}}
{{- end -}}
{{- if and $v.metrics.prometheusRule (not (.Files.Get "files/rules.yml")) -}}
{{- fail "metrics.prometheusRule: this chart carries no rules" -}}
{{- end -}}
{{- range concat $v.postgres.externalPorts $v.valkey.externalPorts $v.networkPolicy.externalPorts -}}
{{- $ends := toString . | splitList "-" -}}
{{- if gt (first $ends | int) (last $ends | int) -}}
{{- fail (printf "externalPorts has %v: a range goes from its lowest port to its highest" .) -}}
{{- end -}}
{{- end -}}
{{- if not $v.trustedProxies -}}
{{- fail "trustedProxies is empty: the pods speak plain HTTP behind a proxy; name its network" -}}
{{- end -}}

{{- /* as piggybank/capacity/connections.py counts them, a rollout's new processes included */ -}}
{{- $web := include "pb.most" $v.web | int -}}
{{- $worker := $v.worker.keda.enabled | ternary $v.worker.autoscaling.maxReplicas (include "pb.most" $v.worker) | int -}}
{{- $surge := int $presets.surgePercent -}}
{{- $count := 0 -}}
{{- range $part := list $web $worker -}}
{{- $count = add $count $part (div (add (mul $surge $part) 99) 100) -}}
{{- end -}}
{{- $pool := int $v.poolConnections -}}
{{- $own := ge $phase 2 | ternary 2 1 -}}
{{- $free := $v.postgres.pooler.enabled | ternary (int $v.postgres.pooler.clients) (sub (int $v.postgres.maxConnections) 10) -}}
{{- if gt (mul $count (add $pool $own)) $free -}}
{{- fail (printf "%d processes (%d web, %d worker, and a rollout's %d%% more) may open %d connections and %s takes %d: lower poolConnections, run fewer, or raise %s" $count $web $worker $surge (mul $count (add $pool $own)) ($v.postgres.pooler.enabled | ternary "the pooler" "PostgreSQL") $free ($v.postgres.pooler.enabled | ternary "postgres.pooler.clients" "postgres.maxConnections")) -}}
{{- end -}}
{{- if and $v.postgres.pooler.enabled (gt (int $v.postgres.pooler.connections) (sub (int $v.postgres.maxConnections) 10)) -}}
{{- fail (printf "the pooler opens %d connections and PostgreSQL takes %d, 10 of them reserved: raise postgres.maxConnections" (int $v.postgres.pooler.connections) (int $v.postgres.maxConnections)) -}}
{{- end -}}
{{- $each := 3 -}}{{- /* db/replicas.py: CONNECTIONS, whatever the pool */ -}}
{{- if and (ge $phase 2) (gt (mul $count $each) (sub (int $v.postgres.maxConnections) 10)) -}}
{{- fail (printf "%d processes may open %d connections to each standby, and it takes %d, 10 of them reserved: run fewer, or raise postgres.maxConnections" $count (mul $count $each) (int $v.postgres.maxConnections)) -}}
{{- end -}}
{{- end -}}
