{{/*
What each value is. A value may be written in every way that leaves no doubt, such as numbers and booleans as strings;
what remains is a fault, with the sentence to write instead. Values that are not listed are copied as they are.
*/}}
{{- define "flannel.kinds" -}}
enabled: bool
createNamespace: bool
podCidr: cidr4
podCidrv6: cidr6
global.imagePullSecrets: secrets
global.imageRegistry: registry
global.commonLabels: strings
flannel.image.repository: text
flannel.image.tag: text
flannel.image.digest: digest
flannel.image.pullPolicy: word Always IfNotPresent Never
flannel.args: args
flannel.extraEnv: env
flannel.backend: word vxlan host-gw ipip wireguard udp ipsec extension alloc
flannel.backendPort: number 65535
flannel.backendPortv6: number 65535
flannel.mtu: number 65535
flannel.vni: number 16777215
flannel.GBP: bool
flannel.directRouting: bool
flannel.psk: secret
flannel.pskSecret.name: text
flannel.pskSecret.wireguardKey: text
flannel.pskSecret.ipsecKey: text
flannel.tunnelMode: word separate auto ipv4 ipv6
flannel.keepaliveInterval: number 65535
flannel.backendConfig: map
flannel.charonSocket: path
flannel.netConf: map
flannel.enableNFTables: bool
flannel.legacyIptables: bool
flannel.annotationPrefix: prefix
flannel.cniBinDir: path
flannel.cniConfDir: path
flannel.skipCNIConfigInstallation: bool
flannel.installCapabilities: words DAC_OVERRIDE
flannel.cniConf: json
flannel.resources: map
flannel.healthz.ip: ip
flannel.healthz.port: number 65535
flannel.healthz.livenessProbe: map
flannel.healthz.readinessProbe: map
flannel.tolerations: maps
flannel.nodeSelector: strings
flannel.architectures: words amd64 arm64 arm riscv64 ppc64le s390x
flannel.affinity: map
flannel.priorityClassName: text
flannel.securityContext: rights
flannel.podSecurityContext: map
flannel.extraVolumes: maps
flannel.extraVolumeMounts: maps
flannel.logFormat: word text json
flannel.updateStrategy: strategy
flannel.restartOnConfigChange: bool
flannel.podLabels: strings
flannel.podAnnotations: strings
rbac.events: bool
admissionPolicy.enabled: bool
serviceAccount.annotations: strings
metrics.enabled: bool
metrics.podMonitor.enabled: bool
metrics.podMonitor.interval: interval
metrics.podMonitor.labels: strings
metrics.prometheusRule.enabled: bool
metrics.prometheusRule.labels: strings
metrics.dashboard.enabled: bool
metrics.dashboard.labels: strings
netpol.enabled: bool
netpol.args: args
netpol.image.repository: text
netpol.image.tag: text
{{- end }}

{{/* Names that are known besides those of `flannel.kinds`: upstream's chart and its forks have them. */}}
{{- define "flannel.ignored" -}}
flannel: [image_cni, flannel_cni, macPrefix]
{{- end }}

{{/* Converts .at's value .key, of the kind .kind, in place; or adds to .faults what to write at .path. */}}
{{- define "flannel.convert" -}}
{{- $v := get .at .key -}}
{{- $words := splitList " " .kind -}}
{{- $kind := first $words -}}
{{- $words = rest $words -}}
{{- $is := kindOf $v -}}
{{- $number := has $is (list "float64" "int64" "int") -}}
{{- $text := eq $is "string" -}}
{{- $new := $v -}}
{{- $expected := "" -}}
{{- if and $text (not $v) }}{{ $new = .default }}{{ $is = "default" }}{{ end -}}

{{- if has $is (list "default" "invalid") -}}
{{- else if eq $kind "bool" -}}
  {{- $word := lower (toString $v) -}}
  {{- if has $word (list "true" "yes" "on" "1") }}{{ $new = true }}
  {{- else if has $word (list "false" "no" "off" "0") }}{{ $new = false }}
  {{- else }}{{ $expected = "true or false" }}{{ end -}}
{{- else if eq $kind "number" -}}
  {{- $max := first $words | atoi -}}
  {{- $expected = printf "a whole number from 0 to %d" $max -}}
  {{- if and $text (regexMatch "^ *[0-9]{1,9} *$" $v) }}{{ $new = trim $v | atoi }}{{ $number = true }}{{ end -}}
  {{- if and $number (eq (float64 $new) (float64 (int64 $new))) (ge (int64 $new) 0) (le (int64 $new) (int64 $max)) -}}
    {{- $new = int64 $new }}{{ $expected = "" -}}
  {{- end -}}
{{- else if eq $kind "word" -}}
  {{- $expected = printf "one of %s" (join ", " $words) -}}
  {{- range $words }}{{ if eq (lower .) (lower (trim (toString $v))) }}{{ $new = . }}{{ $expected = "" }}{{ end }}{{ end -}}
  {{- if and $expected (eq $v "wireguard-native") }}{{ $expected = "wireguard, which is what k3s calls wireguard-native" }}{{ end -}}
  {{- if and $expected (eq $v "tencent-vpc") }}{{ $expected = printf "%s; for route tables of clouds see docs/backends.md" $expected }}{{ end -}}
{{- else if eq $kind "words" -}}
  {{- if $text }}{{ $new = regexSplit "[ ,]+" (trim $v) -1 }}{{ $is = "slice" }}{{ end -}}
  {{- if ne $is "slice" }}{{ $new = list }}{{ $expected = "?" }}{{ end -}}
  {{- range $new }}{{ if not (has (toString .) $words) }}{{ $expected = "?" }}{{ end }}{{ end -}}
  {{- if $expected }}{{ $expected = printf "a list of these: %s" (join ", " $words) }}{{ end -}}
{{- else if eq $kind "text" -}}
  {{- if $number }}{{ $expected = "a text: write it between quotes, since YAML reads 1.10 as 1.1" }}
  {{- else if not $text }}{{ $expected = "a text" }}{{ end -}}
{{- else if eq $kind "secret" -}}
  {{- if or (and $number (eq (int64 $v) 0)) (eq (toString $v) "0") }}{{ $new = "" }}
  {{- else if not $text }}{{ $expected = "a text between quotes" }}{{ end -}}
{{- else if eq $kind "args" -}}
  {{- $example := "a list with one flag each, such as [--ip-masq, --kube-subnet-mgr]" -}}
  {{- if eq $is "slice" -}}
    {{- $new = list -}}
    {{- range $v -}}
      {{- if has (kindOf .) (list "map" "slice" "invalid") }}{{ $expected = $example }}
      {{- else if regexMatch "^-[^ =]+ +-" (toString .) }}{{ $expected = $example }}
      {{- else }}{{ $new = append $new (toString .) }}{{ end -}}
    {{- end -}}
  {{- else }}{{ $expected = $example }}{{ end -}}
{{- else if eq $kind "env" -}}
  {{- $expected = "a list, such as [{name: KUBERNETES_SERVICE_HOST, value: 10.0.0.1}]" -}}
  {{- if eq $is "map" -}}
    {{- $new = list }}{{ $expected = "" -}}
    {{- range $name, $value := $v }}{{ $new = append $new (dict "name" $name "value" (toString $value)) }}{{ end -}}
  {{- else if eq $is "slice" -}}
    {{- $new = list }}{{ $wrong := false -}}
    {{- range $v -}}
      {{- if and (kindIs "map" .) (hasKey . "name") -}}
        {{- if has (kindOf .value) (list "float64" "int64" "bool") }}{{ $new = append $new (merge (dict "value" (toString .value)) .) }}
        {{- else }}{{ $new = append $new . }}{{ end -}}
      {{- else }}{{ $wrong = true }}{{ end -}}
    {{- end -}}
    {{- if not $wrong }}{{ $expected = "" }}{{ end -}}
  {{- end -}}
{{- else if eq $kind "secrets" -}}
  {{- if $text }}{{ $v = list $v }}{{ $is = "slice" }}{{ end -}}
  {{- $new = list -}}
  {{- $example := "a list, such as [{name: my-secret}]" -}}
  {{- if eq $is "slice" -}}
    {{- range $v -}}
      {{- if kindIs "string" . }}{{ $new = append $new (dict "name" .) }}
      {{- else if and (kindIs "map" .) (kindIs "string" (get . "name")) }}{{ $new = append $new . }}
      {{- else }}{{ $expected = $example }}{{ end -}}
    {{- end -}}
  {{- else }}{{ $expected = $example }}{{ end -}}
{{- else if eq $kind "strings" -}}
  {{- if eq $is "map" -}}
    {{- $new = dict -}}
    {{- range $name, $value := $v -}}
      {{- if has (kindOf $value) (list "map" "slice") }}{{ $expected = printf "a text for %s" $name }}
      {{- else if kindIs "float64" $value }}{{ $_ := set $new $name (ternary (int64 $value | toString) (toString $value) (eq $value (float64 (int64 $value)))) }}
      {{- else if not (kindIs "invalid" $value) }}{{ $_ := set $new $name (toString $value) }}{{ end -}}
    {{- end -}}
  {{- else }}{{ $expected = "names with values, such as {name: value}" }}{{ end -}}
{{- else if eq $kind "map" -}}
  {{- if $text }}{{ $new = fromJson $v }}{{ if not (hasKey $new "Error") }}{{ $is = "map" }}{{ end }}{{ end -}}
  {{- if ne $is "map" }}{{ $expected = "names with values, such as {name: value}" }}{{ end -}}
{{- else if eq $kind "maps" -}}
  {{- if and (eq $is "map") $v }}{{ $new = list $v }}{{ else if eq $is "map" }}{{ $new = list }}{{ end -}}
  {{- range ternary $new (list "") (kindIs "slice" $new) }}{{ if not (kindIs "map" .) }}{{ $expected = "a list, such as [{name: value}]" }}{{ end }}{{ end -}}
{{- else if eq $kind "rights" -}}
  {{- $expected = "a security context, such as {capabilities: {add: [SYS_ADMIN]}}" -}}
  {{- if eq $is "map" -}}
    {{- $capabilities := get $v "capabilities" | default dict -}}
    {{- if kindIs "map" $capabilities -}}
      {{- $right := true -}}
      {{- $lists := dict -}}
      {{- range $name, $list := $capabilities -}}
        {{- if kindIs "string" $list }}{{ $list = regexSplit "[ ,]+" (trim $list) -1 }}{{ end -}}
        {{- if kindIs "slice" $list }}{{ $_ := set $lists $name $list }}
        {{- else if not (kindIs "invalid" $list) }}{{ $right = false }}{{ end -}}
      {{- end -}}
      {{- if $right }}{{ $expected = "" }}{{ end -}}
      {{- if and $right $lists }}{{ $new = merge (dict "capabilities" $lists) (omit $v "capabilities") }}{{ else }}{{ $new = omit $v "capabilities" }}{{ end -}}
    {{- end -}}
  {{- end -}}
{{- else if eq $kind "strategy" -}}
  {{- if $text }}{{ $new = dict "type" $v }}{{ $is = "map" }}{{ end -}}
  {{- if ne $is "map" }}{{ $expected = "a strategy, such as {type: OnDelete}" }}
  {{- else if eq (toString (get $new "type")) "OnDelete" }}{{ $new = dict "type" "OnDelete" }}
  {{- else }}{{ include "flannel.fill" (dict "into" $new "from" .default) }}{{ end -}}
{{- else if eq $kind "path" -}}
  {{- if not (and $text (hasPrefix "/" (toString $v))) }}{{ $expected = "an absolute path" }}{{ end -}}
{{- else if eq $kind "prefix" -}}
  {{- if not (regexMatch "^[^/]+(/[^/]*)?$" (toString $v)) }}{{ $expected = "a domain, such as flannel.alpha.coreos.com, with one / at most" }}{{ end -}}
{{- else if eq $kind "registry" -}}
  {{- if $text }}{{ $new = regexReplaceAll "^https?://" $v "" | trimSuffix "/" }}{{ else }}{{ $expected = "a registry, such as registry.example:5000" }}{{ end -}}
{{- else if eq $kind "digest" -}}
  {{- if not (regexMatch "^sha256:[0-9a-f]{64}$" (toString $v)) }}{{ $expected = "sha256: and 64 hexadecimal digits" }}{{ end -}}
{{- else if eq $kind "cidr4" -}}
  {{- $octet := "(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])" -}}
  {{- $new = trim (toString $v) -}}
  {{- if or (eq $is "slice") (contains "," $new) }}{{ $expected = "the IPv4 network alone: write podCidr: 10.244.0.0/16 and podCidrv6: fd00:10:244::/56" }}
  {{- else if contains ":" $new }}{{ $expected = "an IPv4 network: write podCidr: \"\" and the IPv6 network in podCidrv6" }}
  {{- else if not (regexMatch (printf "^%s(\\.%s){3}/(3[0-2]|[12]?[0-9])$" $octet $octet) $new) }}{{ $expected = "an IPv4 network, such as 10.244.0.0/16, or nothing" }}{{ end -}}
{{- else if eq $kind "cidr6" -}}
  {{- $new = trim (toString $v) -}}
  {{- if not (regexMatch "^[0-9a-fA-F:.]*:[0-9a-fA-F:.]*/(12[0-8]|1[01][0-9]|[1-9]?[0-9])$" $new) }}{{ $expected = "an IPv6 network, such as fd00:10:244::/56, or nothing" }}{{ end -}}
{{- else if eq $kind "ip" -}}
  {{- $new = trim (toString $v) -}}
  {{- if not (regexMatch "^([0-9]{1,3}(\\.[0-9]{1,3}){3}|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*)$" $new) }}{{ $expected = "an address, such as 127.0.0.1 or 0.0.0.0" }}{{ end -}}
{{- else if eq $kind "interval" -}}
  {{- if $number }}{{ $new = printf "%ds" (int64 $v) }}
  {{- else if not (regexMatch "^([0-9]+(ms|s|m|h))+$" (toString $v)) }}{{ $expected = "a time, such as 30s" }}{{ end -}}
{{- else if eq $kind "json" -}}
  {{- if eq $is "map" }}{{ $new = toPrettyJson $v }}
  {{- else if not $text }}{{ $expected = "JSON, as in deploy/chart/values.yaml" }}
  {{- else if hasKey (fromJson $v) "Error" }}{{ $expected = printf "JSON (%s)" (get (fromJson $v) "Error") }}{{ end -}}
{{- end -}}

{{- if $expected -}}
  {{- /* A secret is nobody else's business. */ -}}
  {{- $shown := ternary "" (printf " is %s" (toJson $v | trunc 80)) (eq $kind "secret") -}}
  {{- $_ := set .faults .path (printf "%s%s: expected %s" .path $shown $expected) -}}
{{- else if not (kindIs "invalid" $new) -}}
  {{- $_ := set .at .key $new -}}
{{- end -}}
{{- end }}

{{/* Makes every part of the values a map, and names what is not known. */}}
{{- define "flannel.parts" -}}
{{- $faults := .faults -}}
{{- $values := .values -}}
{{- $defaults := .defaults -}}
{{- $known := dict -}}
{{- range $path, $kind := include "flannel.kinds" . | fromYaml -}}
  {{- $parts := splitList "." $path -}}
  {{- range $depth, $_ := $parts -}}
    {{- $above := slice $parts 0 $depth | join "." -}}
    {{- $_ := set $known $above (append (get $known $above | default list) (index $parts $depth) | uniq) -}}
  {{- end -}}
{{- end -}}
{{- $ignored := include "flannel.ignored" . | fromYaml -}}
{{- range $path := keys $known | sortAlpha -}}
  {{- $at := $values }}{{ $above := $values }}{{ $key := "" -}}
  {{- range splitList "." $path -}}
    {{- if . }}{{ $above = $at }}{{ $key = . }}{{ $at = get (ternary $above dict (kindIs "map" $above)) . }}{{ end -}}
  {{- end -}}
  {{- if and $key (kindIs "map" $above) -}}
    {{- $switch := ternary "events" "enabled" (eq $path "rbac") -}}
    {{- if or (kindIs "invalid" $at) (eq (toString $at) "") }}{{ $at = dict }}{{ $_ := set $above $key $at }}
    {{- else if and (kindIs "bool" $at) (has $switch (get $known $path)) }}{{ $at = dict $switch $at }}{{ $_ := set $above $key $at }}{{ end -}}
    {{- if not (kindIs "map" $at) -}}
      {{- $_ := set $faults $path (printf "%s is %s: expected values below it: %s" $path (toJson $at | trunc 80) (get $known $path | sortAlpha | join ", ")) -}}
    {{- end -}}
  {{- end -}}
  {{- /* `global` is shared with other charts. */ -}}
  {{- if and (kindIs "map" $at) (ne $path "global") -}}
    {{- range $name, $_ := $at -}}
      {{- if not (has $name (concat (get $known $path) (get $ignored $path | default list))) -}}
        {{- $full := ternary $name (printf "%s.%s" $path $name) (eq $path "") -}}
        {{- $hint := ternary "; options of a backend belong in flannel.backendConfig, other keys of net-conf.json in flannel.netConf" "" (eq $path "flannel") -}}
        {{- $_ := set $faults $full (printf "%s: this chart has no such value. It has %s%s" $full (get $known $path | sortAlpha | join ", ") $hint) -}}
      {{- end -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- end }}

{{- define "flannel.refuse" -}}
{{- if . }}{{ fail (printf "these values cannot be used:\n  %s\n" (values . | sortAlpha | join "\n  ")) }}{{ end -}}
{{- end }}
