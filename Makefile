# Each target is a few lines; `make` alone tells what there is.
PYTHON ?= python3.11
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# A Spark or a configuration of the machine's own must not get between the project and its pinned PySpark.
unexport SPARK_HOME SPARK_CONF_DIR

.PHONY: help setup wheelhouse lock data demo demo-stream check test faults soak lint bench-start bench-ingest bench-stream bench-feed bench-ring cluster cluster-stop kafka kafka-stop clean

help:            ## this list
	@grep -hE '^[a-z-]+: .*##' Makefile | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 16

setup:           ## .venv with all that is needed (under a second if it is there)
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed, and there is no $(PYTHON) in the PATH (Debian, Ubuntu: apt-get install python3.11 python3.11-venv python3.11-dev; RHEL, Fedora: dnf install python3.11 python3.11-devel; macOS: brew install python@3.11), or: make PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) scripts/setup.py

wheelhouse: setup ## DIR=...: all that set-up fetches, for a machine without network
	@$(BIN)/python scripts/wheelhouse.py "$(DIR)"

lock: setup      ## requirements.lock anew, from pyproject.toml
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile pyproject.toml --extra dev --python-version 3.11 \
	  --upgrade --generate-hashes --no-emit-index-url --quiet --output-file requirements.lock > /dev/null

data: setup      ## the flights' five tables in data/
	@$(BIN)/python scripts/unpack_nycflights.py

demo: data       ## files to an evaluated model, on a year of flights
	@$(BIN)/python scripts/demo.py

demo-stream: data ## the same year through Kafka, with a job killed half-way, compared with the file
	@$(BIN)/python scripts/demo_stream.py

check: setup     ## RECIPE=..., CONTRACT=... (or all): contracts and recipes by themselves, in a second or two
	@$(BIN)/python scripts/check.py $(RECIPE:%=--recipe "%") $(CONTRACT:%=--contract "%")

lint: setup      ## style, types, import rules, contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@printf '%s\0' schemas/*.yaml | xargs -0 -n 1 -P 2 sh -c 'out=$$($(BIN)/datacontract lint "$$0" 2>&1) || { echo "$$out"; exit 1; }'

test: lint data  ## lint, then the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

faults: data     ## the slow tests: processes killed in the middle, the whole path on a cluster
	$(BIN)/python -m pytest -m faults -n 2 --dist loadfile

soak: setup      ## a stream killed at KILLS=50 random moments, and what it leaves compared with one that was not
	SOAK_KILLS=$(or $(KILLS),50) $(BIN)/python -m pytest -m soak -n 0 -p no:cacheprovider tests/etl/test_stream_soak.py

bench-start: setup ## seconds from a job's launch to its first Spark action, less a bare session's
	@$(BIN)/python benchmarks/start.py

bench-ingest: data ## what the ingest costs, against plain Spark, a merge by hand, and itself
	@$(BIN)/python benchmarks/ingest.py

bench-stream: setup ## what streaming costs, against the parsing alone, appends and merges by hand, and itself
	@$(BIN)/python benchmarks/stream.py

bench-feed: setup ## what the feed costs, against a plain scan, Petastorm's stock path, and itself
	@$(BIN)/python benchmarks/feed.py

bench-ring: setup ## what the training costs beyond its arithmetic, against bare functions, TensorFlow's strategy, and itself
	@$(BIN)/python benchmarks/ring.py

cluster: setup   ## a standalone Spark master and two workers on this machine
	@$(BIN)/python scripts/cluster.py start

cluster-stop:    ## ends them
	@$(BIN)/python scripts/cluster.py stop

kafka: setup     ## a Kafka broker on this machine; PORT=... (or a free one)
	@$(BIN)/python scripts/kafka.py start $(PORT:%=--port %)

kafka-stop:      ## ends it; its topics stay in .kafka
	@$(BIN)/python scripts/kafka.py stop

clean:           ## removes what runs left here (not .venv, not data); ends broker and cluster
	@[ ! -d .kafka ] || $(PYTHON) scripts/kafka.py stop
	@[ ! -d .cluster ] || $(PYTHON) scripts/cluster.py stop
	rm -rf lake .cluster .kafka artifacts spark-warehouse metastore_db derby.log build dist .pytest_cache .mypy_cache .ruff_cache
