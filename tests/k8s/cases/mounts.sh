# shellcheck shell=bash disable=SC2154
# Mounts that come from elsewhere than a volume's directory.

case_an_image_as_a_volume() {
    pod p << 'YAML'
volumes: [{name: image, image: {reference: IMAGE}}], containers: [{name: main, image: IMAGE, command: [sleep, "3600"],
  volumeMounts: [{name: image, mountPath: /image}]}]
YAML
    ready p
    in_pod p cmp /bin/busybox /image/bin/busybox || fail "a file of the image is not in the volume"
    has 'a read-only mount' 'Read-only file system' in_pod p touch /image/file
}

case_what_the_node_mounts_later_reaches_the_pod() {
    on_node "mkdir -p /tmp/later-$class/sub"
    pod p << 'YAML'
volumes: [{name: host, hostPath: {path: /tmp/later-CLASS}}], containers: [{name: main, image: IMAGE, command: [sleep, "3600"],
  volumeMounts: [{name: host, mountPath: /host, mountPropagation: HostToContainer}]}]
YAML
    ready p
    on_node "mount -t tmpfs later /tmp/later-$class/sub && echo there > /tmp/later-$class/sub/file"
    is 'the file' there in_pod p cat /host/sub/file
    if [ "$class" = monohull ]; then
        has 'a mount that the guest has looked into' 'target is busy' on_node "umount /tmp/later-$class/sub 2>&1"
        on_node "umount --lazy /tmp/later-$class/sub"
        explained 'what the guest has looked into is in use until it looks again: the node unmounts it with `--lazy`'
    else
        on_node "umount /tmp/later-$class/sub"
    fi
    has 'when it is gone' 'No such file' in_pod p cat /host/sub/file
}

case_what_a_pod_mounts_reaches_the_node() {
    on_node "mkdir -p /tmp/own-$class/sub"
    pod p << 'YAML'
restartPolicy: Never, volumes: [{name: host, hostPath: {path: /tmp/own-CLASS}}], containers: [{name: main, image: IMAGE, command: [sleep, "3600"],
  securityContext: {privileged: true}, volumeMounts: [{name: host, mountPath: /host, mountPropagation: Bidirectional}]}]
YAML
    if [ "$class" = monohull ]; then
        becomes p '{.status.phase}' Failed
        has why "what is mounted in the guest can't appear on the host" field p '{.status.containerStatuses[0].state.terminated.message}'
        explained "refused by name: what is mounted in a VM can't appear on its node"
        return
    fi
    ready p
    in_pod p sh -c 'mount -t tmpfs own /host/sub && echo there > /host/sub/file'
    is 'the file on the node' there on_node "cat /tmp/own-$class/sub/file"
    in_pod p umount /host/sub
}
