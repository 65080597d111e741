# The demo: SmolLM2-135M-Instruct on two CPU cores. Every value can be given to make: make demo N_SET=32
RUN      ?= runs/demo
MODEL    ?= $(RUN)/smollm2
PROMPTS  ?= examples/demo
JUDGE    ?= rules
SEED     ?= 0

DRAW     ?= --temperature 0.8 --max-tokens 48
N_PAIR   ?= 8
PAIRS    ?= all
N_SET    ?= 16
N_EVAL   ?= 8

TRAIN    ?= --train-top 15
RM_ARGS  ?= --lr 4e-5 --head-lr 1e-3 --batch 8 --epochs 1
RS_TOP   ?= 2
SFT_ARGS ?= --lr 6e-5 --batch 16 --epochs 1
BETA     ?= 0.1
DPO_ARGS ?= --lr 2.2e-5 --batch 16 --epochs 1
PPO_ARGS ?= --advantage group --iterations 6 --prompts 16 --n 8 --ppo-epochs 1 --minibatch 4 \
            --lr 2e-5 --kl 0.02
