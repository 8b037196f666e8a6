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

{{/*
A container's security context: what the user gives, completed with no rights but the capabilities in `add`, which a
list of the user's extends.
*/}}
{{- define "flannel.securityContext" -}}
{{- $context := deepCopy .user -}}
{{- $given := dig "capabilities" "add" list $context | default list -}}
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
