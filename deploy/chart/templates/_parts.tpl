{{- define "monohull.labels" -}}
app.kubernetes.io/name: monohull
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* Containers that speak with the API server: without rights on the node, and the only ones with a token. */}}
{{- define "monohull.kubectl" -}}
image: {{ .Values.kubectlImage }}
imagePullPolicy: {{ .Values.imagePullPolicy }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
  seccompProfile: {type: RuntimeDefault}
resources: {requests: {cpu: 10m, memory: 32Mi}, limits: {memory: 128Mi}}
volumeMounts:
  - {name: token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end }}

{{- define "monohull.token" -}}
name: token
projected:
  defaultMode: 0444
  sources:
    - serviceAccountToken: {path: token, expirationSeconds: 3600}
    - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
{{- end }}

{{- /* A pod that runs `monohull` on its node and then gives the node a label: (dict "root" $ "arguments" LIST "label" VALUE). */}}
{{- define "monohull.pod" -}}
serviceAccountName: {{ .root.Release.Name }}-node
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: 5
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
initContainers:
  - name: monohull
    image: {{ .root.Values.image }}
    imagePullPolicy: {{ .root.Values.imagePullPolicy }}
    args: {{ toJson .arguments }}
    # Root, because the node's files are; neither privileged nor in the node's namespaces. chroot(2) is for the node's systemctl.
    securityContext:
      runAsUser: 0
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL], add: [CHOWN, FOWNER, SYS_CHROOT]}
      seccompProfile: {type: RuntimeDefault}
      seLinuxOptions: {type: spc_t}
    resources: {requests: {cpu: 10m, memory: 32Mi}, limits: {memory: 128Mi}}
    volumeMounts:
      - {name: host, mountPath: /host}
      {{- if .kvm }}
      # Not opened: a node without it must not get further.
      - {name: kvm, mountPath: /kvm, readOnly: true}
      {{- end }}
  - name: label
    args: [label, node, $(NODE), monohull.dev/runtime={{ .label }}, --overwrite]
    env:
      - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    {{- include "monohull.kubectl" .root | nindent 4 }}
containers:
  - name: pause
    image: {{ .root.Values.pauseImage }}
    imagePullPolicy: {{ .root.Values.imagePullPolicy }}
    securityContext:
      runAsNonRoot: true
      runAsUser: 65532
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL]}
      seccompProfile: {type: RuntimeDefault}
    resources: {requests: {cpu: 1m, memory: 4Mi}, limits: {memory: 16Mi}}
volumes:
  - {name: host, hostPath: {path: /, type: Directory}}
  {{- if .kvm }}
  - {name: kvm, hostPath: {path: /dev/kvm, type: CharDevice}}
  {{- end }}
  - {{ include "monohull.token" .root | indent 4 | trim }}
{{- end }}

{{- /* An account that reads and labels nodes: (dict "root" $ "name" NAME "verbs" LIST "annotations" TEXT). RBAC knows neither "its own
node" nor "this label": policy.yaml does. */}}
{{- define "monohull.account" -}}
{{- $name := printf "%s-%s" .root.Release.Name .name -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ $name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "monohull.labels" .root | nindent 4 }}
  {{- with .annotations }}{{ . | nindent 2 }}{{ end }}
automountServiceAccountToken: false
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {{ $name }}
  labels: {{- include "monohull.labels" .root | nindent 4 }}
  {{- with .annotations }}{{ . | nindent 2 }}{{ end }}
rules:
  - {apiGroups: [""], resources: [nodes], verbs: {{ toJson .verbs }}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ $name }}
  labels: {{- include "monohull.labels" .root | nindent 4 }}
  {{- with .annotations }}{{ . | nindent 2 }}{{ end }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {{ $name }}}
subjects:
  - {kind: ServiceAccount, name: {{ $name }}, namespace: {{ .root.Release.Namespace }}}
{{- end }}
