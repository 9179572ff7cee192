{{/* Labels of every object. */}}
{{- define "kinema.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: kinema
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: kinema
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What a Deployment finds its pods by. Call with (list . "operator"). */}}
{{- define "kinema.selector" -}}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* What every pod of a job carries. */}}
{{- define "kinema.stage-selector" -}}
matchLabels: {app.kubernetes.io/managed-by: kinema}
matchExpressions:
  - {key: kinema.dev/job, operator: Exists}
{{- end }}

{{/* An image with the registry before it. Call with (list . "name:tag"). */}}
{{- define "kinema.image" -}}
{{- $registry := (index . 0).Values.images.registry | trimSuffix "/" -}}
{{- with $registry }}{{ . }}/{{ end }}{{ index . 1 }}
{{- end }}

{{/* The Secret with the server's certificate. */}}
{{- define "kinema.tls" -}}
{{- with .Values.server.tls -}}
{{- if .existingSecret }}{{ .existingSecret }}{{ else if .certManager.enabled }}kinema-server-certificate{{ else }}kinema-server-tls{{ end -}}
{{- end -}}
{{- end }}

{{/* Whether somebody else than the operator makes that Secret: true, or nothing. */}}
{{- define "kinema.tls-brought" -}}
{{- with .Values.server.tls }}{{ if or .existingSecret .certManager.enabled }}true{{ end }}{{ end -}}
{{- end }}

{{/* Who may do what is given by ClusterRoles, so cluster-scoped names carry the release's namespace. */}}
{{- define "kinema.cluster-name" -}}
{{- $name := printf "kinema-%s" (index . 1) -}}
{{- with index . 0 -}}
{{- if eq .Release.Namespace "kinema-system" }}{{ $name }}{{ else }}{{ $name }}-{{ .Release.Namespace }}{{ end -}}
{{- end -}}
{{- end }}

{{/* Whether an object of a kind that not every cluster knows is made: true, or nothing. Call with (list . "auto" "group/version/Kind"). */}}
{{- define "kinema.makes" -}}
{{- $create := index . 1 -}}
{{- if or (eq $create "always") (and (eq $create "auto") ((index . 0).Capabilities.APIVersions.Has (index . 2))) }}true{{ end -}}
{{- end }}
