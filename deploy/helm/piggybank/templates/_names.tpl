{{- /*
pb.name: what every name begins with. A StatefulSet's may have 52 characters (its pods' revision label has 11 more, and a label ends at 63),
and the longest that is added to it is -cache-cluster; CloudNativePG takes 50 for a Cluster.
*/ -}}
{{- define "pb.name" -}}
{{- $chart := default .Chart.Name .Values.nameOverride -}}
{{- $name := contains $chart .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $chart) -}}
{{ .Values.fullnameOverride | default $name | replace "." "-" | trunc 38 | trimSuffix "-" }}
{{- end -}}

{{- define "pb.secret" -}}{{ .Values.existingSecret | default (printf "%s-secrets" (include "pb.name" .)) }}{{- end -}}
{{- define "pb.application" -}}{{ .Values.postgres.applicationSecret | default (printf "%s-application" (include "pb.name" .)) }}{{- end -}}
{{- define "pb.postgres" -}}{{ include "pb.name" . }}-postgres{{- end -}}
{{- /* pb.poolers (list $ values): the names of the Poolers, which the operator puts on their pods as cnpg.io/poolerName */ -}}
{{- define "pb.poolers" -}}
{{- $v := index . 1 -}}
{{- $names := list -}}
{{- if and $v.postgres.pooler.enabled (not $v.postgres.external) -}}
{{- range $type := $v.postgres.pooler.readOnly | ternary (list "rw" "ro") (list "rw") -}}
{{- $names = append $names (printf "%s-pooler-%s" (include "pb.postgres" (index $ 0)) $type) -}}
{{- end -}}
{{- end -}}
{{- toJson $names -}}
{{- end -}}
{{- define "pb.version" -}}{{ .Values.image.tag | default .Chart.AppVersion }}{{- end -}}
{{- define "pb.image" -}}{{ .Values.image.repository }}:{{ include "pb.version" . }}{{ with .Values.image.digest }}@{{ . }}{{ end }}{{- end -}}

{{- /* pb.selector (list $ "web"): what finds the pods of a part */ -}}
{{- define "pb.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
{{- with index . 1 }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{- define "pb.labels" -}}
{{- $root := index . 0 -}}
{{ include "pb.selector" . }}
app.kubernetes.io/version: {{ include "pb.version" $root | trunc 63 | trimAll "-_." | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ $root.Chart.Name }}-{{ $root.Chart.Version }}
{{- end -}}

{{- /* pb.metadata (list $ "web" "suffix") */ -}}
{{- define "pb.metadata" -}}
{{- $root := index . 0 -}}
name: {{ include "pb.name" $root }}{{ with index . 2 }}-{{ . }}{{ end }}
namespace: {{ $root.Release.Namespace }}
labels: {{- include "pb.labels" (list $root (index . 1)) | nindent 2 }}
{{- end -}}

{{- /* pb.pods (list $ "web"): the same as a peer or a selector in one line */ -}}
{{- define "pb.pods" -}}{{ dict "matchLabels" (include "pb.selector" . | fromYaml) | toJson }}{{- end -}}
