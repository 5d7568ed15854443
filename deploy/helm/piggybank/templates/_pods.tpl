{{- /* pb.pod (dict "root" $ "v" values "part" "web"): what every pod of the application has in common */ -}}
{{- define "pb.pod" -}}
serviceAccountName: {{ include "pb.name" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .v.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext: {{- include "pb.podSecurity" . | nindent 2 }}
volumes:
  - {name: data, emptyDir: {}}
  - {name: tmp, emptyDir: {}}
{{- with .v.trustedCA.configMap }}
  - {name: trusted-ca, configMap: {name: {{ . }}}}
{{- end }}
{{- end -}}

{{- /* the pods of the images' own users: piggybank, valkey (999) and simulator alike */ -}}
{{- define "pb.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "pb.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- /* pb.container: image, security, mounts of a container of the application; its name, args and env are the caller's */ -}}
{{- define "pb.container" -}}
image: {{ include "pb.image" .root | quote }}
imagePullPolicy: {{ .v.image.pullPolicy }}
securityContext: {{- include "pb.containerSecurity" . | nindent 2 }}
volumeMounts:
  - {name: data, mountPath: /var/lib/piggybank}
  - {name: tmp, mountPath: /tmp}
{{- if .v.trustedCA.configMap }}
  - {name: trusted-ca, mountPath: /etc/piggybank/ca, readOnly: true}
{{- end }}
{{- end -}}

{{- /* pods wait here for the schema; the migration makes it. What was restored has one: there they wait until it is in recovery. */ -}}
{{- define "pb.waitForSchema" -}}
- name: wait-for-schema
  command: [piggybank]
  args: [migrate, --wait, --within, "{{ int .v.migrationTimeoutSeconds }}"{{ with .v.postgres.recovery }}, --restored-since, {{ include "pb.restoredSince" . | quote }}{{ end }}]
  {{- include "pb.container" . | nindent 2 }}
  env: {{- include "pb.env" . | nindent 4 }}
  resources:
    requests: {cpu: 50m, memory: 128Mi}
    limits: {memory: 256Mi}
{{- end -}}

{{- /* pb.spread (list $ "web"): over zones and machines, as well as it goes */ -}}
{{- define "pb.spread" -}}
{{- $root := index . 0 -}}
{{- $part := index . 1 -}}
{{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- maxSkew: 1
  topologyKey: {{ $key }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels: {{- include "pb.selector" (list $root $part) | nindent 6 }}
  matchLabelKeys: [pod-template-hash]
{{- end }}
{{- end -}}

{{- define "pb.scaler" -}}
{{- $root := .root -}}
{{- $v := .v -}}
{{- $part := .part -}}
{{- $own := get $v $part -}}
{{- $aims := (.root.Files.Get "files/phases.json" | fromJson).autoscaling -}}
{{- if $own.autoscaling.enabled }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {{- include "pb.metadata" (list $root $part $part) | nindent 2 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ include "pb.name" $root }}-{{ $part }}}
  minReplicas: {{ int $own.autoscaling.minReplicas }}
  maxReplicas: {{ int $own.autoscaling.maxReplicas }}
  metrics:
    - type: Resource
      resource: {name: cpu, target: {type: Utilization, averageUtilization: {{ int $aims.cpuPercent }}}}
    - type: Resource
      resource: {name: memory, target: {type: Utilization, averageUtilization: {{ int $aims.memoryPercent }}}}
  behavior:
    scaleUp:
      stabilizationWindowSeconds: 0
      policies: [{type: Percent, value: 100, periodSeconds: 30}]
    scaleDown:
      stabilizationWindowSeconds: 300
      policies: [{type: Pods, value: 1, periodSeconds: 60}]
{{- end }}
{{- if and $v.podDisruptionBudget (gt (include "pb.most" $own | int) 1) }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{- include "pb.metadata" (list $root $part $part) | nindent 2 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow # those that do not run anyway keep no machine from being drained
  selector:
    matchLabels: {{- include "pb.selector" (list $root $part) | nindent 6 }}
{{- end }}
{{- end -}}

{{- /* pb.restoredSince (postgres.recovery): what tells this restore from those before it (piggybank/db/recovery.py: begun_since) */ -}}
{{- define "pb.restoredSince" -}}{{ .targetTime | default (.startedAt | default "") }}{{- end -}}
