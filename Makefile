# holdfast. `make run` shows a pod; `make test` runs every test; `make help` lists the rest.
#
# Three kinds of binary, three cargo calls (cargo never runs inside a build script here):
#   holdfast          the daemon and the operator's commands: an ordinary release build
#   holdfast-monitor  one process a pod: static and not relocated (each relocation would dirty memory of every pod), profile `monitor`
#   holdfast-pause    the sandbox's init: no_std, linked by hand, a workspace of its own
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
CARGO ?= cargo
HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
export CARGO_TARGET_DIR := $(TARGET)
# Binaries that belong together lie side by side: the daemon finds its helpers beside its own executable.
RELEASE := $(TARGET)/bin
TEST := $(TARGET)/test-bin

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

.PHONY: deps deps-test
deps:
	@hack/deps build
deps-test:
	@PEER="$(PEER)" hack/deps test

.PHONY: build monitor pause
build: deps monitor pause ## the three binaries, in target/bin
	$(CARGO) build --locked --release -p holdfast --bin holdfast
	install -D -t $(RELEASE) $(TARGET)/release/holdfast $(TARGET)/helpers/holdfast-monitor $(TARGET)/helpers/holdfast-pause

monitor:
	RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" $(CARGO) build --locked --profile monitor --target $(HOST) -p holdfast-monitor --bin holdfast-monitor
	install -D -t $(TARGET)/helpers $(TARGET)/$(HOST)/monitor/holdfast-monitor

pause:
	CARGO_TARGET_DIR=$(TARGET)/pause $(CARGO) rustc --manifest-path crates/pause/Cargo.toml --locked --release --bin holdfast-pause -- \
	  -C panic=abort -C relocation-model=static \
	  -C link-arg=-nostartfiles -C link-arg=-nostdlib -C link-arg=-static -C link-arg=-no-pie \
	  -C link-arg=-Wl,--build-id=none -C link-arg=-Wl,-z,norelro -C link-arg=-Wl,-z,noseparate-code
	install -D -t $(TARGET)/helpers $(TARGET)/pause/release/holdfast-pause

.PHONY: run
run: build ## start the server in a scratch directory, run a pod, show it, clean up (root)
	BIN=$(RELEASE) hack/run

.PHONY: test-build
test-build: deps-test monitor pause
	$(CARGO) build --locked -p holdfast -p holdfast-conformance -p holdfast-cni-bad --bins
	install -D -t $(TEST) $(TARGET)/debug/{holdfast,holdfast-conformance,holdfast-cni-bad} $(TARGET)/helpers/holdfast-monitor $(TARGET)/helpers/holdfast-pause

.PHONY: test unit conformance lint
test: deps-test lint test-build unit conformance ## lints, unit and privileged tests, conformance (root); test-vm is apart

unit: test-build ## unit and privileged tests, in a mount namespace of their own (root)
	HOLDFAST_HELPERS=$(TEST) HOLDFAST_PAUSE=$(TEST)/holdfast-pause unshare --mount --propagation slave $(CARGO) nextest run --locked --workspace --no-fail-fast $(NEXTEST)

conformance: test-build ## drive the CRI socket with real images; PEER=containerd drives Debian's containerd instead (root)
	BIN=$(TEST) PEER="$(PEER)" hack/conformance $(ARGS)

.PHONY: critest
critest: deps-test monitor pause ## critest, if there is one on the PATH or CRITEST=FILE, on images made from Debian's packages; ARGS go to it (root)
	$(CARGO) build --locked -p holdfast -p holdfast-conformance --bin holdfast --bin holdfast-critest-images
	install -D -t $(TEST) $(TARGET)/debug/holdfast $(TARGET)/debug/holdfast-critest-images $(TARGET)/helpers/holdfast-monitor $(TARGET)/helpers/holdfast-pause
	BIN=$(TEST) hack/critest $(ARGS)

.PHONY: kubectl test-kubectl test-kube
kubectl:
	@[ -x $(TEST)/kube-packages/usr/bin/kubectl ] || hack/debian-13 $(TEST)/kube-packages kubectl
test-kubectl: test-build kubectl ## exec, attach, port-forward and logs with Debian 13's kubectl, against a stub API server before the CRI socket (root)
	KUBECTL=$(TEST)/kube-packages/usr/bin/kubectl BIN=$(TEST) PEER="$(PEER)" hack/conformance --filter kubectl:: $(ARGS)

# The Kubernetes programs are built elsewhere; GATES, ETCD and KEEP are explained in hack/kube/test.
test-kube: build ## a real kubelet and API server: KUBE_APISERVER, KUBELET and KUBECTL are their paths; ARGS pick checks (root)
	BIN=$(RELEASE) hack/kube/test $(ARGS)

.PHONY: test-kube-vm
test-kube-vm: build vm-deps ## test-kube on a machine with systemd, cgroup v2 and the systemd driver, and its reboot
	BIN=$(RELEASE) hack/kube/vm $(ARGS)

lint: deps-test ## formatting, clippy, licences, and this repository's own rules
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets --quiet -- -D warnings
	$(CARGO) deny --log-level error check licenses bans sources
	$(CARGO) run --locked --quiet -p holdfast-tidy

.PHONY: test-vm vm-deps
vm-deps:
	@hack/vm/vm deps
test-vm: deps-test vm-deps kubectl test-build ## privileged tests and conformance on kernels 6.12 and 6.1 with cgroup v2, systemd, AppArmor, SELinux
	hack/vm/test stage
	hack/vm/test all
.PHONY: test-vm-short
test-vm-short: deps-test vm-deps test-build ## of test-vm what CI runs: kernel 6.12 with systemd, AppArmor, SELinux; minutes
	hack/vm/test stage
	hack/vm/test short

DIST ?= trixie
.PHONY: test-service
test-service: vm-deps test-build ## the package, the service and the systemd cgroup driver in the virtual machine, DIST=bookworm: in the older one; ARGS=measure: their cost
	BIN=$(TEST) hack/vm/service $(DIST) $(ARGS)

.PHONY: bench
bench: deps-test build ## print what pods cost in time and memory; PEER=containerd measures Debian's containerd and runc beside
	$(CARGO) build --locked --release -p holdfast-conformance --bin holdfast-bench
	install -D -t $(RELEASE) $(TARGET)/release/holdfast-bench
	BIN=$(RELEASE) PEER="$(PEER)" hack/bench $(ARGS)

FUZZ_SECONDS ?= 60
.PHONY: fuzz
fuzz: deps ## fuzz the streaming protocols' decoders and a SPDY session, FUZZ_SECONDS (60) for each of the four
	@command -v cargo-fuzz >/dev/null || $(CARGO) install --locked --quiet cargo-fuzz
	cd crates/streaming
	for target in spdy-frames spdy-headers spdy-session websocket-frames; do
	  CARGO_TARGET_DIR=$(TARGET)/fuzz $(CARGO) fuzz run --sanitizer none $$target -- -max_total_time=$(FUZZ_SECONDS) -max_len=16384 -timeout=30 -print_final_stats=1
	done

DESTDIR ?=
BINARIES ?= $(RELEASE)
EXAMPLES := $(DESTDIR)/usr/share/doc/holdfast/examples
.PHONY: install install-files deb clean
install: install-files ## install below $(DESTDIR)/: binaries, unit, sysctl and module drop-ins, examples; a configuration if there is none
	[ -n "$(DESTDIR)" ] || ! [ -d /run/systemd/system ] || systemctl daemon-reload

install-files:
	install -D -m 755 $(BINARIES)/holdfast $(DESTDIR)/usr/bin/holdfast
	install -D -m 755 -t $(DESTDIR)/usr/libexec/holdfast $(BINARIES)/holdfast-monitor $(BINARIES)/holdfast-pause
	install -D -m 644 -t $(DESTDIR)/usr/lib/systemd/system manifests/systemd/holdfast.service
	install -D -m 644 manifests/systemd/90-holdfast.sysctl.conf $(DESTDIR)/usr/lib/sysctl.d/90-holdfast.conf
	install -D -m 644 manifests/systemd/holdfast.modules.conf $(DESTDIR)/usr/lib/modules-load.d/holdfast.conf
	install -D -m 644 manifests/systemd/holdfast.tmpfiles.conf $(DESTDIR)/usr/lib/tmpfiles.d/holdfast.conf
	# It says that systemd makes the cgroups: not for a machine without.
	[ -e $(DESTDIR)/etc/holdfast/config.toml ] || { [ -z "$(DESTDIR)" ] && ! [ -d /run/systemd/system ]; } || install -D -m 644 manifests/config.toml $(DESTDIR)/etc/holdfast/config.toml
	install -D -m 644 -t $(EXAMPLES) manifests/crictl.yaml manifests/kubelet/* manifests/runtimeclass/*.yaml manifests/cni/*

deb: build ## a Debian package in target/
	BIN=$(RELEASE) hack/deb $(TARGET)

clean: ## remove what was built
	rm -rf $(TARGET)
