{{/* Checks of the values; each failure prints one sentence. Arithmetic only: `qwenfleet plan` checks the rest. */}}

{{- define "qwenfleet.checks" -}}
{{- if has (.Values.fleet.gateway.host | default "127.0.0.1") (list "127.0.0.1" "localhost" "::1") -}}
{{- fail (printf "fleet.gateway.host is %s, which a Service cannot reach. Set it to 0.0.0.0." (.Values.fleet.gateway.host | default "127.0.0.1")) -}}
{{- end -}}
{{- if hasKey .Values.fleet "auth" -}}
{{- fail "fleet.auth is set, but the chart derives it from auth.mode and auth.existingSecret. Set those, and remove fleet.auth." -}}
{{- end -}}
{{- if hasKey (.Values.fleet.wire | default dict) "tls" -}}
{{- fail "fleet.wire.tls is set, but the chart derives it from wireTls.existingSecret. Set that, and remove fleet.wire.tls." -}}
{{- end -}}
{{- if hasKey .Values.fleet.gateway "drain_s" -}}
{{- fail "fleet.gateway.drain_s is set, but the chart derives it from gateway.drainSeconds. Set that, and remove fleet.gateway.drain_s." -}}
{{- end -}}
{{- if and (eq .Values.auth.mode "existing") (not .Values.auth.existingSecret) -}}
{{- fail "auth.mode is existing, but auth.existingSecret is empty. Put hashes from `qwenfleet keys new` into a file `keys`, run `kubectl create secret generic NAME --from-file=keys`, and set auth.existingSecret to NAME." -}}
{{- end -}}
{{- if and (ne .Values.auth.mode "existing") .Values.auth.existingSecret -}}
{{- fail (printf "auth.existingSecret is %s, but auth.mode is %s. Set auth.mode to existing, or remove auth.existingSecret." .Values.auth.existingSecret .Values.auth.mode) -}}
{{- end -}}
{{- if and .Values.cache.create .Values.cache.existingClaim -}}
{{- fail (printf "both cache.create and cache.existingClaim (%s) are set. Remove one of them." .Values.cache.existingClaim) -}}
{{- end -}}
{{- if and .Values.weights.s3.uri (not (hasPrefix (printf "%s/" .Values.fleet.cache_dir) .Values.weights.s3.directory)) -}}
{{- fail (printf "weights.s3.directory %s is not below fleet.cache_dir %s. Choose a directory below fleet.cache_dir, where the cache volume is mounted." .Values.weights.s3.directory (.Values.fleet.cache_dir | default "(none)")) -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- fail "httpRoute.enabled is set, but httpRoute.parentRefs is empty. Name your Gateway, as [{name: ..., namespace: ...}]." -}}
{{- end -}}
{{- if and (or .Values.monitoring.rules.enabled .Values.monitoring.dashboards.enabled) (not (regexMatch "^https?://." .Values.monitoring.runbooks)) -}}
{{- fail (printf "monitoring.runbooks is %s, but rules and dashboards link to it. Set it to the URL where you host the pages of helm/runbooks, such as that folder in your own repository (https://...)." (.Values.monitoring.runbooks | default "empty")) -}}
{{- end -}}
{{- include "qwenfleet.checkFleet" . -}}
{{- $groups := list -}}
{{- range (include "qwenfleet.pools" . | fromJsonArray) -}}
{{- $groups = append $groups .group -}}
{{- include "qwenfleet.checkPool" (dict "pool" . "root" $) -}}
{{- end -}}
{{- range $name, $_ := .Values.engines -}}
{{- if not (has $name $groups) -}}
{{- fail (printf "engines.%s is not a worker group of this fleet. Use one of: %s." $name (join ", " $groups)) -}}
{{- end -}}
{{- end -}}
{{- include "qwenfleet.checkNumbers" . -}}
{{- include "qwenfleet.checkCluster" . -}}
{{- end -}}

{{- define "qwenfleet.checkPool" -}}
{{- $pool := .pool -}}
{{- $values := .root.Values -}}
{{- if $pool.accelerator -}}
{{- if not $pool.hasLayout -}}
{{- fail (printf "%s (model %s) has accelerator %s but no layout, so the number of GPUs per pod is unknown. Set the layout that `qwenfleet plan` prints." $pool.group $pool.model $pool.accelerator) -}}
{{- end -}}
{{- $onNode := int (get $values.accelerators $pool.vendor).gpusPerNode -}}
{{- if gt (int $pool.gpusPerNode) $onNode -}}
{{- fail (printf "%s needs %d GPUs on each of %d nodes, but a node has %d (accelerators.%s.gpusPerNode). Set layout.nodes to %d, or choose a smaller layout." $pool.group (int $pool.gpusPerNode) (int $pool.nodes) $onNode $pool.vendor (int (ceil (divf $pool.gpus $onNode)))) -}}
{{- end -}}
{{- if mod (int $pool.gpusPerNode) (int $pool.tp) -}}
{{- fail (printf "%s: a tensor parallel group of %d would span nodes with %d GPUs of the engine each. Choose a tensor_parallel_size that divides %d." $pool.group (int $pool.tp) (int $pool.gpusPerNode) (int $pool.gpusPerNode)) -}}
{{- end -}}
{{- if and $values.checks.plan $pool.card.block -}}
{{- $block := int $pool.card.block -}}
{{- if mod (int $pool.card.expertWidth) (mul (int $pool.expertRanks) $block) -}}
{{- fail (printf "%s: %d ranks cannot split an expert's %d columns into whole quantization blocks of %d; vLLM refuses this or runs slowly. Set layout.expert_parallel, or use fewer ranks; see `qwenfleet plan`. checks.plan=false disables this check." $pool.group (int $pool.expertRanks) (int $pool.card.expertWidth) $block) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $values.checks.plan $pool.card.context (not $pool.isStretched) -}}
{{- if gt (int $pool.context) (int $pool.card.context) -}}
{{- fail (printf "%s: max_model_len %d is above the %d tokens of %s. Lower it, or set a long-context method in engine_args.hf_overrides." $pool.group (int $pool.context) (int $pool.card.context) $pool.source) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* If helm talks to a cluster, the lookup returns a list, without items for an empty or absent namespace; under
`helm template` it returns nothing. Secrets, because helm stores its releases in them and so may list them. */}}
{{- define "qwenfleet.checkCluster" -}}
{{- $isConnected := not (empty (lookup "v1" "Secret" .Release.Namespace "")) -}}
{{- if or (eq .Values.checks.crds "always") (and $isConnected (eq .Values.checks.crds "auto")) -}}
{{- if not (.Capabilities.APIVersions.Has "ray.io/v1/RayService") -}}
{{- fail "this cluster does not have ray.io/v1 RayService: KubeRay's CRDs are absent. Install KubeRay 1.7 (helm install kuberay-operator kuberay/kuberay-operator --version 1.7.0), then this chart." -}}
{{- end -}}
{{- if not (.Capabilities.APIVersions.Has "ray.io/v1/RayCronJob") -}}
{{- fail "this cluster's KubeRay CRDs are older than 1.6 (ray.io/v1 has no RayCronJob) and drop fields that this chart needs, such as authOptions. Helm does not upgrade CRDs: apply those of KubeRay 1.7 with `kubectl replace`, then upgrade the operator." -}}
{{- end -}}
{{- range $value := list "podMonitor" "rules" -}}
{{- if and (get $.Values.monitoring $value).enabled (not ($.Capabilities.APIVersions.Has "monitoring.coreos.com/v1")) -}}
{{- fail (printf "monitoring.%s.enabled is set, but this cluster has no monitoring.coreos.com/v1: the Prometheus operator is absent. Install it (for example with the chart kube-prometheus-stack), or disable monitoring.%s." $value $value) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.upgrade.gatewayClassName (not (.Capabilities.APIVersions.Has "gateway.networking.k8s.io/v1/HTTPRoute")) -}}
{{- fail (printf "upgrade.gatewayClassName is %s, but this cluster has no Gateway API (gateway.networking.k8s.io/v1). Install it with its controller, or remove the value: a new Ray cluster then takes over all at once." .Values.upgrade.gatewayClassName) -}}
{{- end -}}
{{- end -}}
{{- if $isConnected -}}
{{- $keys := ternary "keys" "" (eq .Values.auth.mode "existing") -}}
{{- include "qwenfleet.checkSecret" (list . "auth.existingSecret" .Values.auth.existingSecret $keys) -}}
{{- include "qwenfleet.checkSecret" (list . "rayAuth.existingSecret" .Values.rayAuth.existingSecret "auth_token") -}}
{{- range (list "tls.crt" "tls.key" "ca.crt") -}}
{{- include "qwenfleet.checkSecret" (list $ "wireTls.existingSecret" $.Values.wireTls.existingSecret .) -}}
{{- end -}}
{{- include "qwenfleet.checkSecret" (list . "weights.huggingFace.existingSecret" .Values.weights.huggingFace.existingSecret .Values.weights.huggingFace.key) -}}
{{- include "qwenfleet.checkSecret" (list . "weights.s3.existingSecret" .Values.weights.s3.existingSecret "") -}}
{{- include "qwenfleet.checkSecret" (list . "gcsFaultTolerance.existingSecret" .Values.gcsFaultTolerance.existingSecret "password") -}}
{{- include "qwenfleet.checkUpgrade" . -}}
{{- end -}}
{{- end -}}

{{/* Arguments: [root, path of the value, secret, key]. */}}
{{- define "qwenfleet.checkSecret" -}}
{{- $root := index . 0 -}}
{{- $path := index . 1 -}}
{{- $key := index . 3 -}}
{{- with index . 2 -}}
{{- $secret := lookup "v1" "Secret" $root.Release.Namespace . -}}
{{- if not $secret -}}
{{- fail (printf "%s names secret %s, which does not exist in namespace %s. Create it first." $path . $root.Release.Namespace) -}}
{{- end -}}
{{- if and $key (not (hasKey ($secret.data | default dict) $key)) -}}
{{- fail (printf "secret %s (%s) has no key %s. It has: %s." . $path $key (keys ($secret.data | default dict) | sortAlpha | join ", ")) -}}
{{- end -}}
{{- end -}}
{{- end -}}
