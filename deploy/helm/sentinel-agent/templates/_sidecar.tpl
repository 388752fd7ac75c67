{{/*
What a chart includes that has this one as its dependency (`.Subcharts` makes its values):

    template:
      metadata:
        annotations: {{- include "sentinel-agent.annotations" (index .Subcharts "sentinel-agent") | nindent 10 }}
      spec:
        shareProcessNamespace: true
        initContainers: {{- include "sentinel-agent.initContainers" (index .Subcharts "sentinel-agent") | nindent 10 }}
        containers:
          - name: gateway
            ...
          {{- include "sentinel-agent.containers" (index .Subcharts "sentinel-agent") | nindent 10 }}
        volumes: {{- include "sentinel-agent.volumes" (index .Subcharts "sentinel-agent") | nindent 10 }}

With `daemonSet.enabled: false` the dependency brings its ConfigMap and nothing else.
*/}}

{{- define "sentinel-agent.annotations" -}}
{{- if .Values.prometheusAnnotations -}}
prometheus.io/scrape: "true"
prometheus.io/port: "9477"
prometheus.io/path: /metrics
{{- end }}
{{- end }}

{{- define "sentinel-agent.initContainers" -}}
{{- if .Values.sidecar.native }}
- {{- include "sentinel-agent.sidecar" . | nindent 2 }}
  restartPolicy: Always
{{- else -}}
[]
{{- end }}
{{- end }}

{{- define "sentinel-agent.containers" -}}
{{- if not .Values.sidecar.native }}
- {{- include "sentinel-agent.sidecar" . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "sentinel-agent.sidecar" -}}
{{ include "sentinel-agent.container" . }}
resources: {{- toYaml .Values.resources | nindent 2 }}
env:
  {{- include "sentinel-agent.environment" . | nindent 2 }}
  - name: SENTINEL_TARGET_INSTANCE
    valueFrom: {fieldRef: {fieldPath: metadata.name}}
  - name: SENTINEL_TARGET_SERVICE
    valueFrom: {fieldRef: {fieldPath: {{ .Values.sidecar.service | quote }}}}
securityContext:
  runAsUser: {{ .Values.sidecar.runAsUser }}
  {{- include "sentinel-agent.rights" . | nindent 2 }}
{{- end }}

{{- define "sentinel-agent.volumes" -}}
{{- include "sentinel-agent.volumesOf" (dict "root" . "data" .Values.data) }}
{{- end }}
