# Two commands: `make demo` builds and queries a small city, `make test` runs the tests. Both set up .venv first.
.PHONY: help setup demo test test-slow test-faults lint bench bench-recall bench-calibrated bench-encode bench-local bench-query bench-geotag bench-index bench-precision weights clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## */\t/' | expand -t 18

setup:  ## make .venv and install (see setup.sh for its settings)
	@./setup.sh

demo: setup  ## the main job on a small made-up city, into out/demo/
	@.venv/bin/folio demo out/demo

test: setup  ## every fast test
	@.venv/bin/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: setup  ## the long ones: kills, large maps
	@.venv/bin/python -m pytest -m slow

test-faults: setup  ## kills, races, a store that misbehaves, damage: the numbers of infra/README.md
	@rm -f out/faults.jsonl
	@FOLIO_FAULTS=full .venv/bin/python -m pytest tests/faults; status=$$?; \
	    .venv/bin/python -m tests.faults.profile | tee out/faults.md; exit $$status

lint: setup  ## formatting, lint and types
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy

bench: setup  ## how fast, how large; not a test
	@.venv/bin/python -m tests.benchmarks.pipeline

bench-recall: setup  ## how often the right place is found, beside hand-made descriptors; ARGS="--recipe tiny --sets mapillary"
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 .venv/bin/python -m tests.benchmarks.recall $(ARGS)

bench-calibrated: setup  ## what calibration is worth: pools, recall and time beside the defaults; ARGS="--sets street-lund,mapillary"
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE .venv/bin/python -m tests.benchmarks.calibrated $(ARGS)

bench-encode: setup  ## how near encoding comes to the bare network; ARGS="--networks folio-small --stores disk"
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE .venv/bin/python -m tests.benchmarks.encode $(ARGS)

bench-local: setup  ## how few local features, in how few bytes, are enough; ARGS="--sets mapillary"
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 .venv/bin/python -m tests.benchmarks.local_features $(ARGS)

bench-query: setup  ## what a query costs, beside the plain method, and on a large map; ARGS="--parts rerank --queries 2"
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE .venv/bin/python -m tests.benchmarks.query $(ARGS)

bench-geotag: setup  ## photos a second of an archive in bulk, beside one by one; ARGS="--map-photos 3000 --photos 64"
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE .venv/bin/python -m tests.benchmarks.geotag $(ARGS)

bench-index: setup  ## what the index finds and costs as a map grows, beside exact search, FAISS and autofaiss; ARGS="--photos 10000"
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE .venv/bin/python -m tests.benchmarks.index $(ARGS)

bench-precision: setup  ## whether geotags keep their promise, alone and along paths; ARGS="--sets walks-1,street-lund"
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE .venv/bin/python -m tests.benchmarks.geotag_precision $(ARGS)

weights: setup  ## train the default weights anew from the photos beside the project; run again to go on
	@.venv/bin/python -m tests.benchmarks.default_weights out/weights

clean:  ## remove what the targets made
	rm -rf .venv out .mypy_cache .ruff_cache .pytest_cache *.egg-info
