#!/bin/bash
# All stages on one machine: ./run.sh DATASET_BINARY. WORK says where files go, GPUS how many GPUs there are, and
# the *_END variables at which second after the start each stage ends. Stages start early, compile, and wait for
# what they need from others.
cd "$(dirname "$0")" || exit 1
draw=$1
export WORK=${WORK:-$PWD/.work} GPUS=${GPUS:-1} PYTHONUNBUFFERED=1 OMP_NUM_THREADS=4
export TORCHINDUCTOR_CACHE_DIR=$WORK/cache/inductor TRITON_CACHE_DIR=$WORK/cache/triton NCCL_NVLS_ENABLE=0 TORCHINDUCTOR_COMPILE_THREADS=12
mkdir -p "$WORK"
few=${FEW:-2000} many=${MANY:-12000} judge=${JUDGE:-8000} pictures=8
began=$(date +%s)
say() { echo "== $(($(date +%s) - began)) s: $*"; }
at() { echo "@$((began + $1))"; }
on() { # on GPU command...: one process on one GPU
  local gpu=$(($1 % GPUS)); shift
  CUDA_VISIBLE_DEVICES=$gpu python3 "$@"
}
spread() { # spread N PORT command...: a process on each of the first N GPUs; they average their gradients
  local n=$(($1 < GPUS ? $1 : GPUS)) port=$2; shift 2
  for ((r = 0; r < n; r++)); do
    RANK=$r WORLD_SIZE=$n LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=$port CUDA_VISIBLE_DEVICES=$r nice -n ${NICE:-0} python3 "$@" &
  done
  wait
}
set_of() { nice -n 3 "$draw" --out "$WORK/$1" --people "$2" --first "$3" --pictures $pictures --references 2 $4; }

need() { [ ! -f "$WORK/$1.pt" ]; } # a checkpoint that is already there is used as it is
after() { until [ -f "$WORK/$1" ] || [ "$(($(date +%s) - began))" -gt "$2" ]; do sleep 1; done; }

# Compiling takes the longest where many compile at once, and everything waits for the autoencoder: it goes first.
need vae && { (BATCH=${VAE_BATCH:-32} spread ${VAE_GPUS:-1} 29500 vae.py "$(at ${VAE_END:-330})" train0) >"$WORK/vae.log" 2>&1 & }
need vae || touch "$WORK/vae.compiled"
(set_of test 240 1000001 --held-out; set_of train0 "$few" 1; say drawn the first; after vae.compiled 90
 set_of train1 "$many" $((few + 1)); say drawn the second; set_of train2 "$judge" 20001; say drawn all) &
after vae.compiled 90
say autoencoder compiled
need A && { (on ${A_GPU:-0} faces.py "$(at ${A_END:-330})" train0,train1 A) >"$WORK/A.log" 2>&1 & }
need B && { (on ${B_GPU:-0} faces.py "$(at ${B_END:-420})" train2 B) >"$WORK/B.log" 2>&1 & }
need probe && { (on ${READERS_GPU:-0} faces.py "$(at ${DETECTOR_END:-200}),$(at ${PROBE_END:-450})" train0 detector,probe) >"$WORK/readers.log" 2>&1 & }
after train0/truth.json 120
python3 base.py words train0
export TORCHINDUCTOR_COMPILE_THREADS=8
need unet && { (NICE=5 spread 8 29501 base.py "$(at ${BASE_END:-720})" train0,train1; say base done) >"$WORK/base.log" 2>&1 & }
need unet || touch "$WORK/base.compiled"
after base.compiled 330
need identitynet && { (NICE=5 spread 8 29502 identity.py "$(at ${IDENTITY_END:-1350})" train0,train1; say identity done) >"$WORK/identity.log" 2>&1 & }
wait
say trained
cases=("both;both at 0.8" "text only;IdentityNet only" "adapter only" "both, no identity;both, another's")
for i in 0 1 2 3; do on $i evaluate.py 240 ${GUIDANCE:-3.0} "${cases[$i]}" evaluation$i >"$WORK/evaluate$i.log" 2>&1 & done
wait
say evaluated
touch "$WORK/done"
