{{/* What the agent's container is wherever it runs: all but its resources, variables and user. */}}
{{- define "sentinel-agent.container" -}}
name: sentinel-agent
image: {{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [sidecar, --listen, "0.0.0.0:9477"]
ports:
  - {name: sentinel, containerPort: 9477}
livenessProbe: # fails for an agent that hangs, not for one that waits for its configuration to be mended
  exec: {command: [healthcheck]}
  periodSeconds: 30
  timeoutSeconds: 10
  failureThreshold: 5
volumeMounts:
  - {name: sentinel-data, mountPath: /var/lib/sentinel-agent}
  - {name: sentinel-config, mountPath: /etc/sentinel-agent, readOnly: true}
  - {name: sentinel-tmp, mountPath: /tmp}
{{- end }}

{{- define "sentinel-agent.environment" -}}
- {name: SENTINEL_CONFIG, value: /etc/sentinel-agent/sentinel.yaml}
- name: SENTINEL_API_READ_TOKENS
  valueFrom: {secretKeyRef: {name: {{ .Values.token.secret }}, key: {{ .Values.token.key }}, optional: true}}
{{- end }}

{{- define "sentinel-agent.rights" -}}
runAsNonRoot: true
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL], add: [SYS_PTRACE]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "sentinel-agent.volumesOf" -}}
- name: sentinel-data
  {{- with (.data.claim | default "") }}
  persistentVolumeClaim: {claimName: {{ . }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ .data.sizeLimit }}}
  {{- end }}
- name: sentinel-tmp
  emptyDir: {sizeLimit: 64Mi}
- name: sentinel-config
  configMap: {name: {{ include "sentinel-agent.name" .root }}, optional: true}
{{- end }}

{{- define "sentinel-agent.name" -}}
{{- if contains "sentinel-agent" .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}{{ printf "%s-sentinel-agent" (.Release.Name | trunc 48 | trimSuffix "-") }}
{{- end }}
{{- end }}

{{- define "sentinel-agent.labels" -}}
app.kubernetes.io/name: sentinel-agent
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
