# shellcheck shell=bash disable=SC2154
# What kubectl shows of a pod's program, and does in it.

case_logs_exit_code_and_termination_message() {
    pod p << 'YAML'
restartPolicy: Never, containers: [
  {name: main, image: IMAGE, command: [sh, -c, "echo out; echo err >&2; printf bye > /dev/termination-log; exit 3"]},
  {name: other, image: IMAGE, command: [sh, -c, "echo the last line; exit 4"], terminationMessagePolicy: FallbackToLogsOnError}]
YAML
    becomes p '{.status.phase}' Failed
    has output out k logs p -c main
    has errors err k logs p -c main
    is message bye field p '{.status.containerStatuses[?(@.name=="main")].state.terminated.message}'
    is 'exit codes' '3 4' field p '{.status.containerStatuses[*].state.terminated.exitCode}'
    has 'the message from the log' 'the last line' field p '{.status.containerStatuses[?(@.name=="other")].state.terminated.message}'
}

case_exec_with_input_exit_code_and_terminal() {
    sleeper p
    local status=0
    is output out in_pod p sh -c 'echo out; echo err >&2'
    has errors err in_pod p sh -c 'echo out; echo err >&2'
    in_pod p sh -c 'exit 7' 2> /dev/null || status=$?
    [ "$status" = 7 ] || fail "exit code $status and not 7"
    is input 12345 k exec -i p -- cat <<< 12345
    has terminal /dev/pts/ script -qec "$kubectl --namespace $namespace exec -it p -- tty" /dev/null < /dev/null
}

case_attach_reaches_standard_input() {
    pod p << 'YAML'
restartPolicy: Never, containers: [{name: main, image: IMAGE, stdin: true, command: [sh, -c, "read x; echo got $x"]}]
YAML
    ready p
    k attach -i p <<< hello > /dev/null 2>&1 || true
    becomes p '{.status.phase}' Succeeded
    is log 'got hello' k logs p
}

case_files_are_copied_to_and_fro() {
    sleeper p
    head -c 300000 /dev/urandom > "$scratch/sent"
    k cp "$scratch/sent" p:/tmp/file 2> /dev/null || fail "cp to the pod"
    k cp p:/tmp/file "$scratch/back" > /dev/null 2>&1 || fail "cp from the pod"
    cmp "$scratch/sent" "$scratch/back" || fail "the file that comes back is another one"
}

case_port_forward_reaches_what_listens_on_localhost() {
    # kubectl ends with the first connection that is refused, so it begins once something listens.
    pod p << 'YAML'
containers: [{name: main, image: IMAGE, command: [sh, -c, "mkdir /www; echo hello > /www/index.html; exec httpd -f -p 127.0.0.1:8080 -h /www"],
  readinessProbe: {exec: {command: [wget, -q, -O, /dev/null, "http://127.0.0.1:8080/"]}, periodSeconds: 1, timeoutSeconds: 30}}]
YAML
    local port=18083 said=$scratch/port-forward answer
    [ "$class" = runc ] || port=18084
    ready p
    # Not by a function, which would be a shell between: this is what ends below.
    "$work/programs/kubectl" --kubeconfig "$work/pki/admin.conf" --namespace "$namespace" port-forward p "$port:8080" > "$said" 2>&1 &
    forward=$!
    trap 'kill "$forward"' EXIT # of the case's own shell
    answer=$(fetched_here "http://127.0.0.1:$port/") || true
    [ "$answer" = hello ] || fail "answer: '$answer' and not 'hello'; kubectl: $(cat "$said")"
}

case_an_ephemeral_container_sees_its_targets_processes() {
    sleeper p
    k debug p --image "$image" --image-pull-policy IfNotPresent --target main -c debugger -- sleep 3602 > /dev/null 2>&1 || fail "kubectl debug"
    k wait --for 'jsonpath={.status.ephemeralContainerStatuses[0].state.running}' --timeout "$patience" pod/p > /dev/null || stuck p
    has processes 'sleep 3601' k exec p -c debugger -- ps
}

case_containers_share_a_process_namespace() {
    pod p << 'YAML'
shareProcessNamespace: true, containers: [
  {name: one, image: IMAGE, command: [sleep, "3601"]}, {name: two, image: IMAGE, command: [sleep, "3602"]}]
YAML
    ready p
    has processes 'sleep 3602' k exec p -c one -- ps
    k exec p -c one -- sh -c 'kill -0 $(pidof sleep)' || fail "no signal reaches it"
}

case_names_and_addresses_of_a_pod() {
    pod p << 'YAML'
hostname: web, subdomain: sites, hostAliases: [{ip: 192.0.2.7, hostnames: [other.example]}],
dnsPolicy: None, dnsConfig: {nameservers: [192.0.2.53], searches: [a.example], options: [{name: ndots, value: "3"}]},
containers: [{name: main, image: IMAGE, command: [sleep, "3600"], env: [
  {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}},
  {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory}}}], resources: {limits: {memory: 64Mi}}}]
YAML
    ready p
    is hostname web in_pod p hostname
    has 'aliases in /etc/hosts' other.example in_pod p cat /etc/hosts
    is environment "$(field p '{.status.podIP}') node 67108864" in_pod p sh -c 'echo $IP $NODE $MEMORY'
    has address "$(field p '{.status.podIP}')" in_pod p ip address show eth0
    is resolv.conf $'search a.example\nnameserver 192.0.2.53\noptions ndots:3' in_pod p cat /etc/resolv.conf
}
