{{/* All names and labels. */}}

{{- define "qwenfleet.fullname" -}}
{{- $default := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- .Values.fullnameOverride | default $default | trunc 36 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels that never change, so that selectors can use them. */}}
{{- define "qwenfleet.selectorLabels" -}}
qwenfleet.io/fleet: {{ include "qwenfleet.fullname" . }}
{{- end -}}

{{- define "qwenfleet.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{ include "qwenfleet.selectorLabels" . }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels of a Ray pod: without app.kubernetes.io/name, which KubeRay's head service selects on, and without a
version, so that a new chart alone does not create a new cluster. Arguments: [root, component, group]. */}}
{{- define "qwenfleet.podLabels" -}}
{{ include "qwenfleet.selectorLabels" (index . 0) }}
qwenfleet.io/component: {{ index . 1 }}
qwenfleet.io/group: {{ index . 2 }}
{{- with (index . 0).Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "qwenfleet.metadata" -}}
name: {{ include "qwenfleet.fullname" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "qwenfleet.labels" . | nindent 2 }}
{{- end -}}

{{/* The Service that clients use: KubeRay's, or the chart's own in upgrades by steps, in which KubeRay has none. */}}
{{- define "qwenfleet.serviceName" -}}
{{ include "qwenfleet.fullname" . }}-{{ ternary "clients" "serve-svc" (include "qwenfleet.isIncremental" . | eq "true") }}
{{- end -}}

{{- define "qwenfleet.isIncremental" -}}
{{ ne .Values.upgrade.gatewayClassName "" }}
{{- end -}}

{{/* Where KubeRay keeps Ray's state for the next head: redis, rocksdb, or memory, which dies with the head. */}}
{{- define "qwenfleet.headStore" -}}
{{- if .Values.gcsFaultTolerance.redisAddress -}}redis
{{- else if .Values.gcsFaultTolerance.rocksdb.enabled -}}rocksdb
{{- else -}}memory{{- end -}}
{{- end -}}

{{- define "qwenfleet.keysSecret" -}}
{{ .Values.auth.existingSecret | default (printf "%s-api-keys" (include "qwenfleet.fullname" .)) }}
{{- end -}}

{{- define "qwenfleet.raySecret" -}}
{{ .Values.rayAuth.existingSecret | default (printf "%s-ray-auth" (include "qwenfleet.fullname" .)) }}
{{- end -}}

{{- define "qwenfleet.cacheClaim" -}}
{{ .Values.cache.existingClaim | default (ternary (printf "%s-cache" (include "qwenfleet.fullname" .)) "" .Values.cache.create) }}
{{- end -}}

{{- define "qwenfleet.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (ternary (include "qwenfleet.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end -}}

{{/* Arguments: [root, flavour]. */}}
{{- define "qwenfleet.image" -}}
{{- $image := (index . 0).Values.image -}}
{{- with $image.registry }}{{ . }}/{{ end -}}
{{- $image.repository }}:{{ $image.tag | default (index . 0).Chart.AppVersion }}-{{ index . 1 -}}
{{- with get $image.digests (index . 1) }}@{{ . }}{{ end -}}
{{- end -}}

{{/* The value in an existing secret; empty under `helm template`. Arguments: [root, name, key]. */}}
{{- define "qwenfleet.kept" -}}
{{- $secret := lookup "v1" "Secret" (index . 0).Release.Namespace (index . 1) | default dict -}}
{{- get ($secret.data | default dict) (index . 2) | b64dec -}}
{{- end -}}

{{- define "qwenfleet.subjects" -}}
- {kind: ServiceAccount, name: {{ include "qwenfleet.serviceAccount" . }}, namespace: {{ .Release.Namespace }}}
{{- end -}}

{{/* The port of a URL: explicit, or the default of its scheme. */}}
{{- define "qwenfleet.urlPort" -}}
{{- $url := urlParse . -}}
{{- regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (ternary "80" "443" (eq $url.scheme "http")) -}}
{{- end -}}
