# Everything there is to do with this tree; `make help` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup kernel kernel-cost build build-tests install demo test check fmt lint deny shellcheck named-tests pages docs chart unit \
	advisories sbom dist reproduce promtool hostile fuzz guest-tests e2e chaos soak shimtest security containerd-client critest nerdctl crio matrix \
	fstest install-test k8s k8s-objects first-pod ceph bench host-shell clean

export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/local/go/bin

# `quick` builds in a fraction of the time, for the edit-build-test loop; its programs are larger and slower.
PROFILE ?= release
TARGET := $(or $(CARGO_TARGET_DIR),target)/x86_64-unknown-linux-gnu
RELEASE := $(TARGET)/$(PROFILE)
DEBUG := $(TARGET)/debug
# The installed layout, and the tests' programs.
ROOT := build/root
TESTS := build/tests

# What `make chaos` and `make soak` do.
ROUNDS ?= 100
SEED ?= 1
FIRST ?= 0
PODS ?= 100
# How long `make fuzz` takes.
SECONDS ?= 600

help: ## This list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' Makefile

setup: ## Install the Debian packages this machine lacks; asks nothing
	@tests/tools/setup

kernel: ## Build the guest kernel (10 to 20 minutes on two cores, then cached); print its size and what it costs to boot
	@kernel-config/build > /dev/null
	@kernel-config/boot-cost

kernel-cost: build build-tests ## Count the instructions from the start of a pod to its agent
	@tests/run --icount bench instructions

build: kernel ## Build Monohull into build/root, as it will be installed; debug symbols go to build/debug
	@release/build $(PROFILE)

build-tests: ## Build the end-to-end tests and benchmarks into build/tests
	@mkdir -p $(TESTS)
	@cargo build --locked -p monohull-tests --bins
	@cargo test --locked -p monohull-tests --test e2e --no-run
	@install $$(cargo test --locked -q -p monohull-tests --test e2e --no-run --message-format=json 2> /dev/null | \
		jq -r 'select(.target.name? == "e2e") | .executable') $(TESTS)/e2e
	@install $(addprefix $(DEBUG)/,monohull-bench monohull-chaos monohull-soak in-container) $(TESTS)/
	@for test in machine snapshot hostile; do install $$(cargo test --locked -q -p monohull-vmm --test $$test --no-run \
		--message-format=json 2> /dev/null | jq -r "select(.target.name? == \"$$test\") | .executable") $(TESTS)/vmm-$$test; done
	@release/cargo build --profile $(PROFILE) --locked -q -p monohull-initramfs
	@mkdir -p build/debug && tests/tools/strip $(DEBUG)/reboot-init build
	@$(RELEASE)/monohull-initramfs --agent build/reboot-init --output $(TESTS)/reboot.cpio
	@tests/make-image $(TESTS)/busybox.tar
	@cc -static -Os -s -Wall -Wextra -o build/pause tests/pause.c
	@tests/make-image $(TESTS)/pause.tar build/pause

install: ## Install what `make build` made below DESTDIR (default: this machine)
	@test -d $(ROOT) || { echo "nothing is built: run 'make build' first" >&2; exit 1; }
	cp -a --no-preserve=ownership $(ROOT)/. $(DESTDIR)/

sbom: build ## What each installed file is made of, as CycloneDX in build/sbom, checked against cargo and the files (a minute)
	@release/sbom
	@release/check-tampered

dist: sbom ## Tarball, Debian package, image and chart for Kubernetes, sources, checksums in build/dist, unpacked and compared with build/root (2 minutes)
	@release/dist
	@release/check-dist

reproduce: build ## Build all a second time, elsewhere and otherwise, and compare (30 to 50 minutes; WHAT=programs: 10, no kernel)
	@release/reproduce $(WHAT)

demo: setup build ## A tour: containers in VMs, through containerd and nerdctl
	@tests/run demo

test: ## Everything CI runs
	@tests/all

check: fmt lint deny shellcheck named-tests pages promtool chart ## Formatting, lints, dependencies, shell scripts, tests that pages name, metrics, chart

fmt:
	cargo fmt --all --check

lint:
	cargo clippy --workspace --all-targets --locked -- -D warnings

deny:
	@tests/tools/deny

advisories: ## Look for known vulnerabilities in the crates (fetches RustSec's database, or reads a clone: ADVISORY_DB=path)
	@tests/tools/deny advisories $(ADVISORY_DB)

shellcheck:
	shellcheck $$(git ls-files | xargs grep -lE '^#!.*\b(ba)?sh\b|^# shellcheck shell=')

promtool: ## Prometheus' own tool on an example of our metrics, and on the alerts in deploy/
	@tests/tools/promtool check metrics < runtime/src/bin/monohull/metrics/tests/example.prom
	@tests/tools/promtool check rules deploy/prometheus-alerts.yaml

chart: ## The Helm chart by Helm's own code, its manifests by Kubernetes' types (some minutes once, then a second)
	@tests/tools/chart

pages: ## Links and anchors of the pages, and the messages that they quote
	@tests/tools/pages

docs: ## The site of docs/ in build/docs, by mdBook, its links checked (some minutes once, then seconds)
	@tests/tools/docs

named-tests:
	@tests/tools/named-tests

unit: ## Unit tests, and the VMM's with tiny guests on /dev/kvm
	cargo test --workspace --exclude monohull-tests --locked
	cargo test -p monohull-tests --lib --bins --locked

hostile: named-tests ## Hostile guests on /dev/kvm, hostile VMMs and agents, bad names for the fs server (part of `make unit`; needs root)
	cargo test --locked -p monohull-vmm --test hostile
	cargo test --locked -p monohull-fs --test server hostile
	cargo test --locked -p monohull-runtime --lib hostile
	cargo test --locked -p containerd-shim-monohull hostile

fuzz: ## Feed every parser and device what a guest, VMM, agent or image may, for SECONDS=600 in all, shared equally (needs root)
	@tests/tools/fuzz $(SECONDS)

guest-tests: kernel ## The agent's tests on the guest's kernel, in QEMU (a minute)
	@agent/tests/in-guest

e2e: build build-tests ## End-to-end tests in the test host, the long ones too (FILTER=name for some)
	@for part in $(or $(FILTER),monohull:: block:: ctr:: nerdctl::); do tests/run e2e --include-ignored $$part; done

security: build build-tests ## How a pod's processes are confined, seen from the host, and the system calls its VMM can make
	@tests/run e2e --nocapture security::
	@tests/run --cgroup1 e2e --nocapture security::

shimtest: build ## containerd's conformance suite for shims, in the test host; writes docs/conformance-shim.md
	@tests/run shimtest
	@cp build/results/shimtest/page.md docs/conformance-shim.md

containerd-client: build ## The tests of containerd's client, in the test host; writes docs/conformance-client.md
	@MONOHULL_TEST_TIMEOUT=$${MONOHULL_TEST_TIMEOUT:-4800} tests/run containerd-client
	@cp build/results/containerd-client/page.md docs/conformance-client.md

critest: build ## Kubernetes' conformance suite for the CRI, in the test host; writes docs/conformance.md
	@tests/critest/all

nerdctl: build build-tests ## nerdctl's commands with Monohull and with runc, compared (FILTER=name for some)
	@tests/run nerdctl $(FILTER)

crio: build ## Pods of CRI-O, with Monohull as `monohull install` configures it and with runc, compared (FILTER=name for some)
	@MONOHULL_TEST_TIMEOUT=$${MONOHULL_TEST_TIMEOUT:-4800} tests/run crio $(FILTER)

fstest: build build-tests ## pjdfstest on a volume and on the host's own file system, compared (FILTER=name for some)
	@tests/run fstest $(FILTER)

install-test: build build-tests ## Install, run pods with what that configured, remove: the same files as before (FILTER=name for some cases)
	@release/installer-image $(ROOT) $(TESTS)/installer.tar monohull.invalid/installer:test
	@tests/run install $(FILTER)

k8s-objects: ## deploy/kubernetes.yaml given to Kubernetes' own API server, controllers and scheduler (20 minutes once, then 15 s; needs root)
	@tests/k8s/objects

k8s: build build-tests ## Kubernetes with a node in the test host: pods by kubectl, with Monohull and with runc; writes docs/conformance-kubernetes.md (FILTER=name for some, and no page; needs root)
	@tests/k8s/run $(FILTER)
	@[ -n "$(FILTER)" ] || $(MAKE) --no-print-directory first-pod
	@[ -n "$(FILTER)" ] || cat build/results/k8s/{page,first-pod}.md > docs/conformance-kubernetes.md

first-pod: dist ## The three commands of docs/install.md, on a Kubernetes node in the test host without Monohull: from nothing to a pod, timed, and back (needs root)
	@tests/k8s/run --first-pod build/dist/monohull_*_amd64.deb

ceph: build build-tests ## Volumes in a Ceph on this machine: images as devices and as file systems of pods, with Monohull and with runc (FILTER=name for one; needs root)
	@tests/k8s/run --ceph $(FILTER)

matrix: build build-tests ## Some end-to-end tests with containerd 1.6 to 2.3, and with cgroups of version 1; writes docs/conformance-releases.md
	@tests/run matrix
	@cp build/results/matrix/page.md docs/conformance-releases.md
	@tests/run --cgroup1 matrix 1.6

chaos: build build-tests ## Pods that something goes wrong with: nothing may be left (ROUNDS=100, 6 to 10 s each; SEED=1; FIRST=0, or one ROUND=n)
	@MONOHULL_TEST_TIMEOUT=$${MONOHULL_TEST_TIMEOUT:-$$(($(ROUNDS) * 30 + 600))} tests/run chaos --seed $(SEED) \
		$(if $(ROUND),--round $(ROUND),--rounds $(ROUNDS) --first $(FIRST))

soak: build build-tests ## Pods in a row: nothing may grow (PODS=100, 4 to 6 s each)
	@MONOHULL_TEST_TIMEOUT=$${MONOHULL_TEST_TIMEOUT:-$$(($(PODS) * 30 + 600))} tests/run soak --pods $(PODS)

bench: build build-tests ## The README's tables, in the test host; numbers and bars in build/results/bench (20 minutes more: tests/run bench many)
	@MONOHULL_TEST_TIMEOUT=$${MONOHULL_TEST_TIMEOUT:-4800} tests/run bench --json /results/bench.json --svg /results/starts.svg
	@tests/run --icount bench instructions

host-shell: ## A shell in the test host, with everything installed that is built
	@tests/run shell

clean: ## Remove what was built here; caches in ~/.cache/monohull stay
	rm -rf build
	cargo clean
