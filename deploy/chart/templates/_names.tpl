{{/* Labels of every object. `app` and `tier` are what upstream's objects have: they select its pods too. */}}
{{- define "flannel.labels" -}}
app: flannel
k8s-app: flannel
tier: node
{{- with .Values.global.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "flannel.image" -}}
{{ .Values.flannel.image.repository }}:{{ .Values.flannel.image.tag }}
{{- end }}

{{/* The annotations' prefix as flanneld completes it. */}}
{{- define "flannel.annotationPrefix" -}}
{{- $prefix := .Values.flannel.annotationPrefix -}}
{{- if not (contains "/" $prefix) }}{{ $prefix }}/
{{- else if or (hasSuffix "/" $prefix) (hasSuffix "-" $prefix) }}{{ $prefix }}
{{- else }}{{ $prefix }}-
{{- end }}
{{- end }}
