#!/bin/bash
# A sweep as a SLURM array job: a run for each task, which goes on from its checkpoint when it is given again.
#
#   sbatch --array=0-159 slurm-sweep.sh       # as many as `synaptome sweep ... --list` prints, from 0
#   synaptome report /shared/runs/published   # when they are done
#
#SBATCH --job-name=synaptome
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# SIGTERM two minutes before the time is up: the run saves and stops. Submit it again, and it goes on.
#SBATCH --signal=B:TERM@120

set -euo pipefail

# exec, so that the signal reaches the run and not this shell.
exec synaptome sweep failures-linear --grid published --seeds 5 \
    --threads "$SLURM_CPUS_PER_TASK" \
    --out /shared/runs/published \
    --task "$SLURM_ARRAY_TASK_ID" --quiet
