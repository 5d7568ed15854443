{{- /* pb.ports: of numbers, and of ranges such as 11000-13047, on one line */ -}}
{{- define "pb.ports" -}}
{{- $ports := list -}}
{{- range . -}}
{{- $ends := splitList "-" (toString .) -}}
{{- $port := dict "protocol" "TCP" "port" (first $ends | int) -}}
{{- if gt (len $ends) 1 -}}
{{- $_ := set $port "endPort" (last $ends | int) -}}
{{- end -}}
{{- $ports = append $ports $port -}}
{{- end -}}
{{- toJson $ports -}}
{{- end -}}

{{- /* pb.outsidePorts: where the application goes beside its stores; of a URL that is in a Secret nobody sees the port here */ -}}
{{- define "pb.outsidePorts" -}}
{{- $ports := .networkPolicy.externalPorts -}}
{{- if eq .provider.mode "live" -}}
{{- $ports = append $ports 443 -}}
{{- end -}}
{{- range $setting := .secretSettings -}}
{{- if eq $setting "smtp_url" -}}
{{- $ports = concat $ports (list 25 465 587) -}}
{{- else if regexMatch "_(url|proxy)$" $setting -}}
{{- $ports = append $ports 443 -}}
{{- end -}}
{{- end -}}
{{- range $setting, $value := .settings -}}
{{- if and $value (regexMatch "_(url|proxy)$" $setting) -}}
{{- $url := urlParse (toString $value) -}}
{{- $port := regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host) -}}
{{- $ports = append $ports ($port | default (eq $url.scheme "http" | ternary 80 443) | int) -}}
{{- end -}}
{{- end -}}
{{- $seen := list -}}
{{- range $ports -}}
{{- $seen = append $seen (toString .) -}}
{{- end -}}
{{- uniq $seen | toJson -}}
{{- end -}}
