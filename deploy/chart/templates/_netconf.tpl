{{/* net-conf.json. Built as an object and written as JSON at the end, so that it is JSON whatever the values. */}}
{{- define "flannel.netConf" -}}
{{- $f := .Values.flannel -}}
{{- $type := $f.backend -}}
{{- $wireguard := eq $type "wireguard" -}}
{{- $vxlan := eq $type "vxlan" -}}
{{- $b := dict "Type" $type -}}
{{- if and (int $f.backendPort) (or $vxlan (eq $type "udp")) }}{{ $_ := set $b "Port" (int $f.backendPort) }}{{ end -}}
{{- if and (int $f.backendPort) $wireguard }}{{ $_ := set $b "ListenPort" (int $f.backendPort) }}{{ end -}}
{{- if and (int $f.backendPortv6) $wireguard }}{{ $_ := set $b "ListenPortV6" (int $f.backendPortv6) }}{{ end -}}
{{- if and (int $f.mtu) (or $vxlan $wireguard) }}{{ $_ := set $b "MTU" (int $f.mtu) }}{{ end -}}
{{- if and (int $f.vni) $vxlan }}{{ $_ := set $b "VNI" (int $f.vni) }}{{ end -}}
{{- if and (include "flannel.true" $f.GBP) $vxlan }}{{ $_ := set $b "GBP" true }}{{ end -}}
{{- if and (include "flannel.true" $f.directRouting) (or $vxlan (eq $type "ipip")) }}{{ $_ := set $b "DirectRouting" true }}{{ end -}}
{{- if and $f.psk (or $wireguard (eq $type "ipsec")) }}{{ $_ := set $b "PSK" $f.psk }}{{ end -}}
{{- if and $f.tunnelMode $wireguard }}{{ $_ := set $b "Mode" $f.tunnelMode }}{{ end -}}
{{- if and (int $f.keepaliveInterval) $wireguard }}{{ $_ := set $b "PersistentKeepaliveInterval" (int $f.keepaliveInterval) }}{{ end -}}
{{- range $key, $value := $f.backendConfig }}{{ $_ := set $b $key $value }}{{ end -}}

{{- $c := dict "Backend" $b -}}
{{- if .Values.podCidr }}{{ $_ := set $c "Network" .Values.podCidr }}{{ else }}{{ $_ := set $c "EnableIPv4" false }}{{ end -}}
{{- if .Values.podCidrv6 }}{{ $_ := set (set $c "EnableIPv6" true) "IPv6Network" .Values.podCidrv6 }}{{ end -}}
{{- if include "flannel.true" $f.enableNFTables }}{{ $_ := set $c "EnableNFTables" true }}{{ end -}}
{{- range $key, $value := $f.netConf }}{{ $_ := set $c $key $value }}{{ end -}}
{{- if not (or .Values.podCidr .Values.podCidrv6) }}{{ fail "podCidr and podCidrv6 are both empty: give the cluster's pod network" }}{{ end -}}
{{- toPrettyJson $c -}}
{{- end }}
