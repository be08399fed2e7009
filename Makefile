# Holdfast. Two commands: make demo, make test. HACKING.md tells the rest.
SHELL      := /bin/bash
.SHELLFLAGS := -euo pipefail -c
export GOTOOLCHAIN := local
VERSION    := $(shell git describe --tags --always --dirty 2>/dev/null || echo development)
LDFLAGS    := -s -w -X github.com/holdfast-edge/holdfast/internal/version.Version=$(VERSION)
# Without grpcnotrace gRPC brings a web page of its calls, whose templates keep every method of the program: 4 MB of machined.
TAGS       := -tags grpcnotrace
GOBUILD    := env CGO_ENABLED=0 go build -trimpath $(TAGS)
STEP       := build/step

.PHONY: help root build images setup demo test test-unit test-cross test-system test-vm test-site test-vmsite drill bench clean
help: ## what this Makefile can do
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile build/*.mk | expand -t 20

build: ## bin/holdfast, bin/machined and bin/system/applier (about 2 minutes cold, seconds warm)
	@$(STEP) "build bin/holdfast" $(GOBUILD) -ldflags "$(LDFLAGS)" -o bin/holdfast ./cmd/holdfast
	@$(STEP) "build bin/machined" $(GOBUILD) -ldflags "$(LDFLAGS)" -o bin/machined ./cmd/machined
	@$(STEP) "build bin/system/applier" $(GOBUILD) -ldflags "$(LDFLAGS)" -o bin/system/applier ./cmd/applier

include build/system.mk
include build/os.mk

images: bin/images/hello-1.0.0.tar bin/images/hello-1.1.0.tar ## bin/images: the app images of the example fleet

bin/images/hello-%.tar: $(wildcard lab/hello/*.go runtime/pack/*.go internal/ociimage/*.go)
	@mkdir -p $(@D) bin/hello
	@CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -buildid= -X main.version=$*" -o bin/hello/$* ./lab/hello
	@$(STEP) "pack $@" go run ./runtime/pack -ref holdfast.local/hello:$* -o $@ bin/hello/$*

root: # before anything is compiled: who is not root would learn it 25 minutes later
	@[ "$$(id -u)" -eq 0 ] || { echo "make: hosted machines live in namespaces, which need root: run it again as root (make build, test-unit and test-cross do without)" >&2; exit 1; }

setup: ## install the Debian packages that building, testing and the lab need
	@$(STEP) "set up this machine" build/setup

demo: root setup build system images os ## the main job on two real sites (cold: up to 25 minutes, nearly all compiling Kubernetes; warm: 90 s); RUNTIME=vm: on the OS image
	@build/demo

test: DRILLS ?= power
test: root setup test-unit test-cross build system images os test-system test-dialect test-vm test-site test-vmsite ## everything that CI runs (warm: 20 to 30 minutes)
	@echo "make test: all passed"

test-unit: ## packages, stories of the CLI, the plan of the house
	@$(STEP) "go vet" go vet ./...
	@$(STEP) "unit tests" go test ./...

test-cross: ## the verbs that need no Linux build for macOS and Windows
	@for os in darwin windows; do $(STEP) "build bin/holdfast for $$os" env GOOS=$$os $(GOBUILD) -o /dev/null ./cmd/holdfast; done

test-system: ## real containerd, real Kubernetes, in namespaces (needs root)
	@$(STEP) "tests of the Kubernetes module" sh -c 'cd kubernetes && CGO_ENABLED=0 go test -vet=off -trimpath -count 1 ./config ./dialect ./store'
	@$(STEP) "system tests" go test -p 1 -tags system -count 1 -timeout 20m ./machine/images ./machine/apps ./kube/bringup ./osimage/build

test-vm: ## virtual machines: power cuts that lose what was not flushed, watchdog, TPM, cables, a damaged root (needs root)
	@$(STEP) "tests in virtual machines" go test -tags vm -count 1 -timeout 30m ./lab/vm

test-site: ## a site's whole life: release, kills at random, blank disks, full disk, no hub (needs root)
	@$(STEP) "site tests" go test -v -tags site -count 1 -timeout 30m ./lab/site

test-vmsite: ## a site on the OS image in a virtual machine with 1 GiB: who may enter, a power cut, an update, stock tools on its disk (about 15 minutes without KVM; DRILLS=power,theft,..., CUTS=n, SEED=n: more)
	@$(STEP) "a site in a virtual machine" go test -v -tags vm -count 1 -timeout 150m ./lab/vmsite $(if $(DRILLS),-drills $(DRILLS)) $(if $(CUTS),-cuts $(CUTS)) $(if $(SEED),-seed $(SEED))

.PHONY: saboteur
saboteur: ## bin/saboteur, which stands in the place of programs of an OS that is meant to be bad
	@$(STEP) "build bin/saboteur" $(GOBUILD) -ldflags "-s -w" -o bin/saboteur ./lab/drill/saboteur

drill: root setup build system system-next images os saboteur ## every drill on a virtual machine, with 100 power cuts (CUTS=n); without KVM that takes hours
	@build/drill

bench: root setup build system images ## start-up phases, memory, idle CPU, bytes; prints the figures of the README
	@build/bench

clean: ## remove what was built here
	rm -rf bin
