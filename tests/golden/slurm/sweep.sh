#!/usr/bin/env bash
#SBATCH --job-name=turborec
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --dependency=afterok:1234
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --array=0-1
#SBATCH --output=turborec-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180
#SBATCH --requeue

set -euo pipefail
# shellcheck disable=SC1090,SC1091
source .venv/bin/activate

out='runs/a sweep'
words=('my recipe.yaml')
overrides=(train.optimizer.lr=1e-3 'train.optimizer.lr={a: 1}')
words+=("${overrides[$SLURM_ARRAY_TASK_ID]}")
out="$out-$SLURM_ARRAY_TASK_ID"

export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600
export OMP_NUM_THREADS=2
export PYTHONUNBUFFERED=1
# srun does not take over by itself what the job was given.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-8}
# Every start of the job meets at an address of its own: what is left of the one before would be taken for it.
port=$((20000 + (SLURM_JOB_ID * 7 + ${SLURM_RESTART_COUNT:-0}) % 20000))
leader=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Which checkpoints and results there are, as a sum.
saved() { { find "$out" '(' -path '*/checkpoints/*/manifest.json' -o -name result.json ')' 2>/dev/null || true; } | sort | cksum; }
before=$(saved)
echo "$(date -Is) job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST"

srun --kill-on-bad-exit=1 python -m torch.distributed.run \
  --nnodes="$SLURM_NNODES" --nproc-per-node=4 \
  --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$leader:$port" \
  --max-restarts=0 --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
  -m turborec train "${words[@]}" --out "$out" &
training=$!

warned=
# srun hands the signal to every process.
trap 'warned=1; echo "$(date -Is) the training is told to save"; kill -USR1 "$training" 2>/dev/null || true' USR1
# Slurm itself puts back what it preempts; what is cancelled stays out of the queue.
trap 'echo "$(date -Is) the job is ended: the training is told to save"; kill -USR1 "$training" 2>/dev/null || true' TERM

code=0
wait "$training" || code=$?
# A signal ends `wait`, not the training.
while kill -0 "$training" 2>/dev/null; do
  code=0
  wait "$training" || code=$?
done
if [[ -n $warned ]] && grep -q '"state": "interrupted"' "$out/status.json"; then
  if [[ $(saved) == "$before" ]]; then
    echo "$(date -Is) nothing was saved in this start: ask for more time, or prepare the data before"
    exit 75
  fi
  echo "$(date -Is) saved: back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$code"
