# shellcheck shell=bash disable=SC2154
# What pods mount.

case_configuration_in_files_and_variables_follows_its_changes() {
    apply << 'YAML'
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: ConfigMap, metadata: {name: c}, data: {key: one}}
- {apiVersion: v1, kind: Secret, metadata: {name: s}, stringData: {word: secret}}
YAML
    pod p << 'YAML'
volumes: [{name: config, configMap: {name: c}}, {name: secret, secret: {secretName: s, defaultMode: 0400}},
  {name: all, projected: {sources: [{configMap: {name: c}}, {secret: {name: s}}, {serviceAccountToken: {path: token}},
    {downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}]}}],
containers: [{name: main, image: IMAGE, command: [sleep, "3600"], envFrom: [{configMapRef: {name: c}}],
  env: [{name: WORD, valueFrom: {secretKeyRef: {name: s, key: word}}}], volumeMounts: [
  {name: config, mountPath: /config}, {name: secret, mountPath: /secret}, {name: all, mountPath: /all}]}]
YAML
    ready p
    is variables 'one secret' in_pod p sh -c 'echo $key $WORD'
    is files $'one\nsecret\none\nsecret' in_pod p sh -c 'cat /config/key; echo; cat /secret/word; echo; cat /all/key; echo; cat /all/word'
    is 'mode of the secret' 400 in_pod p stat -L -c %a /secret/word
    is labels 'app="p"' in_pod p cat /all/labels
    is 'dots in the token' 2 in_pod p sh -c 'tr -cd . < /all/token | wc -c'
    k patch configmap c --patch '{"data": {"key": "two"}}' > /dev/null
    k patch secret s --patch '{"stringData": {"word": "changed"}}' > /dev/null
    k label pod p more=yes > /dev/null
    in_pod p timeout 200 sh -c 'until [ "$(cat /config/key /secret/word /all/key)" = twochangedtwo ] && grep -q more /all/labels; do sleep 1; done' ||
        fail "the changes do not arrive: $(in_pod p sh -c 'cat /config/key /secret/word /all/key /all/labels')"
}

case_an_empty_directory_is_shared_by_containers() {
    pod p << 'YAML'
volumes: [{name: work, emptyDir: {}}], containers: [
  {name: one, image: IMAGE, command: [sleep, "3600"], volumeMounts: [{name: work, mountPath: /one}]},
  {name: two, image: IMAGE, command: [sleep, "3600"], volumeMounts: [{name: work, mountPath: /two, readOnly: true}]}]
YAML
    ready p
    k exec p -c one -- sh -c 'echo hello > /one/file'
    is 'the file' hello k exec p -c two -- cat /two/file
    has 'a read-only mount' 'Read-only file system' k exec p -c two -- touch /two/other
}

case_an_empty_directory_of_memory_has_a_limit() {
    pod p << 'YAML'
volumes: [{name: work, emptyDir: {medium: Memory, sizeLimit: 8Mi}}], containers: [
  {name: main, image: IMAGE, command: [sleep, "3600"], volumeMounts: [{name: work, mountPath: /work}]}]
YAML
    ready p
    has 'the file system' tmpfs in_pod p sh -c 'grep " /work " /proc/mounts'
    is size 8192 in_pod p sh -c 'df -k /work | tail -n 1 | awk "{ print \$2 }"'
    has 'more than the limit' 'No space left' in_pod p dd if=/dev/zero of=/work/file bs=1M count=9
}

case_parts_of_volumes() {
    apply <<< '{apiVersion: v1, kind: ConfigMap, metadata: {name: c}, data: {a: "1", b: "2"}}'
    pod p << 'YAML'
volumes: [{name: config, configMap: {name: c}}, {name: work, emptyDir: {}}, {name: memory, emptyDir: {medium: Memory}}],
securityContext: {fsGroup: 4321}, containers: [{name: main, image: IMAGE, command: [sleep, "3600"],
  env: [{name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}], volumeMounts: [
  {name: config, mountPath: /etc/b.conf, subPath: b}, {name: work, mountPath: /logs, subPathExpr: "logs/$(NAME)"},
  {name: work, mountPath: /work}, {name: memory, mountPath: /part, subPath: a/b}, {name: memory, mountPath: /memory}]}]
YAML
    ready p
    is 'a file of a configMap' 2 in_pod p cat /etc/b.conf
    in_pod p sh -c 'echo line > /logs/log'
    is 'a directory of a volume' line in_pod p cat /work/logs/p/log
    in_pod p sh -c 'echo line > /part/file'
    is 'a directory of a volume in memory' line in_pod p cat /memory/a/b/file
    is 'its mode and group' '3777 4321' in_pod p stat -c '%a %g' /part
}

case_host_directories_and_files() {
    on_node "mkdir -p /tmp/host-$class; echo file > /tmp/host-$class/file; echo other > /tmp/host-$class.txt"
    pod p << 'YAML'
volumes: [{name: directory, hostPath: {path: /tmp/host-CLASS, type: Directory}}, {name: file, hostPath: {path: /tmp/host-CLASS.txt, type: File}}],
containers: [{name: main, image: IMAGE, command: [sleep, "3600"], volumeMounts: [{name: directory, mountPath: /host},
  {name: directory, mountPath: /locked, readOnly: true}, {name: file, mountPath: /file}]}]
YAML
    ready p
    is files $'file\nother' in_pod p cat /host/file /file
    in_pod p sh -c 'echo written > /host/new'
    is 'the file on the node' written on_node "cat /tmp/host-$class/new"
    has 'a read-only mount' 'Read-only file system' in_pod p touch /locked/new
    on_node "echo later > /tmp/host-$class/later"
    is 'a later file' later in_pod p cat /host/later
}

case_a_claim_is_bound_to_a_volume_of_files() {
    on_node "mkdir -p /tmp/volume-$class"
    apply << 'YAML'
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: PersistentVolume, metadata: {name: files-CLASS}, spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce],
    storageClassName: files-CLASS, persistentVolumeReclaimPolicy: Retain, local: {path: /tmp/volume-CLASS},
    nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node]}]}]}}}}
- {apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: claim}, spec: {accessModes: [ReadWriteOnce], storageClassName: files-CLASS,
    resources: {requests: {storage: 1Gi}}}}
YAML
    pod p << 'YAML'
volumes: [{name: v, persistentVolumeClaim: {claimName: claim}}], securityContext: {fsGroup: 4321},
containers: [{name: main, image: IMAGE, command: [sleep, "3600"], volumeMounts: [{name: v, mountPath: /v}]}]
YAML
    ready p
    in_pod p sh -c 'echo kept > /v/file'
    is 'the file on the node' 'kept 4321' on_node "echo \$(cat /tmp/volume-$class/file) \$(stat -c %g /tmp/volume-$class/file)"
}

case_a_claim_is_bound_to_a_volume_of_blocks() {
    local device
    device=$(on_node "truncate -s 16M /run/blocks-$class && losetup --find --show /run/blocks-$class")
    sed "s|DEVICE|$device|" << 'YAML' | apply
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: PersistentVolume, metadata: {name: blocks-CLASS}, spec: {capacity: {storage: 16Mi}, accessModes: [ReadWriteOnce],
    volumeMode: Block, storageClassName: blocks-CLASS, persistentVolumeReclaimPolicy: Retain, local: {path: DEVICE},
    nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node]}]}]}}}}
- {apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: claim}, spec: {accessModes: [ReadWriteOnce], volumeMode: Block,
    storageClassName: blocks-CLASS, resources: {requests: {storage: 16Mi}}}}
YAML
    pod p << 'YAML'
volumes: [{name: v, persistentVolumeClaim: {claimName: claim}}],
containers: [{name: main, image: IMAGE, command: [sleep, "3600"], volumeDevices: [{name: v, devicePath: /dev/data}]}]
YAML
    ready p
    in_pod p sh -c 'printf mark | dd of=/dev/data bs=4096 seek=1 conv=fsync 2> /dev/null'
    is 'the size of the device' 16777216 in_pod p sh -c 'blockdev --getsize64 /dev/data'
    k delete pod p --timeout "$patience" > /dev/null || fail "it does not end"
    is 'what is on the device' mark on_node "dd if=$device bs=4096 skip=1 count=1 2> /dev/null | head -c 4"
    on_node "losetup --detach $device"
}
