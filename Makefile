# flannel-rs: `make help` lists what there is.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo

# Not root: test programs run as the root of a user namespace.
ifneq ($(shell id -u),0)
TRIPLE := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
export CARGO_TARGET_$(TRIPLE)_RUNNER := $(CURDIR)/scripts/as-root
endif

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Three nodes on this machine with real daemons: a working overlay, faults, their repair
	@scripts/setup demo
	@echo 'Building flanneld and flannelctl (once; a minute or two)'
	@$(CARGO) build --locked -p flanneld -p flannelctl
	@$(CARGO) run --locked --quiet -p flannelctl -- demo

.PHONY: test
test: ## Everything that proves it: lints, unit and property tests, real kernel, real etcd
	@scripts/setup test
	$(CARGO) build --locked --workspace --bins
	@# Now, for minutes of a compiler would disturb the tests; status 2: not on this machine, and the tests say so.
	@scripts/kubernetes helm >/dev/null || [ $$? = 2 ]
	@$(MAKE) --no-print-directory image
	$(CARGO) test --locked --workspace --no-fail-fast
	@$(MAKE) --no-print-directory lint

# By name: tests that other tests start are ignored, too.
.PHONY: test-long
test-long: ## The tests that take minutes each: 200 daemons, 200 clients of a proxy, ten minutes of twins, many histories
	@scripts/setup test
	$(CARGO) build --locked --workspace --bins
	$(CARGO) test --locked -p store --lib -- --ignored own_lease
	$(CARGO) test --locked -p store --test store -- --ignored --nocapture proxied
	$(CARGO) test --locked -p flanneld --test daemon -- --ignored --nocapture --test-threads=1 crowd revoked

.PHONY: test-confined
test-confined: ## The tests of flanneld, every daemon under the shipped seccomp profile: another system call ends it
	@scripts/setup test
	$(CARGO) build --locked --workspace --bins
	FLANNEL_LAB_SECCOMP=$(CURDIR)/deploy/seccomp/flanneld.json $(CARGO) test --locked -p flanneld --test daemon

# What runs under kernels that people have; see scripts/vm. Without /dev/kvm machines are emulated:
# then this takes about a quarter of an hour on two cores.
KERNELS ?= 6.1 6.12
.PHONY: test-vm
test-vm: ## The kernel suites under the kernels of Debian 12 and 13, in virtual machines (KERNELS="6.1 6.12")
	@scripts/setup vm
	$(CARGO) build --locked -p flanneld -p flannelctl -p cni
	$(CARGO) test --locked -p dataplane -p flanneld --test conformance --test rules --test daemon --no-run
	@scripts/test-vm $(KERNELS)

.PHONY: model-check
model-check: ## The lease protocol, every order of events within larger bounds than `make test` has (minutes)
	@scripts/setup build
	$(CARGO) test --locked --profile proof -p sim --test lease_protocol -- --include-ignored --nocapture --test-threads=1

SEEDS ?= 0-10000
.PHONY: sim
sim: ## Fleets of leases, and of whole daemons, simulated under random faults, one for each seed (SEEDS=0-10000)
	@scripts/setup build
	SEEDS=$(SEEDS) $(CARGO) test --locked --profile proof -p sim --test fleet --test daemons -- --nocapture

SECONDS ?= 60
.PHONY: fuzz
fuzz: ## Mutated inputs for every parser, SECONDS=60 each; FUZZ_SEED= for others
	@scripts/setup build
	FUZZ_SECONDS=$(SECONDS) $(CARGO) test --locked --profile proof -p model -p store -p dataplane -p proxy -p cni -p flannelctl --lib --bins --test fuzz -- fuzzed --nocapture --test-threads=2

MSRV := $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)

.PHONY: lint
lint: ## Formatting, clippy, dependencies, workflows; warnings refused
	@scripts/setup lint
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@scripts/deny
	@if tool=$$(scripts/actionlint); then $$tool -shellcheck= -pyflakes=; else [ $$? = 2 ]; fi

.PHONY: audit
audit: ## Known vulnerabilities in dependencies, if RustSec's list can be fetched
	@scripts/deny advisories

.PHONY: msrv
msrv: ## Check that the oldest supported Rust builds everything
	@scripts/setup build
	rustup toolchain install --profile minimal $(MSRV)
	CARGO_TARGET_DIR=$(BUILT)/msrv rustup run $(MSRV) cargo check --locked --workspace --all-targets

.PHONY: bench
bench: ## Speed and memory beside `ip -batch` and `bridge -batch`
	@scripts/setup test
	@scripts/setup release
	$(CARGO) build --locked --release --workspace --bins
	$(CARGO) build --locked --release -p cni --target $(MUSL)
	@$(MAKE) --no-print-directory image
	$(CARGO) run --locked --release --quiet -p bench --bin flannel-bench -- $(BENCH_ARGS)

.PHONY: build
build: ## Build all programs for development
	@scripts/setup build
	$(CARGO) build --locked --workspace --bins

# The programs say which commit they are of.
programs image-programs: export FLANNEL_COMMIT := $(or $(FLANNEL_COMMIT),$(shell git rev-parse HEAD 2>/dev/null),unknown)

# The plugin is copied to hosts of every kind and runs for every container: linked statically.
MUSL := $(shell uname -m)-unknown-linux-musl
.PHONY: programs
programs: ## Build what is to be installed: flanneld, flannelctl, and the CNI plugin linked statically
	@scripts/setup release
	$(CARGO) build --locked --release -p flanneld -p flannelctl
	$(CARGO) build --locked --release -p cni --target $(MUSL)

# Programs built elsewhere: BIN_DIR=…, and CNI_PLUGIN=… where the plugin is not there too.
BUILT := $(or $(CARGO_TARGET_DIR),target)
PROGRAMS := $(if $(BIN_DIR),,programs)
install uninstall deb: export CNI_PLUGIN := $(or $(CNI_PLUGIN),$(if $(BIN_DIR),$(BIN_DIR),$(BUILT)/$(MUSL)/release)/flannel)
install uninstall deb: export BIN_DIR := $(or $(BIN_DIR),$(BUILT)/release)

.PHONY: install
install: $(PROGRAMS) ## Install below DESTDIR=, PREFIX=/usr/local (BIN_DIR= of programs already built)
	@dist/install

.PHONY: uninstall
uninstall: ## Remove what `make install` installed
	@dist/install uninstall

.PHONY: notices
notices: ## Write target/THIRD-PARTY-NOTICES: the licences of what the programs contain
	@$(CARGO) run --locked --quiet -p image -- notices --with-lab $(BUILT)/THIRD-PARTY-NOTICES

deb packages: export NOTICES = $(abspath $(BUILT))/THIRD-PARTY-NOTICES

.PHONY: deb
deb: $(PROGRAMS) notices ## Build a Debian package in target/debian
	@dist/packages -o $(BUILT)/debian deb

.PHONY: packages
packages: PROFILE = release
packages: FEATURES =
packages: image-programs notices ## Build deb, rpm, apk, Arch packages and a tarball of static programs in target/packages
	@rm -rf $(BUILT)/packages
	@BIN_DIR=$(BUILT)/$(MUSL)/release CNI_PLUGIN=$(BUILT)/$(MUSL)/release/flannel dist/packages -o $(BUILT)/packages
	@$(IMAGE) sbom --with-lab $(BUILT)/packages/*
	@cd $(BUILT)/packages && sha256sum flannel[-_]* >SHA256SUMS

# How the programs of the image are built; `make image PROFILE=dev` is quick and large.
PROFILE ?= release
# The image's flannelctl has no `lab`, no `demo`, no `top`, no `manual`, and asks no whole cluster; that of the packages has.
FEATURES = --no-default-features
PROFILE_DIR := $(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
# Paths of this machine are nobody's business, and would make every machine's programs different ones.
# Relative relocations are packed, and there are no unwind tables, for a panic aborts: 13 % of each program.
MUSL_FLAGS = -C link-arg=-Wl,-T,$(CURDIR)/dist/no-unwind-tables.ld -C link-arg=-Wl,-z,pack-relative-relocs -C link-arg=-Wl,--no-eh-frame-hdr --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=/cargo --remap-path-prefix=$(CURDIR)=.

.PHONY: image
image: image-programs ## The container image target/image/flannel-rs.tar (IMAGE_NAME=registry.example/flannel)
	@$(IMAGE) archive $(IMAGE_CONTENT) --out $(BUILT)/image

.PHONY: image-tree
image-tree: image-programs
	@$(IMAGE) tree $(IMAGE_CONTENT) --out $(IMAGE_TREE)

.PHONY: image-programs
image-programs:
	@scripts/setup image
	RUSTFLAGS='$(MUSL_FLAGS)' $(CARGO) build --locked --profile $(PROFILE) --target $(MUSL) $(FEATURES) -p flanneld -p cni -p flannelctl

IMAGE = $(CARGO) run --locked --quiet -p image --
IMAGE_CONTENT = --programs $(BUILT)/$(MUSL)/$(PROFILE_DIR) $(if $(filter release,$(PROFILE)),,--any-size)

ARCHITECTURES ?= $(shell scripts/cross architectures)

.PHONY: cross
cross: ## Build the programs for ARCHITECTURES="arm64 s390x …" (default: all six)
	@scripts/image-all programs $(BUILT)/image $(ARCHITECTURES)

.PHONY: image-all
image-all: ## Build one image for all ARCHITECTURES: target/image/flannel-rs.oci.tar
	@scripts/image-all image $(BUILT)/image $(ARCHITECTURES)

.PHONY: test-cross
test-cross: ## Unit tests of what goes onto the wire, on an emulated big-endian machine (s390x)
	@scripts/test-cross

VERSION ?=
RELEASE_DIR ?= $(BUILT)/release-$(VERSION)
.PHONY: release
release: ## Everything that is handed out, VERSION=0.1.0: packages, images, chart, checksums, signature (KEY=file)
	@scripts/setup release
	@scripts/setup image
	@KEY='$(KEY)' ARCHITECTURES='$(ARCHITECTURES)' scripts/release '$(VERSION)' '$(RELEASE_DIR)'

.PHONY: docs
docs: ## The documentation as a site with a search, in target/docs/book
	@scripts/docs $(abspath $(BUILT))/docs

.PHONY: manifests
manifests: ## Write deploy/*.yml anew from the Helm chart
	@scripts/manifests write

.PHONY: install-tools
install-tools: ## Install what the tests need from Debian (as root; otherwise say what is missing)
	@scripts/setup test

.PHONY: clean
clean: ## Remove what was built
	$(CARGO) clean
