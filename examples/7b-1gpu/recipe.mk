# A 7B chat model on one 80 GB GPU: the recipe's own numbers, with LoRA where full finetuning would not fit.
#   make all RECIPE=examples/7b-1gpu/recipe.mk MODEL=… PROMPTS=… JUDGE=…
# Not run yet: no such GPU was at hand when it was written.
RUN      ?= runs/7b
MODEL    ?= meta-llama/Llama-2-7b-chat-hf
PROMPTS  ?= prompts
JUDGE    ?= rules
SEED     ?= 0

DRAW     ?= --temperature 0.7 --max-tokens 1024
N_PAIR   ?= 2
PAIRS    ?= 1
N_SET    ?= 64
N_EVAL   ?= 4

TRAIN    ?= --lora-r 64
RM_ARGS  ?= --lr 1e-4 --batch 128 --epochs 1 --max-tokens-per-row 8192
RS_TOP   ?= 1
SFT_ARGS ?= --lr 2e-4 --batch 128 --epochs 3 --max-tokens-per-row 8192
BETA     ?= 0.1
DPO_ARGS ?= --lr 5e-6 --batch 128 --epochs 1 --max-tokens-per-row 8192
PPO_ARGS ?= --advantage group --iterations 50 --prompts 64 --n 8 --ppo-epochs 1 --minibatch 16 --lr 1e-5 --kl 0.05
