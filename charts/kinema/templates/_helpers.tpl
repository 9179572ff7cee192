{{/* Labels of every object. */}}
{{- define "kinema.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: kinema
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: kinema
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* What a Deployment finds its pods by. Call with (list . "operator"). */}}
{{- define "kinema.selector" -}}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* An image with the registry before it. Call with (list . "name:tag"). */}}
{{- define "kinema.image" -}}
{{- $registry := (index . 0).Values.images.registry | trimSuffix "/" -}}
{{- with $registry }}{{ . }}/{{ end }}{{ index . 1 }}
{{- end }}

{{/* The Secret with the server's certificate. */}}
{{- define "kinema.tls" -}}
{{- .Values.server.tls.existingSecret | default "kinema-server-tls" }}
{{- end }}

{{/* Who may do what is given by ClusterRoles, so cluster-scoped names carry the release's namespace. */}}
{{- define "kinema.cluster-name" -}}
{{- $name := printf "kinema-%s" (index . 1) -}}
{{- with index . 0 -}}
{{- if eq .Release.Namespace "kinema-system" }}{{ $name }}{{ else }}{{ $name }}-{{ .Release.Namespace }}{{ end -}}
{{- end -}}
{{- end }}

{{/* Pod security: the restricted standard, and a read-only root. */}}
{{- define "kinema.pod-security" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "kinema.container-security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Where pods may run. Call with (list . "operator"). */}}
{{- define "kinema.placement" -}}
{{- $component := index . 1 -}}
{{- with index (index . 0).Values $component }}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
affinity:
{{- with .affinity }}
{{- toYaml . | nindent 2 }}
{{- else }}
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels: {{- include "kinema.selector" (list (index $ 0) $component) | nindent 14 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}
{{- end }}
