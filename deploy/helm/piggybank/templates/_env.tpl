{{- /*
pb.env (dict "root" $ "v" <values> "part" "web"): every setting of the application, the same in all of its pods but
for where it listens and who signs in as the owner. Passwords come from Secrets and are put into addresses by Kubernetes, so a password is to be letters and digits.
*/ -}}
{{- define "pb.env" -}}
{{- $root := .root -}}
{{- $v := .v -}}
{{- $secret := include "pb.secret" $root -}}
{{- $name := include "pb.name" $root -}}
{{- $pg := include "pb.postgres" $root -}}
{{- $phase := int $v.phase -}}
{{- $owns := has .part (list "migrate" "worker") }}{{/* who migrates, and who makes the next months: never who is reached from outside */ -}}
{{- if not $v.postgres.external }}
- {name: APPLICATION_USER, valueFrom: {secretKeyRef: {name: {{ include "pb.application" $root }}, key: username}}}
- {name: APPLICATION_PASSWORD, valueFrom: {secretKeyRef: {name: {{ include "pb.application" $root }}, key: password}}}
{{- end }}
{{- if not $v.valkey.external }}
- {name: VALKEY_PASSWORD, valueFrom: {secretKeyRef: {name: {{ $secret }}, key: valkey-password}}}
{{- end }}
- {name: PIGGYBANK_DATA_DIR, value: /var/lib/piggybank}
- {name: HOME, value: /var/lib/piggybank}
- {name: HELM_RELEASE, value: {{ $root.Release.Name }}}
- {name: HELM_NAMESPACE, value: {{ $root.Release.Namespace }}}
- {name: PIGGYBANK_PHASE, value: {{ $phase | quote }}}
{{- /* the web pods listen; everybody else is told where the API is reached, which the simulator's events come to */}}
- {name: PIGGYBANK_LISTEN, value: {{ eq .part "web" | ternary "0.0.0.0" (printf "%s-web" $name) }}}
- {name: PIGGYBANK_PORT, value: {{ eq .part "web" | ternary 8080 (int $v.web.service.port) | quote }}}
{{- if and (eq .part "worker") $v.metrics.serviceMonitor }}
- {name: PIGGYBANK_WORKER_METRICS_LISTEN, value: "0.0.0.0"}
- {name: PIGGYBANK_WORKER_METRICS_PORT, value: {{ include "pb.workerMetricsPort" $root | quote }}}
{{- end }}
- {name: PIGGYBANK_TRUSTED_PROXIES, value: {{ join "," $v.trustedProxies | quote }}}
- {name: PIGGYBANK_PUBLIC_URL, value: {{ include "pb.publicUrl" (list $root $v) | default "http://localhost:8080" | quote }}} # else as NOTES forward it
- {name: PIGGYBANK_WEB_PROCESSES, value: {{ include "pb.least" $v.web | quote }}}
- {name: PIGGYBANK_WORKER_PROCESSES, value: {{ include "pb.least" $v.worker | quote }}}
- {name: PIGGYBANK_POOL_CONNECTIONS, value: {{ $v.poolConnections | int | quote }}}
- {name: PIGGYBANK_DURABILITY, value: {{ $v.durability }}}
{{- if $v.postgres.external }}
- {name: PIGGYBANK_DATABASE_URL, valueFrom: {secretKeyRef: {name: {{ $secret }}, key: database-url}}}
{{- if $owns }}
- {name: PIGGYBANK_OWNER_DATABASE_URL, valueFrom: {secretKeyRef: {name: {{ $secret }}, key: owner-database-url}}}
{{- end }}
{{- if ge $phase 2 }}
- {name: PIGGYBANK_REPLICA_URLS, valueFrom: {secretKeyRef: {name: {{ $secret }}, key: replica-urls}}}
{{- end }}
{{- if $v.postgres.pooler.enabled }}
- {name: PIGGYBANK_POOLER_URL, valueFrom: {secretKeyRef: {name: {{ $secret }}, key: pooler-url}}}
{{- else if ge $phase 2 }}
- {name: PIGGYBANK_POOLER, value: none}
{{- end }}
{{- else }}
{{- $at := "postgresql://$(APPLICATION_USER):$(APPLICATION_PASSWORD)@" }}
- {name: PIGGYBANK_DATABASE_URL, value: "{{ $at }}{{ $pg }}-rw:5432/piggybank"}
{{- if $owns }}
- {name: PIGGYBANK_OWNER_DATABASE_URL, valueFrom: {secretKeyRef: {name: {{ $pg }}-app, key: uri}}}
{{- end }}
{{- if ge $phase 2 }}
{{- $replicas := list }}
{{- range $number := include "pb.instances" (list $root $v) | fromJsonArray }}
{{- $replicas = append $replicas (printf "%s%s-instance-%s:5432/piggybank" $at $pg $number) }}
{{- end }}
- {name: PIGGYBANK_REPLICA_URLS, value: {{ join "," $replicas | quote }}}
{{- end }}
{{- if $v.postgres.pooler.enabled }}
- {name: PIGGYBANK_POOLER_URL, value: "{{ $at }}{{ $pg }}-pooler-rw:5432/piggybank"}
{{- else if ge $phase 2 }}
- {name: PIGGYBANK_POOLER, value: none}
{{- end }}
{{- end }}
{{- if $v.valkey.external }}
- {name: PIGGYBANK_CACHE_URL, valueFrom: {secretKeyRef: {name: {{ $secret }}, key: cache-url}}}
- {name: PIGGYBANK_QUEUE_URL, valueFrom: {secretKeyRef: {name: {{ $secret }}, key: queue-url}}}
{{- else }}
{{- $nodes := list }}
{{- if gt (int $v.valkey.cache.masters) 1 }}
{{- range $number := until (include "pb.cacheNodes" $v | int) }}
{{- $nodes = append $nodes (printf "%s-cache-cluster-%d.%s-cache-cluster:6379" $name $number $name) }}
{{- end }}
- {name: PIGGYBANK_CACHE_URL, value: "redis+cluster://:$(VALKEY_PASSWORD)@{{ join "," $nodes }}"}
{{- else }}
- {name: PIGGYBANK_CACHE_URL, value: "redis://:$(VALKEY_PASSWORD)@{{ $name }}-cache:6379/0"}
{{- end }}
- {name: PIGGYBANK_QUEUE_URL, value: "redis://:$(VALKEY_PASSWORD)@{{ $name }}-queue:6379/0"}
{{- end }}
- {name: PIGGYBANK_PROVIDER_MODE, value: {{ $v.provider.mode }}}
{{- if eq $v.provider.mode "simulator" }}
- {name: PIGGYBANK_SIMULATOR_LISTEN, value: {{ eq .part "simulator" | ternary "0.0.0.0" (printf "%s-simulator" $name) }}}
- {name: PIGGYBANK_SIMULATOR_PORT, value: "8081"}
- {name: PIGGYBANK_SIMULATOR_URL, value: {{ $v.provider.simulatorUrl | quote }}}
{{- end }}
{{- range $setting := include "pb.secretSettings" $v | fromJsonArray }}
- {name: PIGGYBANK_{{ upper $setting }}, valueFrom: {secretKeyRef: {name: {{ $secret }}, key: {{ kebabcase $setting }}}}}
{{- end }}
{{- range $setting, $value := $v.settings }}
- {name: PIGGYBANK_{{ upper $setting }}, value: {{ kindIs "slice" $value | ternary (join "," $value) $value | toString | quote }}}
{{- end }}
{{- end -}}

{{- /* secret settings: those that the provider's mode needs, and the user's */ -}}
{{- define "pb.secretSettings" -}}
{{- $needed := eq .provider.mode "live" | ternary (list "revio_key" "revio_brand_id") (list "simulator_key") -}}
{{- concat $needed .secretSettings | uniq | toJson -}}
{{- end -}}

{{- define "pb.workerMetricsPort" -}}8082{{- end -}}
{{- define "pb.least" -}}{{ .autoscaling.enabled | ternary .autoscaling.minReplicas .replicas | int }}{{- end -}}
{{- define "pb.most" -}}{{ .autoscaling.enabled | ternary .autoscaling.maxReplicas .replicas | int }}{{- end -}}
{{- define "pb.cacheNodes" -}}{{ add (int .valkey.cache.masters) (int .valkey.cache.replicas) }}{{- end -}}

{{- define "pb.publicUrl" -}}
{{- $v := index . 1 -}}
{{- if $v.publicUrl -}}
{{ $v.publicUrl }}
{{- else if and $v.ingress.enabled $v.ingress.host -}}
{{ empty $v.ingress.tlsSecret | ternary "http" "https" }}://{{ $v.ingress.host }}
{{- else if and $v.gateway.enabled $v.gateway.host -}}
https://{{ $v.gateway.host }}
{{- end -}}
{{- end -}}
