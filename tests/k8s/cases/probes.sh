# shellcheck shell=bash disable=SC2154

case_probes_of_each_kind() {
    pod p << 'YAML'
volumes: [{name: programs, hostPath: {path: /opt/tests/k8s/programs}}], containers: [
  {name: exec, image: IMAGE, command: [sh, -c, "sleep 2; touch /tmp/ok; sleep 3600"],
   readinessProbe: {exec: {command: [cat, /tmp/ok]}, periodSeconds: 2, timeoutSeconds: 20, failureThreshold: 100}},
  {name: http, image: IMAGE, command: [sh, -c, "mkdir /www; echo hello > /www/index.html; exec httpd -f -p 8080 -h /www"],
   startupProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 2, timeoutSeconds: 20, failureThreshold: 100},
   livenessProbe: {httpGet: {path: /index.html, port: 8080}, periodSeconds: 5, timeoutSeconds: 20}},
  {name: tcp, image: IMAGE, command: [httpd, -f, -p, "8081"],
   readinessProbe: {tcpSocket: {port: 8081}, periodSeconds: 2, timeoutSeconds: 20, failureThreshold: 100}},
  {name: grpc, image: IMAGE, command: [/programs/health], volumeMounts: [{name: programs, mountPath: /programs, readOnly: true}],
   readinessProbe: {grpc: {port: 9090}, periodSeconds: 2, timeoutSeconds: 20, failureThreshold: 100}}]
YAML
    ready p
    is restarts '0 0 0 0' field p '{.status.containerStatuses[*].restartCount}'
}

case_a_failing_liveness_probe_restarts_its_container() {
    pod p << 'YAML'
containers: [{name: main, image: IMAGE, command: [sh, -c, "touch /tmp/ok; exec sleep 3600"],
  livenessProbe: {exec: {command: [cat, /tmp/ok]}, initialDelaySeconds: 5, periodSeconds: 2, timeoutSeconds: 20, failureThreshold: 1}}]
YAML
    ready p
    in_pod p rm /tmp/ok
    becomes p '{.status.containerStatuses[0].restartCount}' 1
    ready p
}

case_a_failing_readiness_probe_takes_a_pod_out_of_its_service() {
    pod p << 'YAML'
containers: [{name: main, image: IMAGE, command: [sh, -c, "touch /tmp/ok; exec sleep 3600"],
  readinessProbe: {exec: {command: [cat, /tmp/ok]}, periodSeconds: 2, timeoutSeconds: 20, failureThreshold: 1}}]
YAML
    apply <<< '{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {selector: {app: p}, ports: [{port: 80}]}}'
    ready p
    slice() { k wait --for "jsonpath={.endpoints[0].conditions.ready}=$1" --timeout "$patience" endpointslices --selector kubernetes.io/service-name=s > /dev/null; }
    slice true || fail "it is not in the service"
    in_pod p rm /tmp/ok
    slice false || fail "it is still in the service"
}
