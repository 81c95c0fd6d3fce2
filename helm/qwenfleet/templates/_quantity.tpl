{{/* Quantities as KubeRay writes them back. Its operator parses and prints every RayService; a quantity that it prints
in another form becomes its own, and the next `helm upgrade` would conflict with it. */}}

{{/* Requests and limits; empty ones are left out, as KubeRay does. */}}
{{- define "qwenfleet.canonicalResources" -}}
{{- $resources := dict -}}
{{- range $kind, $quantities := . -}}
{{- $canonical := dict -}}
{{- range $name, $quantity := $quantities -}}
{{- $canonical = set $canonical $name (include "qwenfleet.quantity" $quantity) -}}
{{- end -}}
{{- if $canonical -}}{{- $resources = set $resources $kind $canonical -}}{{- end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* The canonical form: a whole number with the largest suffix that keeps it whole. 0.5 is 500m, 2000m is 2, 1024Mi is
1Gi. What has no such form here, as 1e3 or 0.3Gi, stays as it is. */}}
{{- define "qwenfleet.quantity" -}}
{{- $text := toString . -}}
{{- if kindIs "float64" . -}}{{- if eq (floor .) . -}}{{- $text = int64 . | toString -}}{{- end -}}{{- end -}}
{{- $number := regexFind "^[0-9]+([.][0-9]{1,3})?" $text -}}
{{- $suffix := trimPrefix $number $text -}}
{{- $binary := list "" "Ki" "Mi" "Gi" "Ti" "Pi" -}}
{{- $decimal := list "m" "" "k" "M" "G" "T" "P" -}}
{{- $isBinary := and $suffix (has $suffix $binary) -}}
{{- $suffixes := ternary $binary $decimal (not (not $isBinary)) -}}
{{- $step := ternary 1024 1000 (not (not $isBinary)) -}}
{{- $parts := append (splitList "." $number) "" -}}
{{- $at := 0 -}}
{{- range $i, $one := $suffixes -}}{{- if eq $one $suffix -}}{{- $at = $i -}}{{- end -}}{{- end -}}
{{- $thousandths := add (mul (atoi (index $parts 0)) 1000) (printf "%s000" (index $parts 1) | trunc 3 | atoi) -}}
{{- $isWhole := eq 0 (mod $thousandths 1000 | int) -}}
{{- if not $isWhole -}}{{- $thousandths = mul $thousandths $step -}}{{- $at = sub $at 1 | int -}}{{- end -}}
{{- if or (not $number) (not (has $suffix $suffixes)) (lt $at 0) (mod $thousandths 1000) -}}
{{- $text -}}
{{- else -}}
{{- $count := div $thousandths 1000 -}}
{{- if eq 0 (int $count) -}}{{- $at = ternary 0 1 (not (not $isBinary)) -}}{{- end -}}
{{- range until (sub (len $suffixes) (add1 $at) | int) -}}
{{- if and (gt $count 0) (eq 0 (mod $count $step | int)) -}}
{{- $count = div $count $step -}}
{{- $at = add1 $at | int -}}
{{- end -}}
{{- end -}}
{{- $count }}{{ index $suffixes $at -}}
{{- end -}}
{{- end -}}
