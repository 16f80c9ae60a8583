#!/usr/bin/env bash
#SBATCH --job-name=turborec-prepare
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --partition=cpu
#SBATCH --output=turborec-prepare-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue

set -euo pipefail
# shellcheck disable=SC1090,SC1091
source .venv/bin/activate

words=('my recipe.yaml')

export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600
export OMP_NUM_THREADS=16
export PYTHONUNBUFFERED=1
# srun does not take over by itself what the job was given.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-16}

srun python -m turborec data prepare "${words[@]}"
