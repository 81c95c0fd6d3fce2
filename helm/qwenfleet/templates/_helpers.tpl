{{/* Names and labels: nowhere else. */}}

{{- define "qwenfleet.fullname" -}}
{{- $default := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- .Values.fullnameOverride | default $default | trunc 36 | trimSuffix "-" -}}
{{- end -}}

{{/* Of what never changes, so selectors may be made of it. */}}
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

{{/* Of a pod of Ray: not app.kubernetes.io/name, which KubeRay's head service selects on, and no
version, so that a new chart alone makes no new cluster. Takes [root, component, group]. */}}
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

{{- define "qwenfleet.serviceName" -}}
{{ include "qwenfleet.fullname" . }}-serve-svc
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

{{/* Takes [root, flavour]. */}}
{{- define "qwenfleet.image" -}}
{{- $image := (index . 0).Values.image -}}
{{- with $image.registry }}{{ . }}/{{ end -}}
{{- $image.repository }}:{{ $image.tag | default (index . 0).Chart.AppVersion }}-{{ index . 1 -}}
{{- with get $image.digests (index . 1) }}@{{ . }}{{ end -}}
{{- end -}}

{{/* The secret that is there already: under `helm template` there is none. Takes [root, name, key]. */}}
{{- define "qwenfleet.kept" -}}
{{- $secret := lookup "v1" "Secret" (index . 0).Release.Namespace (index . 1) | default dict -}}
{{- get ($secret.data | default dict) (index . 2) | b64dec -}}
{{- end -}}

{{- define "qwenfleet.subjects" -}}
- {kind: ServiceAccount, name: {{ include "qwenfleet.serviceAccount" . }}, namespace: {{ .Release.Namespace }}}
{{- end -}}

{{/* Of a URL: the one that it names, or its scheme's. */}}
{{- define "qwenfleet.urlPort" -}}
{{- $url := urlParse . -}}
{{- regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (ternary "80" "443" (eq $url.scheme "http")) -}}
{{- end -}}
