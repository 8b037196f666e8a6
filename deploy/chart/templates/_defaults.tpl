{{/* What values.yaml says, for releases whose values come from elsewhere. A test compares the two. */}}
{{- define "flannel.defaults" -}}
global:
  imagePullSecrets: []
  imageRegistry: ""
  commonLabels: {}
createNamespace: false
podCidr: "10.244.0.0/16"
podCidrv6: ""
flannel:
  image:
    repository: localhost/flannel-rs/flannel
    tag: ""
    digest: ""
    pullPolicy: IfNotPresent
  args:
    - --ip-masq
    - --kube-subnet-mgr
  extraEnv: []
  backend: vxlan
  backendPort: 0
  mtu: 0
  vni: 0
  GBP: false
  directRouting: false
  backendConfig: {}
  pskSecret:
    name: ""
    wireguardKey: ""
    ipsecKey: ""
  charonSocket: /run/flannel/charon.vici
  netConf: {}
  enableNFTables: false
  legacyIptables: true
  annotationPrefix: flannel.alpha.coreos.com
  cniBinDir: /opt/cni/bin
  cniConfDir: /etc/cni/net.d
  skipCNIConfigInstallation: false
  installCapabilities: []
  cniConf: |
    {
      "name": "cbr0",
      "cniVersion": "1.0.0",
      "plugins": [
        {
          "type": "flannel",
          "delegate": {
            "hairpinMode": true,
            "isDefaultGateway": true
          }
        },
        {
          "type": "portmap",
          "capabilities": {
            "portMappings": true
          }
        }
      ]
    }
  resources:
    requests:
      cpu: 50m
      memory: 32Mi
  healthz:
    ip: ""
    port: 8081
    livenessProbe:
      initialDelaySeconds: 10
      periodSeconds: 30
      timeoutSeconds: 5
    readinessProbe:
      periodSeconds: 5
      timeoutSeconds: 5
  tolerations:
    - effect: NoExecute
      operator: Exists
    - effect: NoSchedule
      operator: Exists
  nodeSelector:
    kubernetes.io/os: linux
  architectures: [amd64, arm64, arm, riscv64, ppc64le, s390x]
  affinity: {}
  priorityClassName: system-node-critical
  securityContext: {}
  podSecurityContext: {}
  extraVolumes: []
  extraVolumeMounts: []
  logFormat: text
  updateStrategy:
    type: RollingUpdate
    rollingUpdate:
      maxUnavailable: 10%
  restartOnConfigChange: false
  podLabels: {}
  podAnnotations: {}
rbac:
  events: true
admissionPolicy:
  enabled: false
serviceAccount:
  annotations: {}
metrics:
  enabled: false
  podMonitor:
    enabled: false
    interval: 30s
    labels: {}
  prometheusRule:
    enabled: false
    labels: {}
  dashboard:
    enabled: false
    labels:
      grafana_dashboard: "1"
netpol:
  enabled: false
  args:
    - --hostname-override=$(MY_NODE_NAME)
    - --v=2
  image:
    repository: registry.k8s.io/networking/kube-network-policies
    tag: v1.0.0
{{- end }}
