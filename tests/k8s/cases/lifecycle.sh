# shellcheck shell=bash disable=SC2154
# How pods begin and end.

case_init_containers_run_in_order() {
    pod p << 'YAML'
restartPolicy: Never, volumes: [{name: work, emptyDir: {}}], initContainers: [
  {name: first, image: IMAGE, command: [sh, -c, "echo first >> /work/log"], volumeMounts: [{name: work, mountPath: /work}]},
  {name: second, image: IMAGE, command: [sh, -c, "echo second >> /work/log"], volumeMounts: [{name: work, mountPath: /work}]}],
containers: [{name: main, image: IMAGE, command: [cat, /work/log], volumeMounts: [{name: work, mountPath: /work}]}]
YAML
    becomes p '{.status.phase}' Succeeded
    is order $'first\nsecond' k logs p
}

case_a_failing_init_container_keeps_the_pod_from_starting() {
    pod p << 'YAML'
restartPolicy: Never, initContainers: [{name: first, image: IMAGE, command: [sh, -c, "exit 5"]}],
containers: [{name: main, image: IMAGE, command: [echo, never]}]
YAML
    becomes p '{.status.phase}' Failed
    is 'its exit code' 5 field p '{.status.initContainerStatuses[0].state.terminated.exitCode}'
    is 'main container' PodInitializing field p '{.status.containerStatuses[0].state.waiting.reason}'
}

case_a_sidecar_is_there_before_and_ends_after_the_main_container() {
    pod p << 'YAML'
restartPolicy: Never, volumes: [{name: work, emptyDir: {}}], initContainers: [
  {name: side, image: IMAGE, restartPolicy: Always, command: [sh, -c, "touch /work/ready; trap 'exit 0' TERM; sleep 3600 & wait"],
   volumeMounts: [{name: work, mountPath: /work}],
   startupProbe: {exec: {command: [cat, /work/ready]}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 100}}],
containers: [{name: main, image: IMAGE, command: [sh, -c, "ls /work; sleep 1"], volumeMounts: [{name: work, mountPath: /work}]}]
YAML
    becomes p '{.status.phase}' Succeeded
    is 'what the main container found' ready k logs p -c main
    is 'the sidecar' 0 field p '{.status.initContainerStatuses[0].state.terminated.exitCode}'
}

case_hooks_run_after_the_start_and_before_the_end() {
    pod p << 'YAML'
volumes: [{name: host, hostPath: {path: /tmp/hooks-CLASS, type: DirectoryOrCreate}}], terminationGracePeriodSeconds: 60,
containers: [{name: main, image: IMAGE, command: [sh, -c, "trap 'echo term >> /host/log; exit 0' TERM; sleep 3600 & wait"],
  volumeMounts: [{name: host, mountPath: /host}], lifecycle: {
    postStart: {exec: {command: [sh, -c, "echo post >> /host/log"]}}, preStop: {exec: {command: [sh, -c, "echo pre >> /host/log"]}}}}]
YAML
    ready p
    k delete pod p --timeout "$patience" > /dev/null || fail "it does not end"
    is 'what ran' $'post\npre\nterm' on_node "cat /tmp/hooks-$class/log"
}

case_a_pod_that_ignores_sigterm_is_killed_after_its_grace_period() {
    pod p << 'YAML'
containers: [{name: main, image: IMAGE, command: [sh, -c, "trap '' TERM; while true; do sleep 1; done"]}]
YAML
    ready p
    local start=$SECONDS
    k delete pod p --grace-period 5 --timeout "$patience" > /dev/null || fail "it does not end"
    [ $((SECONDS - start)) -ge 5 ] || fail "it was killed before its time"
}

case_a_container_that_fails_is_started_again() {
    pod p << 'YAML'
restartPolicy: OnFailure, volumes: [{name: work, emptyDir: {}}], containers: [{name: main, image: IMAGE,
  command: [sh, -c, "[ ! -e /work/once ] || exit 0; touch /work/once; exit 1"], volumeMounts: [{name: work, mountPath: /work}]}]
YAML
    becomes p '{.status.phase}' Succeeded
    is restarts 1 field p '{.status.containerStatuses[0].restartCount}'
    is 'the last exit code' 1 field p '{.status.containerStatuses[0].lastState.terminated.exitCode}'
}

case_a_pod_ends_at_its_deadline() {
    pod p << 'YAML'
activeDeadlineSeconds: 10, restartPolicy: Never, containers: [{name: main, image: IMAGE, command: [sleep, "3600"]}]
YAML
    becomes p '{.status.reason}' DeadlineExceeded
}

case_jobs_and_cron_jobs() {
    apply << 'YAML'
apiVersion: batch/v1
kind: CronJob
metadata: {name: c}
spec: {schedule: "0 0 1 1 *", jobTemplate: {spec: {completions: 3, parallelism: 2, template: {spec: {runtimeClassName: CLASS,
  restartPolicy: Never, containers: [{name: main, image: IMAGE, command: [echo, done]}]}}}}}
YAML
    k create job j --from cronjob/c > /dev/null
    k wait --for condition=Complete --timeout "$patience" job/j > /dev/null || stuck j
    is 'pods that succeeded' 3 k get job j -o 'jsonpath={.status.succeeded}'
}

case_a_deployment_rolls_out_and_back() {
    apply << 'YAML'
apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
spec: {replicas: 2, selector: {matchLabels: {app: d}}, template: {metadata: {labels: {app: d}}, spec: {runtimeClassName: CLASS,
  terminationGracePeriodSeconds: 1, containers: [{name: main, image: IMAGE, command: [sleep, "3600"], env: [{name: V, value: "1"}]}]}}}
YAML
    k rollout status deployment/d --timeout "$patience" > /dev/null || stuck d
    k set env deployment/d V=2 > /dev/null
    k rollout status deployment/d --timeout "$patience" > /dev/null || stuck d
    is 'the new value' 2 k exec deployment/d -- sh -c 'echo $V'
    k rollout undo deployment/d > /dev/null
    k rollout status deployment/d --timeout "$patience" > /dev/null || stuck d
    is 'the old value' 1 k exec deployment/d -- sh -c 'echo $V'
    k scale deployment/d --replicas 0 > /dev/null
    k wait --for delete --timeout "$patience" pods --selector app=d > /dev/null || stuck d
}
