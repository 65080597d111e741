# A 7B model, all weights, on one machine with eight 80 GB GPUs: the recipe's own numbers under DeepSpeed ZeRO-3.
#   make all RECIPE=examples/7b-8gpu/recipe.mk MODEL=… PROMPTS=… JUDGE=…
# Not run yet: no such machine was at hand when it was written. README.md beside this file has the notes.
RUN      ?= runs/7b-full

# PPO runs in one process and takes no --gpus, so the cluster's options stand with the stages that do.
CLUSTER  := --gpus 8 --zero 3 --max-tokens-per-row 8192
TRAIN    ?= --dtype bfloat16
RM_ARGS  ?= $(CLUSTER) --lr 1e-5 --batch 128 --epochs 1
SFT_ARGS ?= $(CLUSTER) --lr 2e-5 --batch 128 --epochs 3
DPO_ARGS ?= $(CLUSTER) --lr 5e-7 --batch 128 --epochs 1
PPO_ARGS ?= --lora-r 64 --advantage group --iterations 50 --prompts 64 --n 8 --ppo-epochs 1 --minibatch 16 \
            --lr 1e-5 --kl 0.05

# the rest as on one GPU
include $(dir $(lastword $(MAKEFILE_LIST)))../7b-1gpu/recipe.mk
