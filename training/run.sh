#!/bin/bash
# All stages on one machine with two GPUs (or one): ./run.sh DATASET_BINARY. WORK says where files go, GPUS how many
# GPUs there are, and the *_END variables at which second after the start each stage ends. Stages start early, compile,
# and wait for what they need from others; a checkpoint that is already there is used as it is. BASE_ON and IDENTITY_ON list
# the GPUs of those stages, MORE people are drawn beside the first 24,000, and with STOP=base only A and base are trained.
# FIRST is the first person's seed, for new people when going on from earlier checkpoints (B's people are 30001 to 50000).
cd "$(dirname "$0")" || exit 1
draw=$1
export WORK=${WORK:-$PWD/.work} GPUS=${GPUS:-1} PYTHONUNBUFFERED=1 OMP_NUM_THREADS=4
export TORCHINDUCTOR_CACHE_DIR=${CACHE:-$WORK/cache}/inductor TRITON_CACHE_DIR=${CACHE:-$WORK/cache}/triton NCCL_NVLS_ENABLE=0 TORCHINDUCTOR_COMPILE_THREADS=${THREADS:-16}
mkdir -p "$WORK"
few=${FEW:-5000} many=${MANY:-19000} judge=${JUDGE:-20000} more=${MORE:-0} first=${FIRST:-1}
export SETS="train0=${few}x8 train1=${many}x8 train2=${judge}x12 train3=${more}x8"
people=train0,train1$([ "$more" -gt 0 ] && echo ,train3)
everywhere=$(seq -s ' ' 0 $((GPUS - 1)))
began=${BEGAN:-$(date +%s)}
say() { echo "== $(($(date +%s) - began)) s: $*"; }
at() { echo "@$((began + $1))"; }
on() { # on GPU command...: one process on one GPU
  local gpu=$(($1 % GPUS)); shift
  CUDA_VISIBLE_DEVICES=$gpu python3 "$@"
}
spread() { # spread PORT "GPU GPU" command...: a process on each of these GPUs; they average their gradients
  local port=$1 gpus=($2) r; shift 2
  for ((r = 0; r < ${#gpus[@]}; r++)); do
    RANK=$r WORLD_SIZE=${#gpus[@]} LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=$port CUDA_VISIBLE_DEVICES=${gpus[$r]} nice -n 5 python3 "$@" &
  done
  wait
}
set_of() { # set_of NAME PEOPLE FIRST PICTURES [--held-out]
  [ -f "$WORK/$1/truth.json" ] || nice -n 10 "$draw" --out "$WORK/$1" --people "$2" --first "$3" --pictures "$4" --references 2 $5
}
need() { [ ! -f "$WORK/$1.pt" ]; }
after() { until [ -f "$WORK/$1" ] || [ "$(($(date +%s) - began))" -gt "$2" ]; do sleep 0.5; done; }
stage() { # stage NAME FILE command...: unless FILE is there already
  local name=$1 file=$2; shift 2
  if need "$file"; then (STAGE=$name "$@"; say "$name done") >"$WORK/$name.log" 2>&1 & else touch "$WORK/$name.compiled" "$WORK/$name.done"; fi
}

# Everything waits for the autoencoder: it compiles alone with the detector, whose pictures are drawn first.
stage vae vae on 0 vae.py "$(at ${VAE_END:-400})" train0
stage detector detector on 1 faces.py detector "$(at ${DETECTOR_END:-105})" train0
(set_of test 240 1000001 8 --held-out; set_of train0 "$few" "$first" 8; python3 base.py words train0; say drawn the first
 set_of val 60 1010001 8 --held-out; set_of train1 "$many" $((first + few)) 8; say drawn the second
 [ "$more" -gt 0 ] && set_of train3 "$more" 90001 8
 need B && set_of train2 "$judge" 30001 12; say drawn all) &
after vae.compiled 70
say autoencoder compiled
stage A A on 1 faces.py A "$(at ${A_END:-205})" "$people" detector.done
stage B B on 1 faces.py B "$(at ${B_END:-315})" train2 A.done
stage probe probe on 1 faces.py probe "$(at ${PROBE_END:-395})" train0 vae_early.pt
after train0/truth.json 120
stage base unet spread 29501 "${BASE_ON:-$everywhere}" base.py "$(at ${BASE_END:-615})" "$people"
[ "$STOP" = base ] && { wait; say stopped; exit; }
after base.compiled 330
stage pairs pairs spread 0 "${IDENTITY_ON:-$everywhere}" identity.py prepare "$people"
stage identity resampler spread 29502 "${IDENTITY_ON:-$everywhere}" identity.py "$(at ${IDENTITY_END:-1300})" "$people"
after identity.compiled 500
cases=("both;text only;both at 0.8;curve0" "IdentityNet only;adapter only;both, another's;both, no identity;curve1")
for i in 0 1; do
  (export AFTER=identity.done STAGE=evaluate$i; on $i evaluate.py ${PEOPLE:-240} "$([ $i = 1 ] && echo choose || echo chosen)" "${cases[$i]}" evaluation$i) >"$WORK/evaluate$i.log" 2>&1 &
done
wait
say evaluated
