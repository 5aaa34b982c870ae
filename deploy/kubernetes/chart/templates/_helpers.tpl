{{- define "fewbit.selector" -}}
app.kubernetes.io/name: fewbit
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* Name, namespace and labels: the metadata of every object. */ -}}
{{- define "fewbit.metadata" -}}
name: {{ .Release.Name }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "fewbit.selector" . | nindent 2 }}
{{- end }}

{{- define "fewbit.image" -}}
{{- $kind := ternary "cuda" "cpu" (gt (int .Values.gpu.count) 0) -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default (printf "%s-%s" .Chart.AppVersion $kind) }}
{{- end }}

{{- /* The kubelet's gRPC probes cannot speak TLS: with it, health is also on a plain port of its own. */ -}}
{{- define "fewbit.healthPort" -}}
{{ ternary 8035 8033 .Values.tls.enabled }}
{{- end }}

{{- define "fewbit.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop:
    - ALL
{{- end }}

{{- define "fewbit.args" -}}
- --host=0.0.0.0
- --port=8033
- --metrics_port=8034
- --drain_seconds={{ .Values.server.drainSeconds }}
{{- if .Values.tls.enabled }}
- --tls_cert=/etc/fewbit/tls/tls.crt
- --tls_key=/etc/fewbit/tls/tls.key
- --health_port=8035
{{- else }}
- --insecure_bind
{{- end }}
{{- if .Values.tls.clientCaSecretName }}
- --tls_client_ca=/etc/fewbit/client-ca/ca.crt
{{- end }}
{{- if .Values.apiKeys.secretName }}
- --api_keys_file=/etc/fewbit/api-keys/api-keys
{{- end }}
- --device={{ ternary "cuda" "cpu" (gt (int .Values.gpu.count) 0) }}
- --model={{ .Values.model.path }}
{{- if .Values.server.threads }}
- --threads={{ .Values.server.threads }}
{{- end }}
{{- if .Values.server.kvMemory }}
- --kv_memory={{ .Values.server.kvMemory }}
{{- end }}
{{- if .Values.gpu.hourUsd }}
- --gpu_hour_usd={{ .Values.gpu.hourUsd }}
{{- end }}
{{- range .Values.server.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}

{{- /* Secrets are mounted as whole directories: a subPath would never be updated. 288 is 0440. */ -}}
{{- define "fewbit.secretVolume" -}}
- name: {{ .name }}
  secret:
    secretName: {{ .secret }}
    defaultMode: 288
{{- end }}

{{- define "fewbit.secretMount" -}}
- name: {{ . }}
  mountPath: /etc/fewbit/{{ . }}
  readOnly: true
{{- end }}

{{- /* What a schema cannot say: values that do not go together. */ -}}
{{- define "fewbit.check" -}}
{{- if and (not .Values.tls.enabled) .Values.tls.clientCaSecretName }}
{{- fail "tls.clientCaSecretName needs tls.enabled=true: client certificates are part of TLS" }}
{{- end }}
{{- if and (eq .Values.model.source "init") (not .Values.model.init.image) }}
{{- fail "model.source=init needs model.init.image: the image that carries the model" }}
{{- end }}
{{- if lt (int .Values.autoscaling.maxReplicas) (int .Values.autoscaling.minReplicas) }}
{{- fail "autoscaling.maxReplicas is smaller than autoscaling.minReplicas" }}
{{- end }}
{{- end }}
