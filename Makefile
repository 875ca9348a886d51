# Drover. Two commands do everything: make demo, make test.
# All they need beside Linux, Go, git and make is installed by `make setup`, which they call.

# The programs are static: they run on any Linux, also from a rescue system.
export CGO_ENABLED ?= 0

BIN   := build/bin
TOOLS := build/tools

GOLANGCI_LINT_VERSION := v2.4.0
WORKFLOWCHECK_VERSION := v0.6.0
NFPM_VERSION          := v2.43.0
GOLANGCI_LINT := $(TOOLS)/golangci-lint-$(GOLANGCI_LINT_VERSION)
WORKFLOWCHECK := $(TOOLS)/workflowcheck-$(WORKFLOWCHECK_VERSION)
NFPM          := $(TOOLS)/nfpm-$(NFPM_VERSION)

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION) -X drover/worker/service.version=$(VERSION)


.PHONY: help
help: ## list what can be made
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: setup
setup: ## install what the tests need from the system's packages (root on Debian), or say what is missing
	@tests/setup.sh

.PHONY: setup-test
setup-test: ## install what only tests need, too: QEMU, and a kernel for its guest (into build/guest)
	@tests/setup.sh test

.PHONY: build
build: ## build all programs into build/bin
	@mkdir -p $(BIN)
	go build -ldflags '$(LDFLAGS)' -o $(BIN)/ ./starter/cmd/... ./agent/cmd/... ./worker/cmd/... ./datapath/cmd/... ./tests/lab/cmd/... ./tests/vsim/cmd/...
	go build -ldflags '$(LDFLAGS)' -o $(BIN)/drover-demo ./tests/demo
	cd standalone && go build -ldflags '$(LDFLAGS)' -o ../$(BIN)/ ./cmd/...

# A tag's version, and how far we are from it: 1.2.0, 1.2.0+5.gabcdef0.
PACKAGE_VERSION ?= $(shell git describe --tags --match 'v[0-9]*' 2>/dev/null | sed -e 's/^v//' -e 's/-/+/' -e 's/-/./g' | grep . || echo 0.0.0)

.PHONY: packages
packages: $(NFPM) ## the agent as .deb and .rpm in build/packages
	@mkdir -p $(BIN) build/packages
	go build -ldflags '$(LDFLAGS)' -o $(BIN)/ ./agent/cmd/drover-agent
	for kind in deb rpm; do VERSION='$(PACKAGE_VERSION)' ARCH=$$(go env GOARCH) BIN=$(BIN) \
		$(NFPM) package --config agent/packaging/nfpm.yaml --packager $$kind --target build/packages/ || exit 1; done

.PHONY: windows
windows: ## the agent for Windows as build/bin/windows/drover-agent.exe; see docs/agent.md for what it is worth
	@mkdir -p $(BIN)/windows
	GOOS=windows GOARCH=amd64 CGO_ENABLED=0 go build -ldflags '$(LDFLAGS)' -o $(BIN)/windows/ ./agent/cmd/drover-agent

.PHONY: demo
demo: setup $(if $(CLOUD),setup-test) build ## the whole life of a three-machine application on real disks; KEEP=1 leaves it up, CLOUD=azurite keeps replicas in emulated page blobs and fails over to an emulated Azure
	$(BIN)/drover-demo --dir build/demo --bin $(BIN) $(if $(KEEP),--keep) $(if $(CLOUD),--cloud $(CLOUD))

.PHONY: test
test: setup-test build windows lint unit model kill-matrix groups-short pg-points together ## every test

# The end-to-end tests mostly wait; decoders are fuzzed meanwhile, with what is left over.
.PHONY: together
together:
	+nice -n 19 $(MAKE) fuzz > build/fuzz.log 2>&1 & fuzz=$$!; \
	$(MAKE) e2e; e2e=$$?; wait $$fuzz; fuzz=$$?; cat build/fuzz.log; test $$e2e = 0 -a $$fuzz = 0

.PHONY: unit
unit: packages ## tests beside the code, with the race detector; of the stores' model, which it makes ten times slower, less (make model plays all)
	CGO_ENABLED=1 go test -race -timeout 10m $$(go list ./... | grep -v -e /tests/e2e -e /tests/demo -e /tests/pg -e /tests/groups -e '/replica/file$$' -e '/replica/pageblob$$')
	CGO_ENABLED=1 go test -race -timeout 10m ./datapath/replica/file ./datapath/replica/pageblob -rapid.checks=20
	cd standalone && go test -timeout 10m ./...

SEEDS ?= 200
SEED  ?= 1

.PHONY: model
model: ## play SEEDS (200) random lives of a machine, from SEED (1) on, against a plain copy of its disks
	go test -count=1 -timeout 2h ./tests/model -seeds $(SEEDS) -seed $(SEED)
	go test -count=1 -timeout 10m -run TestConformance ./datapath/replica/file

FUZZTIME ?= 20s

.PHONY: fuzz
fuzz: ## fuzz every decoder for FUZZTIME (20s), two at a time; what is found is kept in testdata/fuzz
	go run ./tests/fuzz/run -time $(FUZZTIME)

.PHONY: kill-matrix
kill-matrix: ## agent and server killed with SIGKILL at every step that makes something durable; the agent at every step of an enrolment and a freeze
	go test -tags failpoint -count=1 -timeout 5m ./datapath/failpoint/ ./tests/kill/
	go test -tags failpoint -count=1 -timeout 5m -parallel 6 -run TestKilled ./tests/fault/
	go test -count=1 -timeout 5m -run TestAgentKilledInTheFreeze ./agent/quiesce/freeze/ -kills 100

.PHONY: replay
replay: $(WORKFLOWCHECK) ## replay the recorded histories of all workflows on this code, whole and cut off at every step; look for what is not deterministic
	go test -count=1 ./tests/replay
	$(WORKFLOWCHECK) ./workflows/...

.PHONY: steps
steps: ## simulate every kind of a plan's run and disturb every call of it in every way; go on and back from there; the largest plan
	go test -count=1 -timeout 30m -v -run TestEveryStep ./starter/simulate -long
	go test -count=1 -timeout 30m -run TestLargestPlan ./workflows/plan -long

AZURITE_PACKAGES := ./datapath/azstorage/ ./datapath/cachestore/blockblob/ ./tests/pageblob/ ./tests/compat/

.PHONY: test-azure
test-azure: setup-test build ## page blobs, cache, machines and log-ins on emulators, in memory and on disk: conformance, faults, failover, processes killed at every step
	go test -count=1 -timeout 30m $(AZURITE_PACKAGES) ./datapath/cachestore/ ./datapath/replica/pageblob/vhd/ ./activities/azure/ ./tests/azurearm/
	go test -count=1 -timeout 30m ./datapath/replica/pageblob/ -rapid.checks=60
	DROVER_AZURITE_DISK=1 go test -count=1 -timeout 30m $(AZURITE_PACKAGES)
	DROVER_AZURITE_DISK=1 go test -count=1 -timeout 30m ./datapath/replica/pageblob/ -rapid.checks=20
	go test -tags failpoint -count=1 -timeout 60m -run InAzure ./tests/kill/ -azure
	DROVER_BIN=$(abspath $(BIN)) go test -count=1 -timeout 10m -v -run TestBackByATemporaryProcessServer ./tests/e2e/

.PHONY: test-vsphere
test-vsphere: ## sessions, watching (300 VMs), privileges, disks and the way back on a simulated vCenter, with faults
	go test -count=1 -timeout 15m ./activities/vsphere/ -vms 300
	go test -count=1 -timeout 5m ./workflows/discovery/ ./workflows/failback/ ./workflows/machine/ ./activities/push/ ./activities/secretfile/

.PHONY: push-demo
push-demo: setup-test ## install the agent in guests of their own, over a real sshd and by VMware Tools (in a simulated VM), then upgrade and remove it
	go test -count=1 -timeout 5m -v ./tests/push -show

.PHONY: bench-vsphere
bench-vsphere: ## measure discovery of 2,000 VMs, loaded from a saved model: time, memory, and room in a history
	go test -v -run '^$$' -bench Discovery -benchtime 3x ./activities/vsphere

.PHONY: bench-azure
bench-azure: setup-test ## measure uploads to an emulator, beside azcopy where it is installed; fails when an initial replication is slower than a plain loop of 4 MiB requests
	go test -run '^$$' -bench . -benchtime 1x -count 3 ./datapath/replica/pageblob
	go test -run NotSlowerThanAPlainLoop -count=1 -v ./datapath/replica/pageblob -floor

.PHONY: e2e
e2e: setup build ## the whole cycle, and every process killed once
	DROVER_BIN=$(abspath $(BIN)) go test -count=1 -timeout 20m -v ./tests/e2e/...

.PHONY: histories
histories: setup build ## record the histories that the replay tests replay (move the old ones aside first, they are to replay too), from a demo, from a run with crashes, and of states that neither comes to
	$(BIN)/drover-demo --dir /tmp/drover-histories --bin $(BIN) --histories tests/replay/testdata/cycle
	rm -rf /tmp/drover-histories
	DROVER_BIN=$(abspath $(BIN)) DROVER_HISTORIES=$(abspath tests/replay/testdata/killed) go test -count=1 -timeout 20m -run TestEveryProcessIsKilled ./tests/e2e/
	go run ./tests/replay/states -bin $(BIN) -out tests/replay/testdata/states

.PHONY: errors
errors: ## write docs/errors.md from the catalogue of errors in the code
	go generate ./tests/errdoc

N  ?= 1000
DB ?= sqlite

.PHONY: scale
scale: ## N (1000) machines on the embedded Temporal server, on DB=sqlite or postgres, with two workers of which one is killed: a table
	cd standalone && go test -count=1 -timeout 2h -v -run TestScale ./scale -machines $(N) -db $(DB) -updates 50 -kill

YEARS ?= 10

.PHONY: years
years: ## play YEARS (10) of a machine's life, 10,000 points, 50 resyncs and 4 failovers each, through its workflow
	go test -count=1 -timeout 30m -v -run TestYearsOfALife ./workflows/machine -years $(YEARS) | grep -v DEBUG

.PHONY: cover
cover: ## how much of the data path its tests run, package by package; fails below 85 %
	@mkdir -p build
	go test -timeout 20m -coverpkg=./datapath/... -coverprofile=build/cover.out ./datapath/... ./tests/stream ./tests/fault ./tests/model > build/cover.log || { cat build/cover.log; exit 1; }
	go run ./tests/cover -least 85 build/cover.out

.PHONY: mutants
mutants: ## take away the code that keeps each invariant, piece by piece, and see its tests fail (20 minutes)
	go run ./tests/mutants

.PHONY: bench
bench: ## measure each stage of the data path alone
	go test -run '^$$' -bench . -benchtime 5x ./tests/bench ./datapath/replica/file

LENGTH ?= 60s

.PHONY: tracking
tracking: setup-test ## prove for LENGTH (60s) under load that tracking misses nothing, and measure what it costs
	go test -count=1 -timeout 3h -v ./tests/tracking -length $(LENGTH) -overhead 5
	go test -count=1 -timeout 3h -v ./tests/cuts -seconds 60

POINTS ?= 20

.PHONY: groups-short
groups-short: setup-test
	go test -count=1 -timeout 10m ./tests/groups

.PHONY: groups
groups: ## the order of writes over three machines at ROUNDS (300) points of their group, and KILLS (60) kills in the middle
	go test ./tests/groups -count=1 -timeout 30m -rounds $(or $(ROUNDS),300) -kills $(or $(KILLS),60)

.PHONY: pg-points
pg-points: setup-test ## recover PostgreSQL from POINTS (20) recovery points of a disk under pgbench; nothing acknowledged is missing
	go test -count=1 -timeout 30m -v -run TestEveryAcknowledgedTransactionIsThere ./tests/pg -points $(POINTS)

.PHONY: mysql-points
mysql-points: ## recover MariaDB (apt-get install mariadb-server) from every point of a disk under writes; not part of make test
	go test -count=1 -timeout 10m -v -run TestMySQL ./tests/pg

.PHONY: freeze
freeze: setup-test ## measure for LENGTH (60s) each for how long file systems are frozen, under pgbench and fio on ext4 and xfs
	go test -count=1 -timeout 1h -v -run TestFreezeTimes ./tests/pg -length $(LENGTH)

RUNS ?= 5

.PHONY: peers
peers: ## measure beside zstd|ssh, nbdcopy and rsync: one table, medians of RUNS (5); installs them on Debian
	@tests/peers/setup.sh
	@mkdir -p $(BIN)
	go build -o $(BIN)/drover-peers ./tests/peers
	$(BIN)/drover-peers --runs $(RUNS)

SOAK_MINUTES ?= 60

.PHONY: soak
soak: ## hours: 32 streams to one server for SOAK_MINUTES (60), 10,000 random lives, 10,000 hostile connections, decoders fuzzed for five minutes each, tracking under load
	go test -count=1 -v -timeout 0 -run TestMemoryStaysFlat ./tests/soak -for $(SOAK_MINUTES)m -streams 32
	$(MAKE) model SEEDS=10000 SEED=100000
	go test -count=1 -timeout 30m -run TestCase26HostileLengths ./tests/fault -connections 10000
	$(MAKE) fuzz FUZZTIME=5m
	$(MAKE) tracking LENGTH=30m

.PHONY: lint
lint: $(GOLANGCI_LINT) $(WORKFLOWCHECK) ## formatting, linters, determinism of the workflows
	@test -z "$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go'))" || { gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go'); echo 'gofmt: the files above are not formatted'; exit 1; }
	$(GOLANGCI_LINT) run ./...
	cd standalone && ../$(GOLANGCI_LINT) run --config ../.golangci.yml ./...
	$(WORKFLOWCHECK) ./workflows/...

$(GOLANGCI_LINT):
	@mkdir -p $(TOOLS)
	GOBIN=$(abspath $(TOOLS)) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
	mv $(TOOLS)/golangci-lint $@

$(NFPM):
	@mkdir -p $(TOOLS)
	GOBIN=$(abspath $(TOOLS)) go install github.com/goreleaser/nfpm/v2/cmd/nfpm@$(NFPM_VERSION)
	mv $(TOOLS)/nfpm $@

$(WORKFLOWCHECK):
	@mkdir -p $(TOOLS)
	GOBIN=$(abspath $(TOOLS)) go install go.temporal.io/sdk/contrib/tools/workflowcheck@$(WORKFLOWCHECK_VERSION)
	mv $(TOOLS)/workflowcheck $@

.PHONY: clean
clean: ## remove everything that was built
	rm -rf build
