{{/*
Completes and converts .Values in place, so that a release whose values are those of another chart or of an older
version of this one (helm upgrade --reuse-values) renders too. To be included first in every template.
*/}}
{{- define "flannel.values" -}}
{{- if not (hasKey .Values "valuesAreRead") -}}
{{- $values := .Values -}}
{{- $defaults := include "flannel.defaults" . | fromYaml -}}
{{- $faults := dict -}}
{{- include "flannel.parts" (dict "values" $values "faults" $faults) -}}
{{- include "flannel.refuse" $faults -}}
{{- /* No IPv4 network beside an IPv6 one means none, not the default. */ -}}
{{- if and $values.podCidrv6 (or (not (hasKey $values "podCidr")) (kindIs "invalid" $values.podCidr)) }}{{ $_ := set $values "podCidr" "" }}{{ end -}}
{{- include "flannel.fill" (dict "into" $values "from" $defaults) -}}
{{- range $path, $kind := include "flannel.kinds" . | fromYaml -}}
  {{- $parts := splitList "." $path -}}
  {{- $at := $values }}{{ $from := $defaults -}}
  {{- range initial $parts }}{{ $at = get $at . }}{{ $from = get $from . | default dict }}{{ end -}}
  {{- $key := last $parts -}}
  {{- $default := get $from $key -}}
  {{- /* Empty means none here, though there is a default. */ -}}
  {{- if has $path (list "podCidr" "flannel.priorityClassName") }}{{ $default = "" }}{{ end -}}
  {{- if hasKey $at $key }}{{ include "flannel.convert" (dict "at" $at "key" $key "kind" $kind "path" $path "default" $default "faults" $faults) }}{{ end -}}
{{- end -}}
{{- include "flannel.refuse" $faults -}}
{{- $_ := set $values "valuesAreRead" true -}}
{{- end -}}
{{- end }}

{{/* Adds what `from` has and `into` lacks, at every depth; a null counts as missing. */}}
{{- define "flannel.fill" -}}
{{- $into := .into -}}
{{- range $key, $default := .from -}}
{{- if or (not (hasKey $into $key)) (kindIs "invalid" (get $into $key)) -}}
{{- $_ := set $into $key $default -}}
{{- else if and (kindIs "map" $default) (kindIs "map" (get $into $key)) -}}
{{- include "flannel.fill" (dict "into" (get $into $key) "from" $default) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* A probe of flanneld's own port: what the user gives, with the address unless they probe something else. */}}
{{- define "flannel.probe" -}}
{{- $get := dict "path" .path "port" "healthz" -}}
{{- if .host }}{{ $_ := set $get "host" .host }}{{ end -}}
{{- $own := or (hasKey .user "httpGet") (hasKey .user "exec") (hasKey .user "tcpSocket") (hasKey .user "grpc") -}}
{{- toYaml ($own | ternary .user (merge (dict "httpGet" $get) .user)) -}}
{{- end }}

{{/* "true" for true, else nothing. */}}
{{- define "flannel.true" -}}
{{- if eq (toString .) "true" }}true{{ end -}}
{{- end }}

{{/*
A container's security context: what the user gives, completed with no rights but the capabilities in `add`, which a
list of the user's extends.
*/}}
{{- define "flannel.securityContext" -}}
{{- $context := deepCopy .user -}}
{{- $given := dig "capabilities" "add" list $context -}}
{{- $add := concat .add $given | uniq -}}
{{- $capabilities := dict "drop" (list "ALL") -}}
{{- if $add }}{{ $_ := set $capabilities "add" $add }}{{ end -}}
{{- if $given }}{{ $_ := set $context.capabilities "add" $add }}{{ end -}}
{{- $privileged := include "flannel.true" $context.privileged -}}
{{- /* The API server refuses to deny the escalation of privileges to a container that has them all. */ -}}
{{- $everything := or $privileged (has "SYS_ADMIN" $add) (has "CAP_SYS_ADMIN" $add) (has "ALL" $add) -}}
{{- $ours := dict "readOnlyRootFilesystem" true "capabilities" $capabilities -}}
{{- if not $everything }}{{ $_ := set $ours "allowPrivilegeEscalation" false }}{{ end -}}
{{- if not $privileged }}{{ $_ := set $ours "seccompProfile" (dict "type" "RuntimeDefault") }}{{ end -}}
{{- include "flannel.fill" (dict "into" $context "from" $ours) -}}
{{- toYaml $context -}}
{{- end }}
