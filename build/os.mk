# What an OS image has besides machined and bin/system: stage 1, in the initramfs.
# `holdfast os build` takes all of it from the folder that bin/holdfast is in; for
# another processor from its folder there: make os ARCH=arm64.
ARCH ?= $(shell go env GOARCH)
NATIVE := $(shell go env GOARCH)
OSDIR := $(if $(filter $(ARCH),$(NATIVE)),bin,bin/$(ARCH))
OSBUILD := env CGO_ENABLED=0 GOARCH=$(ARCH) go build -trimpath -buildvcs=false

.PHONY: os os-programs measure-delta
os: $(OSDIR)/init os-programs ## bin/init, stage 1 of the OS image (seconds); ARCH=arm64: all programs of that OS image, into bin/arm64

.PHONY: $(OSDIR)/init
$(OSDIR)/init:
	@mkdir -p $(@D)
	@$(STEP) "build $@" $(OSBUILD) -ldflags "-s -w -buildid=" -o $@ ./cmd/init

ifeq ($(ARCH),$(NATIVE))
os-programs: ;
else
# Kubernetes takes 8 to 12 minutes again: nothing is shared between processors.
OSSYSTEM := $(OSDIR)/system
CROSS_arm64 := aarch64-linux-gnu-gcc
os-programs:
	@mkdir -p $(OSSYSTEM)/cni
	@echo '#include <seccomp.h>' | $(CROSS_$(ARCH)) -E - >/dev/null 2>&1 || { echo "runc for $(ARCH) needs a C compiler for it and its libseccomp; on Debian: dpkg --add-architecture $(ARCH), then apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross libseccomp-dev:$(ARCH)" >&2; exit 1; }
	@$(STEP) "build machined for $(ARCH)" $(OSBUILD) $(TAGS) -ldflags "$(LDFLAGS)" -o $(OSDIR)/machined ./cmd/machined
	@$(STEP) "build applier for $(ARCH)" $(OSBUILD) -ldflags "$(LDFLAGS)" -o $(OSSYSTEM)/applier ./cmd/applier
	@$(STEP) "build kube for $(ARCH)" sh -c 'cd kubernetes && $(OSBUILD) -ldflags "$(call kube_ldflags,$(KUBE_VERSION))" -o ../$(OSSYSTEM)/kube .'
	@$(STEP) "build containerd for $(ARCH)" sh -c 'cd runtime/containerd && $(OSBUILD) -tags "$(CONTAINERD_TAGS)" -ldflags "-s -w" -o ../../$(OSSYSTEM)/ $(CONTAINERD)/cmd/containerd $(CONTAINERD)/cmd/containerd-shim-runc-v2'
	@$(STEP) "build the CNI plugins for $(ARCH)" sh -c 'cd runtime/cni && $(OSBUILD) -ldflags "-s -w" -o ../../$(OSSYSTEM)/cni/ $(addprefix $(CNI)/,$(CNI_PLUGINS))'
	@$(STEP) "build coredns for $(ARCH)" sh -c 'cd runtime/coredns && $(OSBUILD) -ldflags "-s -w" -o ../../$(OSSYSTEM)/coredns .'
	@$(STEP) "build runc for $(ARCH)" sh -c 'cd runtime/runc && CGO_ENABLED=1 CC=$(CROSS_$(ARCH)) GOARCH=$(ARCH) go build -trimpath -tags "netgo osusergo seccomp" -ldflags "-s -w -linkmode external -extldflags -static -X main.version=$(RUNC_VERSION)" -o ../../$(OSSYSTEM)/runc github.com/opencontainers/runc'
	@$(OSBUILD) -ldflags "-s -w" -o $(OSSYSTEM)/pause ./runtime/pause
	@$(STEP) "pack pause for $(ARCH)" go run ./runtime/pack -ref $(PAUSE_REF) -arch $(ARCH) -o $(OSSYSTEM)/pause.tar $(OSSYSTEM)/pause
endif

measure-delta: build system os bin/system-previous/kube ## what updates of the OS image move: one line in machined, a patch release of Kubernetes (cold: 15 minutes; warm: about 4)
	@TAGS="$(TAGS)" LDFLAGS="$(LDFLAGS)" KUBE_VERSION=$(KUBE_VERSION) KUBE_PREVIOUS_VERSION=$(KUBE_PREVIOUS_VERSION) build/measure-delta
