{{/* Checks of changes that would not reach the fleet, because KubeRay or Ray's autoscaler ignores them. */}}

{{/* Numbers above the autoscaler's bounds, and stores that exclude each other. */}}
{{- define "qwenfleet.checkNumbers" -}}
{{- if ge (int .Values.fleet.gateway.replicas) (int .Values.gateway.maxReplicas) -}}
{{- fail (printf "fleet.gateway.replicas %d is not below gateway.maxReplicas %d, so that an update has no pod for a new gateway. Raise gateway.maxReplicas, far enough for later too: a change of it makes a new Ray cluster." (int .Values.fleet.gateway.replicas) (int .Values.gateway.maxReplicas)) -}}
{{- end -}}
{{- range (include "qwenfleet.pools" . | fromJsonArray) -}}
{{- $placement := include "qwenfleet.enginePlacement" (list $ .group) | fromYaml -}}
{{- if gt (int .max) (int $placement.maxReplicas) -}}
{{- fail (printf "%s (model %s) has %d engines, but maxReplicas allows %d. Raise engine.maxReplicas, or engines.%s.maxReplicas, to your quota of GPUs: a change of it makes a new Ray cluster." .group .model (int .max) (int $placement.maxReplicas) .group) -}}
{{- end -}}
{{- end -}}
{{- with .Values.gcsFaultTolerance -}}
{{- if and (or .redisAddress .existingSecret) .rocksdb.enabled -}}
{{- fail (printf "gcsFaultTolerance has both a Redis (%s) and rocksdb.enabled, but Ray keeps its state in one place. Remove one of them." (.redisAddress | default (printf "secret %s" .existingSecret))) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Compares with the running RayService and its Service. */}}
{{- define "qwenfleet.checkUpgrade" -}}
{{- $name := include "qwenfleet.fullname" . -}}
{{- $running := lookup "ray.io/v1" "RayService" .Release.Namespace $name | default dict -}}
{{- if dig "metadata" "deletionTimestamp" "" $running -}}
{{- fail (printf "RayService %s of an earlier release is still being deleted. Wait for it (kubectl -n %s wait --for=delete rayservice/%s --timeout=10m), then try again; `helm uninstall --wait` does so." $name .Release.Namespace $name) -}}
{{- end -}}
{{- $old := dig "spec" "rayClusterConfig" "gcsFaultToleranceOptions" "backend" "" $running -}}
{{- $new := include "qwenfleet.headStore" . -}}
{{- if and $old (ne $new "memory") (ne $old $new) -}}
{{- fail (printf "the fleet keeps Ray's state in %s, and KubeRay does not let it move to %s directly. Upgrade once with neither (gcsFaultTolerance.redisAddress empty, rocksdb.enabled false), wait until the new Ray cluster serves, then upgrade to %s." $old $new $new) -}}
{{- end -}}
{{- if and $running (ne (include "qwenfleet.isIncremental" .) "true") -}}
{{- include "qwenfleet.checkService" . -}}
{{- end -}}
{{- end -}}

{{/* KubeRay never changes the annotations of its Service, and its type only when a new Ray cluster takes over. */}}
{{- define "qwenfleet.checkService" -}}
{{- $name := include "qwenfleet.serviceName" . -}}
{{- $running := lookup "v1" "Service" .Release.Namespace $name | default dict -}}
{{- $type := dig "spec" "type" "" $running -}}
{{- if and $type (ne $type .Values.service.type) -}}
{{- fail (printf "service.type is %s, but Service %s is a %s, and KubeRay does not change a Service in use. Run `kubectl -n %s patch service %s -p '{\"spec\": {\"type\": \"%s\"}}'`, then try again." .Values.service.type $name $type .Release.Namespace $name .Values.service.type) -}}
{{- end -}}
{{- $has := dig "metadata" "annotations" dict $running | default dict -}}
{{- range $key, $value := ternary .Values.service.annotations dict (ne $type "") -}}
{{- if ne (get $has $key) $value -}}
{{- fail (printf "service.annotations has %s, but Service %s does not, and KubeRay does not change a Service in use. Run `kubectl -n %s annotate --overwrite service %s '%s=%s'`, then try again." $key $name $.Release.Namespace $name $key $value) -}}
{{- end -}}
{{- end -}}
{{- end -}}
