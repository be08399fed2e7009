# The programs that a machine is made of besides its own, all from source: bin/system.
# Each target is rebuilt only when its folder changed; what each costs was measured on 2 shared cores.
# The long one is kube: Kubernetes is 2 800 packages. Later builds take what changed from Go's cache and link (20 to 40 s).
SYSTEM  := bin/system
MODULES := kubernetes runtime/containerd runtime/runc runtime/cni runtime/coredns

KUBE_VERSION       := $(shell sed -n 's|^\tk8s.io/kubernetes v||p' kubernetes/go.mod)
CONTAINERD_VERSION := $(shell sed -n 's|.*github.com/containerd/containerd/v2 \(v[^ ]*\).*|\1|p' runtime/containerd/go.mod)
RUNC_VERSION       := $(shell sed -n 's|.*github.com/opencontainers/runc v\([^ ]*\).*|\1|p' runtime/runc/go.mod)

# The same source against the next minor, by a module file of its own: what the trial of a new minor is tested with.
KUBE_NEXT_VERSION  := $(shell sed -n 's|^\tk8s.io/kubernetes v||p' kubernetes/next.mod)

# The patch release before, likewise: what an update by a patch release moves is measured with it.
KUBE_PREVIOUS_VERSION := $(shell sed -n 's|^\tk8s.io/kubernetes v||p' kubernetes/previous.mod)

# $(call kube_ldflags,1.36.3) stamps that version: without it nodes report v0.0.0-master.
kube_ldflags = -s -w \
  -X k8s.io/component-base/version.gitVersion=v$(1) \
  -X k8s.io/component-base/version.gitMajor=1 \
  -X k8s.io/component-base/version.gitMinor=$(word 2,$(subst ., ,$(1))) \
  -X k8s.io/component-base/version.gitTreeState=clean \
  -X k8s.io/client-go/pkg/version.gitVersion=v$(1)

CONTAINERD := github.com/containerd/containerd/v2
CONTAINERD_TAGS := no_btrfs no_devmapper no_zfs
CNI := github.com/containernetworking/plugins/plugins
CNI_PLUGINS := main/ptp main/loopback ipam/host-local meta/portmap

# What is built is named by its reference; nothing ever asks a registry for it.
PAUSE_REF := holdfast.dev/pause:1

.PHONY: system system-next test-dialect ctr
system: $(SYSTEM)/kube $(SYSTEM)/containerd $(SYSTEM)/runc $(SYSTEM)/cni/ptp $(SYSTEM)/coredns $(SYSTEM)/pause.tar ## bin/system: Kubernetes, containerd, runc, CNI, CoreDNS, pause (cold: up to 20 minutes; warm: seconds)

test-dialect: root system system-next ## the trial of the next minor of Kubernetes, forced back at every stage (warm: 2 minutes; needs root)
	@$(STEP) "tests of the Kubernetes module with the next minor's etcd" sh -c 'cd kubernetes && CGO_ENABLED=0 go test -modfile=next.mod -vet=off -trimpath -count 1 ./store'
	@$(STEP) "tests of the trial" go test -tags dialect -count 1 -timeout 14m -run TestDialect ./kube/bringup

system-next: bin/system-next/kube ## bin/system-next/kube: the next minor of Kubernetes from the same source, for test-dialect (cold: 15 minutes; warm: under one)

bin/system-next/kube: $(wildcard kubernetes/*.go kubernetes/*/*.go kubernetes/next.*)
	@[ -e $@ ] || echo "    Kubernetes $(KUBE_NEXT_VERSION) from source: 8 to 15 minutes the first time, then under one"
	@mkdir -p $(@D)
	@$(STEP) "build $@" sh -c 'cd kubernetes && CGO_ENABLED=0 go build -modfile=next.mod -trimpath -ldflags "$(call kube_ldflags,$(KUBE_NEXT_VERSION))" -o ../$@ .'

bin/system-previous/kube: $(wildcard kubernetes/*.go kubernetes/*/*.go kubernetes/previous.*)
	@[ -e $@ ] || echo "    Kubernetes $(KUBE_PREVIOUS_VERSION) from source: 8 to 12 minutes the first time, then under one"
	@mkdir -p $(@D)
	@$(STEP) "build $@" sh -c 'cd kubernetes && CGO_ENABLED=0 go build -modfile=previous.mod -trimpath -ldflags "$(call kube_ldflags,$(KUBE_PREVIOUS_VERSION))" -o ../$@ .'

$(SYSTEM)/kube: $(wildcard kubernetes/*.go kubernetes/*/*.go kubernetes/go.*)
	@[ -e $@ ] || echo "    Kubernetes $(KUBE_VERSION) from source: 8 to 12 minutes the first time, then under one"
	@mkdir -p $(@D)
	@$(STEP) "build $@" sh -c 'cd kubernetes && CGO_ENABLED=0 go build -trimpath -ldflags "$(call kube_ldflags,$(KUBE_VERSION))" -o ../$@ .'

$(SYSTEM)/containerd: $(wildcard runtime/containerd/go.*)
	@[ -e $@ ] || echo "    containerd $(CONTAINERD_VERSION) from source: about 3 minutes the first time"
	@mkdir -p $(@D)
	@$(STEP) "build $@ and its shim" sh -c 'cd runtime/containerd && CGO_ENABLED=0 go build -trimpath -tags "$(CONTAINERD_TAGS)" -ldflags "-s -w" -o ../../$(@D)/ $(CONTAINERD)/cmd/containerd $(CONTAINERD)/cmd/containerd-shim-runc-v2'
	@touch $@

# runc is the one program with C in it. A build without seccomp would start no pod at all, so there is no fall-back, only a next step.
$(SYSTEM)/runc: $(wildcard runtime/runc/go.*)
	@mkdir -p $(@D)
	@echo '#include <seccomp.h>' | $${CC:-cc} -E - >/dev/null 2>&1 || { echo "runc needs a C compiler and the headers of libseccomp; on Debian: apt-get install gcc libc6-dev libseccomp-dev (make setup does it)" >&2; exit 1; }
	@$(STEP) "build $@ (about 20 s)" sh -c 'cd runtime/runc && CGO_ENABLED=1 go build -trimpath -tags "netgo osusergo seccomp" -ldflags "-s -w -linkmode external -extldflags -static -X main.version=$(RUNC_VERSION)" -o ../../$@ github.com/opencontainers/runc'

$(SYSTEM)/cni/ptp: $(wildcard runtime/cni/go.*)
	@mkdir -p $(@D)
	@$(STEP) "build the CNI plugins (about 10 s)" sh -c 'cd runtime/cni && CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o ../../$(@D)/ $(addprefix $(CNI)/,$(CNI_PLUGINS))'
	@touch $@

$(SYSTEM)/coredns: $(wildcard runtime/coredns/*.go runtime/coredns/go.*)
	@[ -e $@ ] || echo "    CoreDNS from source: about 2 minutes the first time"
	@mkdir -p $(@D)
	@$(STEP) "build $@" sh -c 'cd runtime/coredns && CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o ../../$@ .'

$(SYSTEM)/pause.tar: $(wildcard runtime/pause/*.go runtime/pack/*.go internal/ociimage/ociimage.go)
	@mkdir -p $(@D)
	@CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o $(SYSTEM)/pause ./runtime/pause
	@$(STEP) "pack $@" go run ./runtime/pack -ref $(PAUSE_REF) -o $@ $(SYSTEM)/pause

ctr: ## bin/ctr, containerd's own client, for looking into a machine by hand
	@$(STEP) "build bin/ctr" sh -c 'cd runtime/containerd && CGO_ENABLED=0 go build -trimpath -tags "$(CONTAINERD_TAGS)" -ldflags "-s -w" -o ../../bin/ctr $(CONTAINERD)/cmd/ctr'
