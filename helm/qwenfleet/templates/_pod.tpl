{{/* The pod of each group. Its dict has root, component, group, placement (values), flavour, and for engines
pool. */}}

{{- define "qwenfleet.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "qwenfleet.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ int .Values.podSecurity.runAsUser }}
runAsGroup: {{ int .Values.podSecurity.fsGroup }}
fsGroup: {{ int .Values.podSecurity.fsGroup }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* How long Ray drains the pod's node. Serve waits with the stop of a gateway until another runs, but no longer than
leaves time for its streams and 15 s for their last errors; 120 s are for the start of that other one. */}}
{{- define "qwenfleet.nodeDrainSeconds" -}}
{{- $drain := int (.placement.drainSeconds | default 0) -}}
{{ ternary (add $drain 15 120) $drain (and (gt $drain 0) (eq .component "gateway")) }}
{{- end -}}

{{/* Ray's environment, plus writable directories, the drain timeout and secrets. */}}
{{- define "qwenfleet.containerEnv" -}}
{{- range $name, $value := include "qwenfleet.environment" .root | fromYaml }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
- name: HOME
  value: /home/qwenfleet
- name: QWENFLEET_HEAD_STORE
  value: {{ include "qwenfleet.headStore" .root }}
- name: QWENFLEET_POD_LOG # where `kubectl logs` reads
  value: /proc/1/fd/1
- name: PYTHONDONTWRITEBYTECODE
  value: "1"
{{- with .placement.drainSeconds }}
- name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
  value: {{ include "qwenfleet.nodeDrainSeconds" $ | quote }}
{{- end }}
{{- with .root.Values.weights.huggingFace }}
{{- if and .existingSecret (ne $.component "head") }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ .existingSecret }}, key: {{ .key }}}
{{- end }}
{{- end }}
{{- end -}}

{{- define "qwenfleet.volumeMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: home, mountPath: /home/qwenfleet}
{{- with .root.Values.fleet.cache_dir }}
- {name: cache, mountPath: {{ . }}}
{{- end }}
{{- if .root.Values.weights.pvc.claimName }}
- {name: weights, mountPath: {{ .root.Values.weights.pvc.mountPath }}, readOnly: true}
{{- end }}
{{- if and (eq .component "gateway") (ne .root.Values.auth.mode "none") }}
- {name: keys, mountPath: /etc/qwenfleet/keys, readOnly: true}
{{- end }}
{{- if and (ne .component "head") .root.Values.wireTls.existingSecret }}
- {name: wire-tls, mountPath: /etc/qwenfleet/wire-tls, readOnly: true}
{{- end }}
{{- end -}}

{{- define "qwenfleet.volumes" -}}
- {name: tmp, emptyDir: {}}
- {name: home, emptyDir: {}}
{{- if .root.Values.fleet.cache_dir }}
- name: cache
  {{- with include "qwenfleet.cacheClaim" .root }}
  persistentVolumeClaim: {claimName: {{ . }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ include "qwenfleet.quantity" .root.Values.cache.size | quote }}}
  {{- end }}
{{- end }}
{{- with .root.Values.weights.pvc.claimName }}
- {name: weights, persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}}
{{- end }}
{{- if and (eq .component "gateway") (ne .root.Values.auth.mode "none") }}
- name: keys
  secret:
    secretName: {{ include "qwenfleet.keysSecret" .root }}
    defaultMode: 0440
    items: [{key: keys, path: keys}]
{{- end }}
{{- if and (ne .component "head") .root.Values.wireTls.existingSecret }}
- name: wire-tls
  secret:
    secretName: {{ .root.Values.wireTls.existingSecret }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{/* Liveness is the raylet's answer, however long a model loads. A gateway is ready if its proxy has a gateway to send
to: it answers on the port of its statistics, whose connections clients cannot use up. An engine takes no clients, so it
is ready with its raylet, on each of its nodes. */}}
{{- define "qwenfleet.probes" -}}
{{- $ready := dict "head" (list "/api/gcs_healthz" "dashboard") "gateway" (list "/-/healthz" 8404) "engine" (list "/api/local_raylet_healthz" 52365) -}}
{{- $probe := get $ready .component -}}
startupProbe:
  httpGet: {path: /api/local_raylet_healthz, port: 52365}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /api/local_raylet_healthz, port: 52365}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 12
readinessProbe:
  httpGet:
    path: {{ index $probe 0 }}
    port: {{ index $probe 1 }}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 3
{{- end -}}

{{/* Clients enter through the port `gateway`, which only gateways have. KubeRay reads the head's port `serve`: in
upgrades by steps its own Services send every client to that number on all pods, so nothing listens on it there. */}}
{{- define "qwenfleet.ports" -}}
{{- $ports := dict "metrics" 8080 -}}
{{- if eq .component "gateway" -}}
{{- $ports = set $ports "gateway" (int .root.Values.fleet.gateway.port) -}}
{{- else if eq .component "head" -}}
{{- $serve := ternary 9 (int .root.Values.fleet.gateway.port) (include "qwenfleet.isIncremental" .root | eq "true") -}}
{{- $ports = dict "serve" $serve "metrics" 8080 "gcs-server" 6379 "dashboard" 8265 "client" 10001 "as-metrics" 44217 "dash-metrics" 44227 -}}
{{- end -}}
{{- range $name, $number := $ports }}
- {name: {{ $name }}, containerPort: {{ $number }}, protocol: TCP}
{{- end -}}
{{- end -}}

{{/* Copies a bucket before Ray starts; gateways need everything except the weight files. */}}
{{- define "qwenfleet.fetchWeights" -}}
{{- $s3 := .root.Values.weights.s3 -}}
- name: fetch-weights
  image: {{ include "qwenfleet.image" (list .root .flavour) }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: [aws]
  args:
    - s3
    - sync
    - --no-progress
    {{- with $s3.endpoint }}
    - --endpoint-url={{ . }}
    {{- end }}
    {{- if eq .component "gateway" }}
    - --exclude=*.safetensors
    {{- end }}
    - {{ $s3.uri }}
    - {{ $s3.directory }}
  env:
    - {name: HOME, value: /home/qwenfleet}
    {{- with $s3.region }}
    - {name: AWS_REGION, value: {{ . }}}
    {{- end }}
  {{- with $s3.existingSecret }}
  envFrom:
    - secretRef: {name: {{ . }}}
  {{- end }}
  resources: {requests: {cpu: "1", memory: 1Gi}, limits: {memory: 2Gi}}
  securityContext:
    {{- include "qwenfleet.securityContext" . | nindent 4 }}
  volumeMounts:
    {{- include "qwenfleet.volumeMounts" . | nindent 4 }}
{{- end -}}

{{/* Resources from the values, plus the GPUs of one pod. */}}
{{- define "qwenfleet.resources" -}}
{{- $gpus := dict -}}
{{- with .pool -}}{{- if .accelerator -}}
{{- $gpus = dict (get $.root.Values.accelerators .vendor).resource (int .gpusPerNode | toString) -}}
{{- end -}}{{- end -}}
{{- $requests := merge (dict) $gpus (.placement.resources.requests | default dict) -}}
{{- $limits := merge (dict) $gpus (.placement.resources.limits | default dict) -}}
{{- include "qwenfleet.canonicalResources" (dict "requests" $requests "limits" $limits) -}}
{{- end -}}

{{- define "qwenfleet.affinity" -}}
{{- with .pool -}}{{- if and .products (not $.placement.nodeSelector) }}
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            - {key: {{ .nodeLabel }}, operator: In, values: {{ toJson .products }}}
{{- end -}}{{- end -}}
{{- end -}}

{{- define "qwenfleet.tolerations" -}}
{{- $all := .placement.tolerations | default list -}}
{{- with .pool -}}{{- if .vendor -}}
{{- $all = concat $all (get $.root.Values.accelerators .vendor).tolerations -}}
{{- end -}}{{- end -}}
{{- toYaml $all -}}
{{- end -}}

{{/* Engines need a service account to watch their own pod and node. KubeRay sets the head's, with the autoscaler's
permissions. */}}
{{- define "qwenfleet.pod" -}}
metadata:
  annotations:
    qwenfleet.io/not-compared: {{ include "qwenfleet.notCompared" . }}
  labels:
    {{- include "qwenfleet.podLabels" (list .root .component .group) | nindent 4 }}
spec:
  {{- if eq .component "engine" }}
  serviceAccountName: {{ include "qwenfleet.serviceAccount" .root }}
  {{- else if eq .component "gateway" }}
  automountServiceAccountToken: false
  {{- end }}
  {{- if eq .component "head" }}
  # The head has nothing to drain, its autoscaler does not end on SIGTERM, and its successor waits for it.
  terminationGracePeriodSeconds: 10
  {{- else }}
  terminationGracePeriodSeconds: {{ add (max 30 (include "qwenfleet.nodeDrainSeconds" . | int)) 10 60 }}
  {{- end }}
  {{- with .root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .placement.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .placement.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with include "qwenfleet.affinity" . }}
  {{- . | trim | nindent 2 }}
  {{- end }}
  {{- with include "qwenfleet.tolerations" . | fromYamlArray }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if eq .component "gateway" }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "qwenfleet.podLabels" (list .root .component .group) | nindent 10 }}
  {{- end }}
  securityContext:
    {{- include "qwenfleet.podSecurity" .root | nindent 4 }}
    {{- with .pool }}{{- if .vendor }}
    {{- with (get $.root.Values.accelerators .vendor).supplementalGroups }}
    supplementalGroups: {{ toJson . }}
    {{- end }}
    {{- end }}{{- end }}
  {{- if and .root.Values.weights.s3.uri (ne .component "head") }}
  initContainers:
    {{- include "qwenfleet.fetchWeights" . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ ternary "ray-head" "ray-worker" (eq .component "head") }}
      image: {{ include "qwenfleet.image" (list .root .flavour) }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      env:
        {{- include "qwenfleet.containerEnv" . | trim | nindent 8 }}
      ports:
        {{- include "qwenfleet.ports" . | trim | nindent 8 }}
      resources:
        {{- include "qwenfleet.resources" . | nindent 8 }}
      {{- include "qwenfleet.probes" . | nindent 6 }}
      {{- if .placement.drainSeconds }}
      # Time for every proxy to learn that the pod terminates. Ray then drains its node and exits.
      lifecycle:
        preStop:
          sleep: {seconds: 10}
      {{- end }}
      securityContext:
        {{- include "qwenfleet.securityContext" . | nindent 8 }}
      volumeMounts:
        {{- include "qwenfleet.volumeMounts" . | nindent 8 }}
  volumes:
    {{- include "qwenfleet.volumes" . | nindent 4 }}
{{- end -}}
