{{/* Refuses every fleet that FleetConfig or the planner refuses. Names, sizes and sentences come from
files/refusals.json, which is generated from them; tests compare the two. */}}

{{- define "qwenfleet.checkFleet" -}}
{{- $known := .Files.Get "files/refusals.json" | fromJson -}}
{{- $wire := .Values.fleet.wire | default dict -}}
{{- $lease := $wire.lease_s | default 5 -}}
{{- $beat := $wire.heartbeat_s | default 0.5 -}}
{{- if lt (float64 $lease) (mulf 3 $beat) -}}
{{- fail (printf "fleet.wire.lease_s %v is shorter than three times fleet.wire.heartbeat_s %v. Set lease_s to at least %v." $lease $beat (mulf 3 $beat)) -}}
{{- end -}}
{{- include "qwenfleet.checkRequestMemory" (list $known .Values "gateway" .Values.gateway) -}}
{{- $ids := list -}}
{{- range $index, $model := .Values.fleet.models -}}
{{- $path := printf "fleet.models[%d]" $index -}}
{{- if has $model.id $ids -}}
{{- fail (printf "%s and an earlier model both have id '%s'. Give each model its own id." $path $model.id) -}}
{{- end -}}
{{- $ids = append $ids $model.id -}}
{{- if and $model.script (ne ($model.engine | default "vllm") "scripted") -}}
{{- fail (printf "%s: script is set but engine is '%s'. Set engine to 'scripted' or remove script." $path ($model.engine | default "vllm")) -}}
{{- end -}}
{{- include "qwenfleet.checkGroup" (list $known $path $model) -}}
{{- include "qwenfleet.checkPools" (list $known $path $model) -}}
{{- range $pool := ($model.pools | default (list dict)) -}}
{{- include "qwenfleet.checkPlan" (list $.Values.checks.plan $known $path $model (merge (dict) $pool (omit $model "pools"))
  (merge (dict) ($pool.engine_args | default dict) ($model.engine_args | default dict))) -}}
{{- if and ($pool.accelerator | default $model.accelerator) (eq ($model.engine | default "vllm") "vllm") -}}
{{- $group := printf "engine-%d%s" $index (ternary (printf "-%s" ($pool.name | default "")) "" (hasKey $pool "name")) -}}
{{- $placement := mustMergeOverwrite (deepCopy $.Values.engine) (deepCopy (get $.Values.engines $group | default dict)) -}}
{{- include "qwenfleet.checkRequestMemory" (list $known $.Values $group $placement) -}}
{{- end -}}
{{- if and (not ($pool.accelerator | default $model.accelerator)) (eq ($model.engine | default "vllm") "vllm") -}}
{{- $group := printf "engine-%d%s" $index (ternary (printf "-%s" ($pool.name | default "")) "" (hasKey $pool "name")) -}}
{{- $placement := mustMergeOverwrite (deepCopy $.Values.engine) (deepCopy (get $.Values.engines $group | default dict)) -}}
{{- include "qwenfleet.checkCpuMemory" (list $known.cpu $group $model ($pool.layout | default $model.layout | default dict) $placement) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What a model or a pool may say for itself. Arguments: [refusals, path, model or pool]. */}}
{{- define "qwenfleet.checkGroup" -}}
{{- $known := (index . 0).engineArgs -}}
{{- $path := index . 1 -}}
{{- $group := index . 2 -}}
{{- range $name, $_ := ($group.engine_args | default dict) -}}
{{- with get $known.refused $name -}}
{{- fail (printf "%s: %s" $path .) -}}
{{- end -}}
{{- if not (has $name $known.known) -}}
{{- fail (printf "%s: engine_args.%s is not an argument of vLLM 0.32. Remove it, or check its spelling." $path $name) -}}
{{- end -}}
{{- end -}}
{{- $replicas := $group.replicas | default dict -}}
{{- $min := int ($replicas.min | default 1) -}}
{{- $max := int ($replicas.max | default $min) -}}
{{- if lt $max $min -}}
{{- fail (printf "%s: replicas.max %d is below replicas.min %d. Set max to %d." $path $max $min $min) -}}
{{- end -}}
{{- if gt $max $min -}}
{{- fail (printf "%s: replicas.max %d is above replicas.min %d, but autoscaling is not implemented yet. Set max equal to min." $path $max $min) -}}
{{- end -}}
{{- with $group.layout -}}
{{- $gpus := mul (.tensor_parallel_size | default 1) (.pipeline_parallel_size | default 1) (.data_parallel_size | default 1) -}}
{{- if mod $gpus (int (.nodes | default 1)) -}}
{{- fail (printf "%s: layout.nodes %d cannot share %d GPUs evenly. Choose a number of nodes that divides %d." $path (int .nodes) $gpus $gpus) -}}
{{- end -}}
{{- if and .expert_load_balancing (not .expert_parallel) -}}
{{- fail (printf "%s: layout.expert_load_balancing is set without layout.expert_parallel. Set expert_parallel to true, or remove expert_load_balancing." $path) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Pools replace the model's own fields. Arguments: [refusals, path, model]. */}}
{{- define "qwenfleet.checkPools" -}}
{{- $known := index . 0 -}}
{{- $path := index . 1 -}}
{{- $model := index . 2 -}}
{{- if $model.pools -}}
{{- $replicas := $model.replicas | default dict -}}
{{- $isDefault := and (eq (int ($replicas.min | default 1)) 1) (kindIs "invalid" $replicas.max) -}}
{{- $own := dict "accelerator" (not (kindIs "invalid" $model.accelerator)) "layout" (not (kindIs "invalid" $model.layout)) "replicas" (not $isDefault) -}}
{{- range $name := list "accelerator" "layout" "replicas" -}}
{{- if get $own $name -}}
{{- fail (printf "%s: %s is set together with pools. Move it into the pools of '%s'." $path $name $model.id) -}}
{{- end -}}
{{- end -}}
{{- $names := list -}}
{{- range $pool := $model.pools -}}
{{- include "qwenfleet.checkGroup" (list $known (printf "%s.pools %s" $path $pool.name) $pool) -}}
{{- range $name, $_ := ($pool.engine_args | default dict) -}}
{{- if has $name $known.engineArgs.perModel -}}
{{- fail (printf "%s.pools %s: engine_args.%s is set in a pool, but gateways read it for all pools. Move it to the engine_args of '%s'." $path $pool.name $name $model.id) -}}
{{- end -}}
{{- end -}}
{{- if has $pool.name $names -}}
{{- fail (printf "%s: two pools are called '%s'. Give each pool its own name." $path $pool.name) -}}
{{- end -}}
{{- $names = append $names $pool.name -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The planner's rules for models and accelerators that it knows, and its rules for long contexts.
Arguments: [checks.plan, refusals, path, model, pool with the model's fields, engine_args of both]. */}}
{{- define "qwenfleet.checkPlan" -}}
{{- $known := index . 1 -}}
{{- $path := index . 2 -}}
{{- $model := index . 3 -}}
{{- $pool := index . 4 -}}
{{- $args := index . 5 -}}
{{- $source := $model.source | default $model.id -}}
{{- $card := get $known.models (get $known.names (lower (base $source))) -}}
{{- if and (index . 0) $card -}}
{{- if eq $source $card.name -}}
{{- include "qwenfleet.checkLongContext" (list $known $path $card (int64 ($model.max_model_len | default 0)) ($args.hf_overrides | default dict)) -}}
{{- end -}}
{{- $isPlanned := eq ($model.engine | default "vllm") "vllm" -}}
{{- range $known.planner.unplannedArgs -}}
{{- if hasKey $args . -}}{{- $isPlanned = false -}}{{- end -}}
{{- end -}}
{{- $plain := ($pool.accelerator | default "") | trim | lower | replace "_" "-" | replace " " "-" -}}
{{- $gpu := get $known.accelerators $plain -}}
{{- if and $isPlanned $gpu $pool.layout -}}
{{- include "qwenfleet.checkLayout" (list $known $path $card $gpu $pool.layout (int64 ($model.max_model_len | default 0)) $args) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Arguments: [refusals, path, card, max_model_len, hf_overrides]. */}}
{{- define "qwenfleet.checkLongContext" -}}
{{- $known := (index . 0).planner -}}
{{- $path := index . 1 -}}
{{- $card := index . 2 -}}
{{- $wanted := index . 3 -}}
{{- $given := index . 4 -}}
{{- if kindIs "map" $given -}}
{{- if hasKey $given "rope_scaling" -}}
{{- fail (printf "%s: hf_overrides.rope_scaling drops rope_theta, so vLLM fails to load the model. Use hf_overrides.rope_parameters with rope_theta: %d instead." $path (int64 $card.ropeTheta)) -}}
{{- end -}}
{{- $rope := $given.rope_parameters -}}
{{- if and (kindIs "map" $rope) (not (hasKey ($rope | default dict) "rope_theta")) -}}
{{- fail (printf "%s: hf_overrides.rope_parameters has no rope_theta: vLLM then uses 10000 and silently returns wrong answers. Add rope_theta: %d." $path (int64 $card.ropeTheta)) -}}
{{- end -}}
{{- if get $given $known.dualChunk -}}
{{- fail (printf "%s: hf_overrides.%s turns on dual chunk attention, which has no backend in vLLM 0.32. Remove it. For contexts beyond the model's own length, use YaRN." $path $known.dualChunk) -}}
{{- end -}}
{{- $longest := int64 $card.context -}}
{{- if and (kindIs "map" $rope) (eq (toString ($rope | default dict).rope_type) "yarn") -}}
{{- $factor := $rope.factor -}}
{{- $original := ternary $rope.original_max_position_embeddings $card.native (hasKey $rope "original_max_position_embeddings") -}}
{{- if and (has (kindOf $factor) (list "float64" "int64")) (has (kindOf $original) (list "float64" "int64")) -}}
{{- $longest = int64 (floor (mulf $factor $original)) -}}
{{- end -}}
{{- end -}}
{{- if and (gt $wanted (int64 $card.context)) (gt $wanted $longest) -}}
{{- fail (printf "%s: max_model_len %d is above the %d tokens of %s. Lower it, or extend RoPE with the hf_overrides that `qwenfleet plan` prints for YaRN." $path $wanted $longest $card.name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Shape and memory of one layout. Arguments: [refusals, path, card, accelerator, layout, max_model_len, engine_args]. */}}
{{- define "qwenfleet.checkLayout" -}}
{{- $known := (index . 0).planner -}}
{{- $path := index . 1 -}}
{{- $card := index . 2 -}}
{{- $gpu := index . 3 -}}
{{- $layout := index . 4 -}}
{{- $wanted := index . 5 -}}
{{- $args := index . 6 -}}
{{- $tp := int ($layout.tensor_parallel_size | default 1) -}}
{{- $pp := int ($layout.pipeline_parallel_size | default 1) -}}
{{- $dp := int ($layout.data_parallel_size | default 1) -}}
{{- $ranks := mul $tp $dp -}}
{{- $share := $known.utilization -}}
{{- if or (kindIs "float64" $args.gpu_memory_utilization) (kindIs "int64" $args.gpu_memory_utilization) -}}{{- $share = $args.gpu_memory_utilization -}}{{- end -}}
{{- if or (le (float64 $share) 0.0) (gt (float64 $share) 1.0) -}}
{{- fail (printf "%s: engine_args.gpu_memory_utilization is %v. Set it to a number above 0 and up to 1." $path $share) -}}
{{- end -}}
{{- if eq $wanted 1 -}}
{{- fail (printf "%s: max_model_len 1 has no room for a prompt and an answer. Set it to 2 at least." $path) -}}
{{- end -}}
{{- if gt $pp (int $card.layers) -}}
{{- fail (printf "%s: %d layers are fewer than the %d stages of PP%d. Choose a smaller pipeline_parallel_size." $path (int $card.layers) $pp $pp) -}}
{{- end -}}
{{- if le (mul $ranks $pp) (int $known.mostGpus) -}}
{{- $shape := get (index . 0).shapes $card.shape -}}
{{- $axis := ternary $shape.experts $shape.split ($layout.expert_parallel | default false) -}}
{{- $breach := get $shape.tp (toString $tp) | default (get $axis (toString $ranks)) -}}
{{- $breach = $breach | default (get $gpu.unusable $card.quantization) -}}
{{- if $breach -}}
{{- fail (printf "%s cannot run in this layout on %s: %s. `qwenfleet plan` prints layouts that fit. checks.plan=false disables this check." $path $gpu.name $breach) -}}
{{- end -}}
{{- $bytes := ternary 2 1 (hasPrefix "fp8" (toString ($args.kv_cache_dtype | default ""))) -}}
{{- $usable := int64 (floor (mulf $gpu.memoryBytes $share)) -}}
{{- $needed := max 1 $wanted -}}
{{- if not $wanted -}}{{- $needed = int64 $known.blockTokens -}}{{- end -}}
{{- range get $shape.layouts (printf "%d-%d-%d%s" $tp $pp $dp (ternary "-whole" "" ($layout.expert_parallel | default false))) -}}
{{- $left := sub $usable (int64 (index . 0)) -}}
{{- $tokens := 0 -}}
{{- if gt $left 0 -}}
{{- $tokens = mul (div (div (mul $left $bytes) (int64 (index . 1))) $known.blockTokens) $known.blockTokens -}}
{{- end -}}
{{- if lt $tokens (int64 $needed) -}}
{{- fail (printf "%s cannot run in this layout on %s: weights and reserve need %.1f GiB of each GPU, vLLM may use %.1f, and the KV cache would hold %d tokens, but %d must fit. `qwenfleet plan` prints layouts that fit. checks.plan=false disables this check." $path $gpu.name (divf (index . 0) 1073741824) (divf $usable 1073741824) $tokens (int64 $needed)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Prompt tokens of one gateway's open requests, at most; same as request_memory.most_tokens.
Arguments: [refusals, values]. */}}
{{- define "qwenfleet.mostTokens" -}}
{{- $known := index . 0 -}}
{{- $gateway := (index . 1).fleet.gateway | default dict -}}
{{- $context := 0 -}}
{{- range (index . 1).fleet.models -}}
{{- $source := .source | default .id -}}
{{- $card := get $known.models (get $known.names (lower (base $source))) | default dict -}}
{{- $longest := .max_model_len | default $card.context | default (get $known.requests.contexts $source) -}}
{{- if not $longest -}}{{- $longest = $known.requests.openBodyBytes -}}{{- end -}}
{{- $context = max $context (int64 $longest) -}}
{{- end -}}
{{- $byText := div (include "qwenfleet.openBodyBytes" . | int64) (int64 $known.requests.bytesPerToken) -}}
{{- min $byText (mul (int64 ($gateway.max_ongoing_requests | default $known.requests.requests)) $context) -}}
{{- end -}}

{{/* Bytes of one gateway's open bodies, at most. Arguments: [refusals, values]. */}}
{{- define "qwenfleet.openBodyBytes" -}}
{{- $held := (index . 0).requests -}}
{{- $gateway := (index . 1).fleet.gateway | default dict -}}
{{- $all := mul (int64 ($gateway.max_ongoing_requests | default $held.requests)) (int64 ($gateway.max_body_bytes | default $held.maxBodyBytes)) -}}
{{- min $all (int64 (dig "admission" "max_open_body_bytes" $held.openBodyBytes $gateway)) -}}
{{- end -}}

{{/* Open requests fit in the memory of a pod; same as request_memory.gateway_bytes and engine_bytes.
Arguments: [refusals, values, "gateway" or the group of an engine on GPUs, placement]. */}}
{{- define "qwenfleet.checkRequestMemory" -}}
{{- $known := index . 0 -}}
{{- $values := index . 1 -}}
{{- $group := index . 2 -}}
{{- $limits := ((index . 3).resources | default dict).limits | default dict -}}
{{- if $limits.memory -}}
{{- $held := $known.requests -}}
{{- $open := include "qwenfleet.openBodyBytes" . | int64 -}}
{{- $tokens := include "qwenfleet.mostTokens" . | int64 -}}
{{- $grammar := (($values.fleet.gateway | default dict).grammar) | default dict -}}
{{- $children := mulf (add 1 (int ($grammar.workers | default $held.grammarWorkers))) $held.grammarRoom ($grammar.max_compiled_mib | default $held.grammarMib) 1048576 -}}
{{- $grammars := mulf (len $values.fleet.models) (addf $held.grammarProcessBytes $children) -}}
{{- $needed := addf $known.cpu.rayBytes $held.gatewayBytes $grammars (mulf $held.textCopies $open) (mulf $held.tokenBytes $tokens) -}}
{{- if ne $group "gateway" -}}
{{- $tokens = mul $tokens (int (($values.fleet.gateway | default dict).replicas | default 1)) -}}
{{- $needed = addf $known.cpu.rayBytes $known.cpu.processBytes (mulf $held.tokenBytes $tokens) -}}
{{- end -}}
{{- if lt (float64 (include "qwenfleet.bytes" $limits.memory)) $needed -}}
{{- fail (printf "%s: open requests of %d tokens in all need %.1f GiB, but the memory limit of its container is %v. Raise resources.limits.memory to %.1fGi, or lower fleet.gateway.admission.max_open_body_bytes or fleet.gateway.max_ongoing_requests." $group $tokens (divf $needed 1073741824) $limits.memory (divf (ceil (mulf 10 (divf $needed 1073741824))) 10)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A CPU engine fits in the memory of its pod, as its own start checks again with the size of its weights.
Arguments: [cpu of refusals, group, model, layout, placement]. */}}
{{- define "qwenfleet.checkCpuMemory" -}}
{{- $cpu := index . 0 -}}
{{- $group := index . 1 -}}
{{- $model := index . 2 -}}
{{- $layout := index . 3 -}}
{{- $limits := ((index . 4).resources | default dict).limits | default dict -}}
{{- if hasKey $limits "memory" -}}
{{- $limit := include "qwenfleet.bytes" $limits.memory | int64 -}}
{{- $ranks := mul ($layout.tensor_parallel_size | default 1) ($layout.pipeline_parallel_size | default 1) ($layout.data_parallel_size | default 1) -}}
{{- $ranks = div $ranks (int ($layout.nodes | default 1)) -}}
{{- $processes := ternary 1 (add 1 $ranks) (eq (int $ranks) 1) -}}
{{- $weights := get $cpu.weightBytes ($model.source | default $model.id) | default 0 -}}
{{- $fixed := addf (mulf $weights $cpu.weightsFactor) (mulf $processes $cpu.processBytes) $cpu.rayBytes -}}
{{- $kv := $model.kv_cache_gib | default $cpu.leastKvGib -}}
{{- $needed := addf $fixed (mulf $ranks $kv 1073741824) -}}
{{- if lt (float64 $limit) $needed -}}
{{- fail (printf "%s: a CPU engine needs %.1f GiB besides its KV cache, and %d x %v GiB of that, but the memory limit of its container is %v. Raise resources.limits.memory to %.1fGi%s." $group (divf $fixed 1073741824) (int $ranks) $kv $limits.memory (divf (ceil (mulf 10 (divf $needed 1073741824))) 10) (ternary " or lower kv_cache_gib" "" (hasKey $model "kv_cache_gib"))) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A quantity of Kubernetes in bytes, rounded down. */}}
{{- define "qwenfleet.bytes" -}}
{{- $text := toString . -}}
{{- if kindIs "float64" . -}}{{- $text = printf "%.0f" . -}}{{- end -}}
{{- $number := regexFind "^[0-9.]+([eE][+-]?[0-9]+)?" $text -}}
{{- $unit := trimPrefix $number $text -}}
{{- $sizes := dict "" 1 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "P" 1000000000000000 -}}
{{- if eq $unit "m" -}}
{{- printf "%d" (int64 (floor (divf (float64 $number) 1000))) -}}
{{- else if and $number (hasKey $sizes $unit) -}}
{{- printf "%d" (int64 (floor (mulf (float64 $number) (get $sizes $unit)))) -}}
{{- else -}}
{{- fail (printf "%s is not a quantity of memory. Write one such as 16Gi." $text) -}}
{{- end -}}
{{- end -}}
