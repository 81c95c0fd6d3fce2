{{/* Templates derived from the tree under `fleet`: pools, Serve's configuration, Ray's environment. */}}

{{/* Every pool of engines as JSON, in the order of deployments/app.py: group, source, accelerator, vendor,
gpus (per engine), gpusPerNode, tp, expertRanks (ranks that an expert is split over), nodes, replicas, context. */}}
{{- define "qwenfleet.pools" -}}
{{- $catalog := .Files.Get "files/catalog.json" | fromJson -}}
{{- $pools := list -}}
{{- range $index, $model := .Values.fleet.models -}}
{{- range $pool := ($model.pools | default (list (omit $model "name"))) -}}
{{- $layout := $pool.layout | default dict -}}
{{- $tp := int ($layout.tensor_parallel_size | default 1) -}}
{{- $dp := int ($layout.data_parallel_size | default 1) -}}
{{- $gpus := mul $tp $dp (int ($layout.pipeline_parallel_size | default 1)) -}}
{{- $nodes := int ($layout.nodes | default 1) -}}
{{- $accelerator := $pool.accelerator | default "" -}}
{{- $known := get $catalog.accelerators $accelerator | default dict -}}
{{- $vendor := $known.vendor | default (ternary "amd" "nvidia" (hasPrefix "AMD" $accelerator)) -}}
{{- $source := $model.source | default $model.id -}}
{{- $pools = append $pools (dict
  "model" $model.id
  "group" (printf "engine-%d%s" $index (ternary (printf "-%s" ($pool.name | default "")) "" (hasKey $pool "name")))
  "source" $source
  "card" (get $catalog.models (base $source) | default dict)
  "context" (int ($model.max_model_len | default 0))
  "isStretched" (hasKey (merge (dict) ($pool.engine_args | default dict) ($model.engine_args | default dict)) "hf_overrides")
  "accelerator" $accelerator
  "vendor" (ternary $vendor "" (ne $accelerator ""))
  "flavour" (ternary (ternary "rocm" "cuda" (eq $vendor "amd")) "cpu" (ne $accelerator ""))
  "nodeLabel" ($known.nodeLabel | default "")
  "products" ($known.products | default list)
  "hasLayout" (not (empty $layout))
  "tp" $tp
  "expertRanks" (ternary 1 (mul $tp $dp) ($layout.expert_parallel | default false))
  "gpus" $gpus
  "nodes" $nodes
  "gpusPerNode" (div $gpus $nodes)
  "replicas" (int (($pool.replicas | default dict).min | default 1))
  "max" (int (($pool.replicas | default dict).max | default (($pool.replicas | default dict).min | default 1)))
) -}}
{{- end -}}
{{- end -}}
{{- toJson $pools -}}
{{- end -}}

{{/* The fleet in the form that app:build takes. Numbers of replicas and objectives are set per deployment, because
Serve restarts an application whose arguments change. */}}
{{- define "qwenfleet.arguments" -}}
{{- $fleet := deepCopy .Values.fleet -}}
{{- $models := list -}}
{{- range $fleet.models -}}
{{- $pools := list -}}
{{- range .pools -}}{{- $pools = append $pools (omit . "replicas") -}}{{- end -}}
{{- $model := omit . "replicas" "pools" "slo" -}}
{{- if $pools -}}{{- $model = set $model "pools" $pools -}}{{- end -}}
{{- $models = append $models $model -}}
{{- end -}}
{{- $keys := dict "keys_file" "/etc/qwenfleet/keys/keys" -}}
{{- $auth := ternary "none" $keys (eq .Values.auth.mode "none") -}}
{{- $drain := dict "drain_s" (int .Values.gateway.drainSeconds) -}}
{{- $fleet = set $fleet "gateway" (merge (omit $fleet.gateway "replicas") $drain) -}}
{{- if .Values.wireTls.existingSecret -}}
{{- $tls := dict "certificate" "/etc/qwenfleet/wire-tls/tls.crt" "key" "/etc/qwenfleet/wire-tls/tls.key" "authority" "/etc/qwenfleet/wire-tls/ca.crt" -}}
{{- $fleet = set $fleet "wire" (merge (dict "tls" $tls) ($fleet.wire | default dict)) -}}
{{- end -}}
{{- toJson (set (set (omit $fleet "slo") "models" $models) "auth" $auth) -}}
{{- end -}}

{{/* The `user_config` of gateways, as in deployments/app.py. */}}
{{- define "qwenfleet.objectives" -}}
{{- $objectives := dict -}}
{{- range .Values.fleet.models -}}
{{- $objectives = set $objectives .id (.slo | default $.Values.fleet.slo | default dict) -}}
{{- end -}}
{{- toJson (dict "objectives" $objectives) -}}
{{- end -}}

{{/* JSON inside YAML, because helm prints large numbers as 3.3e+07 otherwise. */}}
{{- define "qwenfleet.serveConfig" -}}
proxy_location: EveryNode
http_options:
  host: {{ .Values.fleet.gateway.host | quote }}
  port: {{ int .Values.fleet.gateway.port }}
applications:
  - name: {{ .Values.fleet.name | default "qwenfleet" }}
    route_prefix: /
    import_path: qwenfleet.deployments.app:build
    args: {{ include "qwenfleet.arguments" . }}
    deployments:
      - name: gateway
        num_replicas: {{ int .Values.fleet.gateway.replicas }}
        user_config: {{ include "qwenfleet.objectives" . }}
      {{- range (include "qwenfleet.pools" . | fromJsonArray) }}
      - name: {{ .group }}
        num_replicas: {{ int .replicas }}
      {{- end }}
{{- end -}}

{{- define "qwenfleet.timeoutSeconds" -}}
{{- $body := dig "admission" "body_timeout_s" 60 .Values.fleet.gateway -}}
{{ ceil (addf (.Values.fleet.gateway.request_timeout_s | default 3600) $body) | int }}
{{- end -}}

{{/* Same as cluster_environment in deployments/environment.py; a test compares them. */}}
{{- define "qwenfleet.environment" -}}
RAY_USAGE_STATS_ENABLED: "0"
RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO: "0"
RAY_worker_niceness: "0"
RAY_task_events_report_interval_ms: "0"
RAY_SERVE_CONTROL_LOOP_INTERVAL_S: "0.5"
AUTOSCALER_METRIC_PORT: "44217"
DASHBOARD_METRIC_PORT: "44227"
RAY_SERVE_ENABLE_HA_PROXY: "1"
RAY_SERVE_HAPROXY_BINARY_PATH: /opt/qwenfleet/haproxy
RAY_SERVE_HAPROXY_NBTHREAD: "4"
RAY_SERVE_HAPROXY_STATS_PORT: "8404"
RAY_SERVE_HAPROXY_METRICS_PORT: "9101"
RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S: "2"
RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S: "30"
RAY_SERVE_FALLBACK_PROXY_HTTP_PORT: "8500"
RAY_SERVE_FALLBACK_PROXY_GRPC_PORT: "9500"
RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT: "30000"
RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT: "30099"
RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S: {{ include "qwenfleet.timeoutSeconds" . | quote }}
RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S: {{ dig "admission" "client_timeout_s" 60 .Values.fleet.gateway | int | quote }}
RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S: {{ add (include "qwenfleet.timeoutSeconds" .) 30 | quote }}
RAY_SERVE_HAPROXY_MAXCONN: {{ dig "admission" "max_connections" 8192 .Values.fleet.gateway | int | quote }}
{{- with dig "admission" "max_requests_per_address" nil .Values.fleet.gateway }}
QWENFLEET_REQUESTS_PER_ADDRESS: {{ int . | quote }}
{{- end }}
RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S: "2"
{{- with .Values.fleet.cache_dir }}
HF_HUB_CACHE: {{ . }}/huggingface
HF_XET_CACHE: {{ . }}/xet
VLLM_CACHE_ROOT: {{ . }}/vllm
TORCHINDUCTOR_CACHE_DIR: {{ . }}/inductor
TRITON_CACHE_DIR: {{ . }}/triton
{{- end }}
VLLM_NO_USAGE_STATS: "1"
DO_NOT_TRACK: "1"
{{- end -}}

{{/* The smallest percentage that moves one engine of the largest pool, and one gateway: clients reach both clusters in
proportion to their gateways. */}}
{{- define "qwenfleet.stepPercent" -}}
{{- $most := 1 -}}
{{- range (include "qwenfleet.pools" . | fromJsonArray) -}}{{- $most = max $most (int .replicas) -}}{{- end -}}
{{- ceil (divf 100 (min $most (int .Values.fleet.gateway.replicas))) | int -}}
{{- end -}}

{{/* The settings of a pool's pods. Arguments: [root, group]. */}}
{{- define "qwenfleet.enginePlacement" -}}
{{- $values := (index . 0).Values -}}
{{- toYaml (mustMergeOverwrite (deepCopy $values.engine) (deepCopy (get $values.engines (index . 1) | default dict))) -}}
{{- end -}}

{{/* Numbers of a worker group, and what KubeRay's types add to it. KubeRay applies them to new clusters only. In a
running one Serve asks for replicas, and Ray's autoscaler makes pods between the two bounds, which never change. An
update starts a gateway before it stops one, on a pod that the autoscaler adds. */}}
{{- define "qwenfleet.numbers" -}}
replicas: {{ int .replicas }}
minReplicas: 0
maxReplicas: {{ int .placement.maxReplicas }}
priority: 0
scaleStrategy: {}
rayStartParams: {}
{{- end -}}

{{/* KubeRay compares a cluster with its RayService, but leaves these fields out. Their hash is in the pods, so that a
change of them makes a new cluster. The number of replicas is not one of them: it reaches the cluster through Serve. */}}
{{- define "qwenfleet.notCompared" -}}
{{- dict "maxReplicas" (int (.placement.maxReplicas | default 0)) "tolerations" (include "qwenfleet.tolerations" . | fromYamlArray) | toJson | sha256sum | trunc 16 | quote -}}
{{- end -}}
