# setup: .venv with everything; demo: the whole path; test: lint, types, tests; test-arm64, test-image: the device's software
# under qemu; fuzz: hostile DICOM files; soak: the daemon killed POINTS times; hostile: it among attackers; bench-*: figures on real data
PYTHON ?= python3
# The tested versions, for Python 3.11 and later; `make setup CONSTRAINTS=` lets pip choose.
CONSTRAINTS ?= constraints.txt
VENV := .venv
BIN := $(VENV)/bin
DATA ?=
OUT ?= results
TOGETHER := --numprocesses 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
POINTS ?= 1000

.PHONY: setup system demo lint test test-all test-networks test-arm64 test-image bench-intake fuzz soak hostile bench-compress bench-cohort clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	PYTHON="$(PYTHON)" bash tools/system_packages.sh setup
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(addprefix --constraint ,$(CONSTRAINTS)) --editable '.[all]'
	touch $@

system:
	bash tools/system_packages.sh test

demo: setup
	$(BIN)/hscc-edge demo --out demo --overwrite

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: setup system lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TOGETHER) -m "not long"

# with whole sweeps, recoveries and further kinds of network
test-all: setup system lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TOGETHER)

# engines of whole networks by a real builder, and compression of every kind of network
test-networks: setup system
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TOGETHER) --durations 30 tests/export/test_whole_networks.py tests/compress/test_networks.py

# as root; seven minutes and more the first time, kept in build/arm64 (ARM64_ROOT)
test-arm64: setup
	bash tools/system_packages.sh arm64
	bash tools/arm64.sh

# Dockerfile.jetson on that root in place of NVIDIA's image: as far as it goes
test-image: test-arm64
	bash tools/system_packages.sh image
	bash tools/arm64_image.sh

bench-compress: setup
	@test -n "$(DATA)" || { echo "error: DATA is not given: run make bench-compress DATA=DIR, DIR with the pictures' archives" >&2; exit 2; }
	$(BIN)/python benchmarks/compress.py --data "$(DATA)" --out "$(OUT)"

# duplicates and shortcuts, calibration choices, scanning: about two hours on two cores, and 10 GB of disk for a while
bench-cohort: setup
	@test -n "$(DATA)" || { echo "error: DATA is not given: run make bench-cohort DATA=DIR, DIR with the pictures' archives" >&2; exit 2; }
	$(BIN)/python benchmarks/duplicates.py --data "$(DATA)" --out "$(OUT)/duplicates"
	$(BIN)/python benchmarks/scan.py --files 20000 --rounds 2 --out "$(OUT)/scan"
	$(BIN)/python benchmarks/calibration.py --data "$(DATA)" --out "$(OUT)/calibration"

# as root for the small full volume, else that is left out; half an hour on two quiet cores
soak: setup system
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py --points $(POINTS) --out "$(OUT)"

# hostile.json and sentinels.json: 10,000 mutated associations and as many requests
hostile: setup system
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/hostile.py --tries 10000 --out "$(OUT)"
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/sentinels.py --studies 200 --out "$(OUT)"

# intake.json: ours, storescp and Orthanc by 1, 4 and 8 senders, then memory over 50,000 instances; an hour on two quiet
# cores, and 10 GB of disk for a while
bench-intake: setup system
	$(BIN)/python benchmarks/intake.py --out "$(OUT)"

fuzz: setup system
	$(BIN)/python benchmarks/fuzz_dicom.py --files 5000 --out "$(OUT)/fuzz"

clean:
	rm -rf demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
