{{/* Labels of every object. `app` and `tier` are what upstream's objects have: they select its pods too. */}}
{{- define "flannel.labels" -}}
app: flannel
k8s-app: flannel
tier: node
{{- with .Values.global.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/*
"ignore" if the image is one that upstream publishes, which lacks the programs that this chart starts, or if the tag is
one of upstream's and no repository is given; "refuse" if it looks like a copy of upstream's in another registry; else
nothing.
*/}}
{{- define "flannel.foreignImage" -}}
{{- $image := .Values.flannel.image -}}
{{- $repository := $image.repository -}}
{{- $upstreamTag := regexMatch "^v?0\\.([7-9]|1[0-9]|2[0-9])\\." (toString $image.tag) -}}
{{- if regexMatch "^((ghcr\\.io/flannel-io|quay\\.io/coreos|(docker\\.io/)?flannel|(docker\\.io/)?flannelcni)/flannel|(docker\\.io/)?rancher/(hardened-flannel|mirrored-flannelcni-flannel|mirrored-flannel-io-flannel))$" $repository -}}
ignore
{{- else if and $upstreamTag (eq $repository (include "flannel.defaults" . | fromYaml).flannel.image.repository) (ne (toString $image.tag) (printf "v%s" .Chart.AppVersion)) (not $image.digest) -}}
ignore
{{- else if and $upstreamTag (regexMatch "(flannel-io/flannel|coreos/flannel|flannelcni/flannel|flannel/flannel|hardened-flannel|mirrored-flannelcni-flannel|mirrored-flannel-io-flannel)$" $repository) -}}
refuse
{{- end -}}
{{- end }}

{{- define "flannel.image" -}}
{{- $image := .Values.flannel.image -}}
{{- $foreign := include "flannel.foreignImage" . -}}
{{- if eq $foreign "refuse" -}}
{{- fail (printf "flannel.image %s:%s: this looks like upstream's image, which does not hold the programs that this chart starts. Write flannel.image.repository and flannel.image.tag of a flannel-rs image (made by `make image`), for instance registry.example/flannel-rs/flannel and v%s" $image.repository (toString $image.tag) .Chart.AppVersion) -}}
{{- end -}}
{{- if eq $foreign "ignore" -}}
{{- $image = (include "flannel.defaults" . | fromYaml).flannel.image -}}
{{- end -}}
{{- $repository := $image.repository -}}
{{- /* localhost/ says that the image is in no registry. */ -}}
{{- with .Values.global.imageRegistry }}{{ $repository = printf "%s/%s" . (trimPrefix "localhost/" $repository) }}{{ end -}}
{{- if $image.digest -}}
{{ $repository }}@{{ $image.digest }}
{{- else -}}
{{ $repository }}:{{ $image.tag | default (printf "v%s" .Chart.AppVersion) }}
{{- end -}}
{{- end }}

{{/* The annotations' prefix as flanneld completes it. */}}
{{- define "flannel.annotationPrefix" -}}
{{- $prefix := .Values.flannel.annotationPrefix -}}
{{- if not (contains "/" $prefix) }}{{ $prefix }}/
{{- else if or (hasSuffix "/" $prefix) (hasSuffix "-" $prefix) }}{{ $prefix }}
{{- else }}{{ $prefix }}-
{{- end }}
{{- end }}

{{/* Where /healthz, /readyz and /metrics listen. */}}
{{- define "flannel.healthzIp" -}}
{{- if .Values.flannel.healthz.ip -}}
{{ .Values.flannel.healthz.ip }}
{{- else if or (include "flannel.true" .Values.metrics.enabled) (include "flannel.true" .Values.metrics.podMonitor.enabled) -}}
0.0.0.0
{{- else -}}
127.0.0.1
{{- end -}}
{{- end }}
