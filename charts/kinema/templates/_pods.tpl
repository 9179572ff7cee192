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

{{/* What pods of the operator, the server and the test have in common. Call with (list . "operator"). */}}
{{- define "kinema.pod" -}}
serviceAccountName: kinema-{{ index . 1 }}
automountServiceAccountToken: true
enableServiceLinks: false
securityContext: {{- include "kinema.pod-security" . | nindent 2 }}
{{- with (index . 0).Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* And their containers. */}}
{{- define "kinema.container" -}}
image: {{ include "kinema.image" (list . .Values.images.controlPlane) }}
imagePullPolicy: {{ .Values.images.pullPolicy }}
securityContext: {{- include "kinema.container-security" . | nindent 2 }}
{{- end }}

{{/* Labels and annotations of a Deployment's pods; their settings are read once, at the start. Call with (list . "operator"). */}}
{{- define "kinema.pod-metadata" -}}
{{- $values := index (index . 0).Values (index . 1) -}}
labels: {{- include "kinema.labels" (index . 0) | nindent 2 }}
  app.kubernetes.io/component: {{ index . 1 }}
  {{- with $values.podLabels }}{{ toYaml . | nindent 2 }}{{ end }}
annotations:
  checksum/config: {{ include (printf "kinema.%s-settings" (index . 1)) (index . 0) | sha256sum }}
  {{- with $values.podAnnotations }}{{ toYaml . | nindent 2 }}{{ end }}
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
{{- with .topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml . | nindent 2 }}
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
