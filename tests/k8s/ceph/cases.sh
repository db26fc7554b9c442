# shellcheck shell=bash disable=SC2154
# Images in Ceph (RADOS block devices) as volumes of pods. The node has an image as a device by Linux's own client, as after
# `rbd map`. The case's namespace is the name of its image and its volume, too.

# rbd ARG…: Ceph's own program, on this machine.
rbd() { chroot "$MONOHULL_CEPH" rbd --conf /srv/ceph.conf "$@"; }
# stored TEXT: prints the text if Ceph has it in the image.
stored() { rbd export --no-progress "volumes/$namespace" - | grep -a -o -m 1 "$1"; }

# map: the image becomes the device /dev/rbd$device of the node, to which $path leads. It is gone with the case.
map() {
    path=/run/$namespace
    device=$(on_node "modprobe rbd && echo '$control_address:6789 name=admin volumes $namespace' > /sys/bus/rbd/add_single_major &&
        basename \$(dirname \$(grep -lx '$namespace' /sys/bus/rbd/devices/*/name))")
    [ -n "$device" ] || fail "the node does not map the image: $(on_node 'dmesg | tail -n 3')"
    trap 'on_node "echo $device force > /sys/bus/rbd/remove_single_major"' EXIT
    on_node "ln -sfn /dev/rbd$device $path"
}
# unmap: when nobody has it open any more. The kubelet lets go of a device after its pod has gone.
unmap() {
    is unmapping unmapped \
        on_node "timeout 120 bash -c 'until echo $device > /sys/bus/rbd/remove_single_major; do sleep 1; done' && echo unmapped"
    trap - EXIT
}

# claim MODE: a claim `claim`, and a volume for it that is the device of the image.
claim() {
    sed "s|MODE|$1|; s|NAME|$namespace|; s|PATH|$path|" << 'YAML' | apply
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: PersistentVolume, metadata: {name: NAME}, spec: {capacity: {storage: 64Mi}, accessModes: [ReadWriteOnce],
    volumeMode: MODE, persistentVolumeReclaimPolicy: Retain,
    storageClassName: NAME, local: {path: PATH},
    nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node]}]}]}}}}
- {apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: claim}, spec: {accessModes: [ReadWriteOnce], volumeMode: MODE,
    storageClassName: NAME, resources: {requests: {storage: 64Mi}}}}
YAML
}
# gone POD
gone() { k delete pod "$1" --timeout "$patience" > /dev/null || fail "$1 does not end"; }

case_an_image_of_ceph_is_a_device() {
    rbd create --size 64M "volumes/$namespace"
    map
    claim Block
    local fields='volumes: [{name: v, persistentVolumeClaim: {claimName: claim}}], containers: [{name: main, image: IMAGE,
        command: [sleep, "3600"], volumeDevices: [{name: v, devicePath: /dev/data}]}]'
    pod writer <<< "$fields"
    ready writer
    is 'the size of the device' 67108864 in_pod writer blockdev --getsize64 /dev/data
    in_pod writer sh -c 'printf mark-of-the-writer | dd of=/dev/data bs=4096 seek=9000 conv=fsync 2> /dev/null'
    is 'what Ceph has while the pod runs' mark-of-the-writer stored mark-of-the-writer
    gone writer
    unmap
    map
    pod reader <<< "$fields"
    ready reader
    is 'what the next pod reads' mark-of-the-writer in_pod reader sh -c 'dd if=/dev/data bs=4096 skip=9000 count=1 2> /dev/null | head -c 18'
    gone reader
    unmap
}

case_an_image_of_ceph_is_a_file_system() {
    rbd create --size 64M "volumes/$namespace"
    map
    # The kubelet makes the file system, for the first pod.
    claim Filesystem
    local fields='volumes: [{name: v, persistentVolumeClaim: {claimName: claim}}], containers: [{name: main, image: IMAGE,
        command: [sleep, "3600"], volumeMounts: [{name: v, mountPath: /v}]}]'
    pod writer <<< "$fields"
    ready writer
    in_pod writer sh -c 'echo text-of-the-writer > /v/file && dd if=/dev/urandom of=/v/data bs=1M count=4 2> /dev/null'
    local sum
    sum=$(in_pod writer md5sum /v/data)
    is "its room is the image's" yes in_pod writer sh -c 'df -k /v | awk "NR == 2 && \$2 < 65536 { print \"yes\" }"'
    gone writer
    unmap
    is 'what Ceph has' text-of-the-writer stored text-of-the-writer
    map
    pod reader <<< "$fields"
    ready reader
    is 'what the next pod reads' $'text-of-the-writer\n'"$sum" in_pod reader sh -c 'cat /v/file; md5sum /v/data'
    gone reader
    unmap
}
