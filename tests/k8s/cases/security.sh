# shellcheck shell=bash disable=SC2154
# What pods may do, and what they are kept from.

case_users_and_groups() {
    pod p << 'YAML'
securityContext: {runAsUser: 1001, runAsGroup: 1002, supplementalGroups: [1003], fsGroup: 1004}, volumes: [{name: work, emptyDir: {}}],
containers: [{name: main, image: IMAGE, command: [sleep, "3600"], volumeMounts: [{name: work, mountPath: /work}]},
  {name: other, image: IMAGE, command: [sleep, "3600"], securityContext: {runAsUser: 2001}}]
YAML
    ready p
    is numbers 'uid=1001 gid=1002 groups=1002,1003,1004' k exec p -c main -- sh -c 'id | sed "s/([^)]*)//g"'
    is "the other container's user" 2001 k exec p -c other -- id -u
    k exec p -c main -- touch /work/file || fail "it can't write to its volume"
    is 'the group of a file in the volume' 1004 k exec p -c main -- stat -c %g /work/file
}

case_a_root_user_is_refused_where_none_may_be() {
    pod p << 'YAML'
securityContext: {runAsNonRoot: true}, containers: [{name: main, image: IMAGE, command: [sleep, "3600"]}]
YAML
    becomes p '{.status.containerStatuses[0].state.waiting.reason}' CreateContainerConfigError
}

case_capabilities_privileges_and_a_read_only_root() {
    pod p << 'YAML'
containers: [
  {name: usual, image: IMAGE, command: [sleep, "3600"]},
  {name: few, image: IMAGE, command: [sleep, "3600"], securityContext: {capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]},
    allowPrivilegeEscalation: false, readOnlyRootFilesystem: true}},
  {name: all, image: IMAGE, command: [sleep, "3600"], securityContext: {privileged: true}}]
YAML
    ready p
    status() { k exec p -c "$1" -- sed -n "s/^$2:\t//p" /proc/1/status; }
    is 'usual capabilities' 00000000a80425fb status usual CapEff
    is 'few capabilities' 0000000000000400 status few CapEff
    is 'no new privileges' 1 status few NoNewPrivs
    has 'a read-only root' 'Read-only file system' k exec p -c few -- touch /file
    k exec p -c all -- sh -c 'mkdir /m && mount -t tmpfs t /m && umount /m' || fail "a privileged container can't mount"
    has 'a mount without privileges' 'ermi' k exec p -c usual -- sh -c 'mkdir /m && mount -t tmpfs t /m'
}

case_seccomp_profiles() {
    pod p << 'YAML'
containers: [
  {name: default, image: IMAGE, command: [sleep, "3600"], securityContext: {seccompProfile: {type: RuntimeDefault}}},
  {name: none, image: IMAGE, command: [sleep, "3600"], securityContext: {seccompProfile: {type: Unconfined}}}]
YAML
    ready p
    is 'the default profile' 2 k exec p -c default -- sed -n 's/^Seccomp:\t//p' /proc/1/status
    is 'no profile' 0 k exec p -c none -- sed -n 's/^Seccomp:\t//p' /proc/1/status
    has 'a call that the profile forbids' 'not permitted' k exec p -c default -- unshare -U true
}

case_kernel_settings_of_a_pod() {
    pod p << 'YAML'
securityContext: {sysctls: [{name: net.ipv4.ip_local_port_range, value: "40000 41000"}, {name: kernel.msgmax, value: "4444"}]},
containers: [{name: main, image: IMAGE, command: [sleep, "3600"]}]
YAML
    ready p
    is values $'40000\t41000\n4444' in_pod p cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/msgmax
}

case_the_network_of_the_node() {
    pod p << 'YAML'
hostNetwork: true, containers: [{name: main, image: IMAGE, command: [sleep, "3600"]}]
YAML
    refused_by_monohull "asks for the host's network (hostNetwork)" && return
    ready p
    is 'its address' "$node_address" field p '{.status.podIP}'
}

case_processes_of_the_node() {
    pod p << 'YAML'
hostPID: true, containers: [{name: main, image: IMAGE, command: [sleep, "3600"]}]
YAML
    refused_by_monohull "asks for the host's processes (hostPID)" && return
    ready p
    has processes kubelet in_pod p ps
}

case_ipc_of_the_node() {
    pod p << 'YAML'
hostIPC: true, containers: [{name: main, image: IMAGE, command: [sleep, "3600"]}]
YAML
    refused_by_monohull "asks for the host's IPC (hostIPC)" && return
    ready p
}

case_users_that_are_not_the_nodes() {
    pod p << 'YAML'
hostUsers: false, volumes: [{name: work, emptyDir: {}}], containers: [{name: main, image: IMAGE, command: [sleep, "3600"],
  volumeMounts: [{name: work, mountPath: /work}]}]
YAML
    # Where a runc with id-mapped mounts is, it would start.
    refused "RuntimeClass handler \"$class\" does not support user namespaces"
    [ "$class" = runc ] || explained "both refuse it by name, runc as that of Debian 12 has no id-mapped mounts. In a VM the container's root is none of its node as it is"
}

# refused WHAT: no container starts, and an event says why.
refused() {
    k wait --for create --timeout "$patience" events --field-selector reason=FailedCreatePodSandBox > /dev/null || stuck p
    has 'the reason' "$1" k get events --field-selector reason=FailedCreatePodSandBox -o 'jsonpath={.items[*].message}'
}
# refused_by_monohull WHAT: by it alone.
refused_by_monohull() {
    [ "$class" = monohull ] || return 1
    refused "$1"
    explained "refused by name: a pod in a VM has no part in the node's own"
}

case_a_kernel_of_its_own() {
    pod p << 'YAML'
containers: [{name: main, image: IMAGE, command: [sleep, "3600"]}]
YAML
    ready p
    if [ "$class" = monohull ]; then
        has kernel monohull in_pod p uname -r
        explained 'what a VM is for'
    else
        is kernel "$(on_node 'uname -r')" in_pod p uname -r
    fi
}
