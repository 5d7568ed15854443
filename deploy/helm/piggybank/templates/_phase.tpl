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
