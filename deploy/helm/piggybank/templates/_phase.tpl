{{- /*
pb.values: the values as they count, as JSON: the phase's preset, and over it whatever the user set. A null, or a key that is not there,
is the phase's. A number in `replicas` turns the phase's autoscaling off, since the two exclude each other.
*/ -}}
{{- define "pb.values" -}}
{{- $preset := get (.Files.Get "files/phases.json" | fromJson) (.Values.phase | int | toString) -}}
{{- if not $preset -}}
{{- fail (printf "phase %v is not built: phases 0 to 3 are; `piggybank phase plan %v` shows and costs it" .Values.phase .Values.phase) -}}
{{- end -}}
{{- $set := include "pb.nonNull" .Values | fromJson -}}
{{- $values := mustMergeOverwrite (deepCopy .Values) (deepCopy $preset) $set -}}
{{- range $part := list "web" "worker" -}}
{{- $own := get $set $part | default dict -}}
{{- $scaled := get $own "autoscaling" | default dict -}}
{{- if or (hasKey $own "replicas") (dig "keda" "enabled" false $own) -}}
{{- if not (get $scaled "enabled") -}}
{{- $_ := set (get (get $values $part) "autoscaling") "enabled" false -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $values -}}
{{- end -}}

{{- define "pb.nonNull" -}}
{{- $kept := dict -}}
{{- range $key, $value := . -}}
{{- if kindIs "map" $value -}}
{{- $_ := set $kept $key (include "pb.nonNull" $value | fromJson) -}}
{{- else if not (kindIs "invalid" $value) -}}
{{- $_ := set $kept $key $value -}}
{{- end -}}
{{- end -}}
{{- toJson $kept -}}
{{- end -}}

{{- /*
pb.replicas (dict "root" $ "v" values "part" "web"): none where somebody scales the part, so that nobody takes away what was scaled up. But
Helm resets to 1 what one release names and the next does not; so a Deployment that is there keeps the number that it has.
*/ -}}
{{- define "pb.replicas" -}}
{{- $own := get .v .part -}}
{{- if or $own.autoscaling.enabled (dig "keda" "enabled" false $own) -}}
{{- with lookup "apps/v1" "Deployment" .root.Release.Namespace (printf "%s-%s" (include "pb.name" .root) .part) -}}
replicas: {{ int .spec.replicas }}
{{- end -}}
{{- else -}}
replicas: {{ int $own.replicas }}
{{- end -}}
{{- end -}}

{{- /*
pb.cluster: the Cluster that is there, as JSON. A first install where the operator is missing is left to Helm, which says so; after
`helm uninstall` one may be there, too.
*/ -}}
{{- define "pb.cluster" -}}
{{- $there := dict -}}
{{- if or .Release.IsUpgrade (.Capabilities.APIVersions.Has "postgresql.cnpg.io/v1/Cluster") -}}
{{- $there = lookup "postgresql.cnpg.io/v1" "Cluster" .Release.Namespace (include "pb.postgres" .) -}}
{{- end -}}
{{- toJson $there -}}
{{- end -}}

{{- /*
pb.instances (list $ values): the numbers of PostgreSQL's servers. They are 1, 2, 3 at first; one that was replaced may have another, which
the operator's status says.
*/ -}}
{{- define "pb.instances" -}}
{{- $root := index . 0 -}}
{{- $wanted := int (index . 1).postgres.instances -}}
{{- $pg := include "pb.postgres" $root -}}
{{- $numbers := list -}}
{{- range include "pb.cluster" $root | fromJson | dig "status" "instanceNames" list -}}
{{- $numbers = append $numbers (trimPrefix (printf "%s-" $pg) .) -}}
{{- end -}}
{{- if lt (len $numbers) $wanted -}}
{{- range untilStep 1 (add1 $wanted | int) 1 -}}
{{- $numbers = append $numbers (toString .) -}}
{{- end -}}
{{- end -}}
{{- uniq $numbers | sortAlpha | toJson -}}
{{- end -}}

{{- /* pb.storageGiB (list $ values): a disk does not shrink, so one that is there and larger stays as it is */ -}}
{{- define "pb.storageGiB" -}}
{{- $root := index . 0 -}}
{{- $wanted := int (index . 1).postgres.storageGiB -}}
{{- $there := 0 -}}
{{- with include "pb.cluster" $root | fromJson -}}
{{- $size := .spec.storage.size -}}
{{- $there = mul (trimSuffix "Gi" (trimSuffix "Ti" $size) | int) (hasSuffix "Ti" $size | ternary 1024 1) -}}
{{- end -}}
{{ max $wanted $there }}
{{- end -}}
