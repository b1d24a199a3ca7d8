# make demo: the whole pipeline on generated scenes. make test: the tests. Both set up what they need.
PYTHON ?= python3
VENV ?= $(CURDIR)/.venv
RUN := $(VENV)/bin
READY := $(VENV)/.cakdp_ready
KITTI ?= data/kitti

ARCHS ?= $(filter 75 80 86 89 90 120,$(subst sm_,,$(shell nvcc --list-gpu-code 2>/dev/null)))

.PHONY: help setup test test-cuda-on-cpu kernels lint demo study real pairs clean
help:
	@echo "All of it runs in VENV=$(VENV)"
	@echo "make demo   set up, then compress a detector on generated scenes; report in output/synthetic/second_cakdp"
	@echo "make test   set up, then run the tests"
	@echo "make test-cuda-on-cpu   run the tests of the ops on the CUDA kernels, compiled for this processor"
	@echo "make kernels            compile the CUDA kernels with nvcc for ARCHS (sm_: $(ARCHS))"
	@echo "make lint   formatting, lint, types"
	@echo "make study  the paper's ablations on generated scenes over three seeds (hours)"
	@echo "make pairs  a few steps of every student under every teacher on the KITTI frames in KITTI=$(KITTI) (minutes)"
	@echo "make real   over-fit and compress on real KITTI frames in KITTI=$(KITTI) (hours on a CPU)"

setup: $(READY)
$(READY): requirements.txt requirements-dev.txt pyproject.toml setup.py $(wildcard ops/*.cpp ops/*/*.cpp ops/*/*.h)
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --progress-bar on --upgrade pip "setuptools>=77" wheel
	$(RUN)/python -m pip install --progress-bar on -r requirements-dev.txt
	$(RUN)/python -m pip install --no-build-isolation --no-deps -e .
	touch $@

test: setup
	$(RUN)/python -m pytest -n auto --dist loadgroup

test-cuda-on-cpu: setup
	$(RUN)/python tests/ops/cuda_on_cpu/build.py build/cuda_on_cpu
	for order in "" CAKDP_THREADS_BACKWARDS=1; do \
		env $$order CAKDP_EXTENSION=_C PYTHONPATH=build/cuda_on_cpu $(RUN)/python -m pytest -q tests/ops || exit 1; \
	done

kernels: $(patsubst ops/cuda/%.cu,build/kernels/%.o,$(wildcard ops/cuda/*.cu))
build/kernels/%.o: ops/cuda/%.cu $(wildcard ops/cuda/*.h ops/include/*.h)
	mkdir -p $(@D)
	nvcc -c -O3 -std=c++17 -Iops/include $(foreach a,$(ARCHS),-gencode arch=compute_$(a),code=sm_$(a)) -o $@ $<

lint: setup
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy

demo: setup
	PYTHON=$(RUN)/python bash tools/demo.sh

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache

study: setup
	$(RUN)/python benchmarks/ablation.py --seeds 0 1 2

real: setup
	PYTHON=$(RUN)/python bash tools/few_frames.sh $(KITTI)

pairs: setup
	$(RUN)/python tools/make_infos.py --data_path $(KITTI)
	$(RUN)/python benchmarks/pairs.py --cfg cfgs/kitti/*_cakdp.yaml cfgs/kitti/pairs/*_0.50.yaml \
		--set DATA_CONFIG.DATA_PATH $(KITTI) DATA_CONFIG.NUM_HELD_OUT 0
