{{- define "pb.name" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "pb.secret" -}}{{ .Values.existingSecret | default (printf "%s-secrets" (include "pb.name" .)) }}{{- end -}}
{{- define "pb.application" -}}{{ .Values.postgres.applicationSecret | default (printf "%s-application" (include "pb.name" .)) }}{{- end -}}
{{- define "pb.postgres" -}}{{ include "pb.name" . }}-postgres{{- end -}}
{{- define "pb.image" -}}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{- end -}}

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
app.kubernetes.io/version: {{ $root.Values.image.tag | default $root.Chart.AppVersion | quote }}
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
