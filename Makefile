# One word a job; each does its own set-up. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
CACHE := $(or $(VHOSTUSER_CACHE),.cache)
FUZZ_TARGETS := decode messages regions memory rings fuse inflight
FUZZ_COMPILED := messages regions rings inflight decode
FUZZ_SECONDS := 60
RERUNS := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format vm picture bench bench-vm soak fuzz fuzz-long matrix fuzz-targets clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make a virtual environment with the package and its tools in it

$(STAMP): pyproject.toml setup.py $(wildcard src/vhostuser/_native/*.p[yx]*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,check,build,tui]'
	@touch $@

demo: setup ## share files through a region, message by message; then one with a Linux guest (fetched, about 110 MB)
	@$(BIN)/vhu vm fetch >/dev/null || echo 'so there is no second act, in a VM'
	$(BIN)/vhu demo

vm: setup ## fetch QEMU >= 11.1, a kernel, tshark and a browser into the cache (no root, nothing installed, about 1 GB)
	$(BIN)/vhu vm fetch
	$(BIN)/python -m vhostuser.vm.tools
	$(BIN)/python -m tests.conformance.specification

picture: setup ## draw the README's picture from what the demonstration records
	$(BIN)/vhu demo --into $(CACHE)/picture >/dev/null
	$(BIN)/python -m vhostuser.trace.report.picture $(CACHE)/picture/demo.pcapng docs/region.svg

test: setup ## run the suite twice: all of it compiled; in pure Python and without asserts what may differ there
	@$(BIN)/vhu vm fetch && $(BIN)/python -m vhostuser.vm.tools && $(BIN)/python -m tests.conformance.specification; case $$? in \
	  0) export VHOSTUSER_REQUIRE_VM=1 ;; \
	  3) echo 'the tests against QEMU, tshark and a browser are skipped; with a network, `make vm` enables them' ;; \
	  *) exit 1 ;; esac; \
	set -ex; \
	$(BIN)/python -m pytest -n auto -q --reruns $(RERUNS); \
	VHOSTUSER_PURE=1 $(BIN)/python -O -m pytest -n auto -q --reruns $(RERUNS) -m 'not once'

check: setup ## lint, types, layers, coverage floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_layers.py
	$(BIN)/python tests/coverage_floors.py

format: setup ## let ruff lay the code out
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## print each performance goal with today's ratio
	$(BIN)/python benchmarks/goals.py
	$(BIN)/python benchmarks/neighbour.py
	$(BIN)/python benchmarks/trace.py

bench-vm: setup ## print the goals of shared directories: vhu-fs against virtiofsd in one guest (`make vm` first; minutes)
	$(BIN)/python benchmarks/vm.py

soak: setup ## a million pairs of map and unmap; a disk under load; half an hour of kills: nothing may leak, fail or be lost
	$(BIN)/python benchmarks/soak.py
	$(BIN)/python benchmarks/blk.py --soak 30 || test $$? -eq 3
	$(BIN)/python benchmarks/soak_kill.py

fuzz: setup ## throw random input at both sides, flip the fields of live rings, and fuzz seven targets a minute each
	$(BIN)/python -m pytest -q tests/property --hypothesis-seed=random
	set -ex; for pure in '' 1; do \
	  export VHOSTUSER_PURE=$$pure FLIP_SECONDS=60 FLOOD_ROUNDS=3907; \
	  $(BIN)/python -m pytest -q tests/hostile/test_flipping.py tests/hostile/test_storms.py; \
	done
	$(MAKE) fuzz-targets FUZZ_SECONDS=60

fuzz-long: ## the seven targets, 15 minutes each, and those that reach compiled code again under sanitizers
	$(MAKE) fuzz-targets FUZZ_SECONDS=900

fuzz-targets: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	@failed=; for target in $(FUZZ_TARGETS); do \
	  $(BIN)/python -m tests.fuzz.run $$target --seconds $(FUZZ_SECONDS) || failed="$$failed $$target"; \
	done; for target in $(FUZZ_COMPILED); do \
	  $(BIN)/python -m tests.fuzz.sanitized $$target --seconds $(FUZZ_SECONDS) || failed="$$failed $$target(sanitized)"; \
	done; \
	test -z "$$failed" || { echo "these have found something, see .fuzz/crashes:$$failed"; exit 1; }

matrix: setup ## hold real peers to the specification, docs/matrix.md (half an hour; PEER=virtiofsd: only that one)
	$(BIN)/vhu vm fetch >/dev/null
	PYTHONPATH=src nice -n 5 $(BIN)/python -m tests.matrix $(PEER)

clean: ## remove what was built; the cache stays (rm -r .cache takes that too)
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
	find src -name '*.so' -delete
	rm -f src/vhostuser/_native/*.c
