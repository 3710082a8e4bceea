# One way to do everything; the logic is in tests/xtask (cargo xtask).

SHELL := /bin/bash
export PATH := $(PATH):/usr/sbin:/sbin:$(HOME)/.cargo/bin
XTASK := cargo xtask
vm-args = $(if $(KERNEL),--kernel $(KERNEL)) $(foreach l,$(LAYOUT),--layout $(l)) $(if $(SPECIAL),--special) \
	$(if $(PACKAGES),--packages) $(if $(WHOLE),--whole) $(if $(VERBOSE),--verbose) $(FILTER)

.DEFAULT_GOAL := help
.PHONY: help demo check test record vm-test vm-shell soak conformance bench fuzz dist deps

help: ## what there is to make
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: deps ## the first example, in a throw-away test host
	@$(XTASK) demo

check: deps ## format, lints, unit and property tests, layering (for every change)
	@$(XTASK) check

test: deps ## everything: what CI runs
	@$(XTASK) test

record: ## the answers of a real API server to the differential corpus [KUBE_APISERVER=path] [ETCD=path]
	@cargo run --quiet -p rkube-differential --bin rkube-record

vm-test: deps ## the tests in VMs [KERNEL=path] [LAYOUT="v2 v1.."] [SPECIAL=1] [WHOLE=1] [PACKAGES=1] [VERBOSE=1] [FILTER="name.."]
	@$(XTASK) vm-test $(vm-args)

vm-shell: deps ## a prompt in a VM [KERNEL=path] [LAYOUT=v2]
	@$(XTASK) vm-shell $(vm-args)

soak: deps ## the black-box suite again and again [ROUNDS=n|long] [FILTER="name..."]
	@$(XTASK) soak $(ROUNDS) $(FILTER)

conformance: deps ## upstream's suite against rkube server E2E=dir [FILTER="part of a name.."]
	@$(XTASK) conformance $(E2E) $(FILTER)

bench: deps ## figures beside those of peers [SECTIONS="start memory.."]
	@$(XTASK) bench $(SECTIONS)

fuzz: ## each fuzz target for a while [FUZZ_SECONDS=n] [TARGETS="name.."]
	@tests/install-deps.sh c++=g++
	@$(XTASK) fuzz $(FUZZ_SECONDS) $(TARGETS)

dist: deps ## the static release program
	@$(XTASK) dist

deps: # installs what is missing
	@tests/install-deps.sh
