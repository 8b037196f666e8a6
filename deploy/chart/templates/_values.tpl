{{/*
Completes .Values in place, so that a release whose values are those of another chart or of an older version of
this one (helm upgrade --reuse-values) renders too. To be included first in every template.
*/}}
{{- define "flannel.values" -}}
{{- /* No IPv4 network beside an IPv6 one means none, not the default. */ -}}
{{- if and .Values.podCidrv6 (or (not (hasKey .Values "podCidr")) (kindIs "invalid" .Values.podCidr)) }}{{ $_ := set .Values "podCidr" "" }}{{ end -}}
{{- include "flannel.fill" (dict "into" .Values "from" (include "flannel.defaults" . | fromYaml)) -}}
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

{{/* "true" for true and "true", else nothing: values given as strings mean what they say. */}}
{{- define "flannel.true" -}}
{{- if eq (toString .) "true" }}true{{ end -}}
{{- end }}

{{/* A container's security context: what the user gives, completed with no rights but the capabilities in `add`. */}}
{{- define "flannel.securityContext" -}}
{{- $capabilities := dict "drop" (list "ALL") -}}
{{- with .add }}{{ $_ := set $capabilities "add" . }}{{ end -}}
{{- $ours := dict "allowPrivilegeEscalation" false "readOnlyRootFilesystem" true -}}
{{- $_ := set $ours "seccompProfile" (dict "type" "RuntimeDefault") -}}
{{- $_ := set $ours "capabilities" $capabilities -}}
{{- $context := deepCopy .user -}}
{{- include "flannel.fill" (dict "into" $context "from" $ours) -}}
{{- toYaml $context -}}
{{- end }}
