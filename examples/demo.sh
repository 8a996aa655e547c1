#!/usr/bin/env bash
# Train, encode, decode and evaluate on the sample of real SIFT vectors beside this script.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
data="$here/data"
export QINCO_STORE="${QINCO_STORE:-demo.store}"

say() { printf '\n$ %s\n' "$*"; "$@"; }

say qinco train --preset qinco2-S --time 2m --force "$data/sift_learn.bvecs"
say qinco encode "$data/sift_base.u8bin" --name base --force
say qinco info "$QINCO_STORE/codes/base.h5"
say qinco decode base -o "$QINCO_STORE/base.fvecs" --force
say qinco eval "$data/sift_base.u8bin" \
    --queries "$data/sift_query.fvecs" --groundtruth "$data/sift_groundtruth.ivecs" \
    --baseline PQ --baseline OPQ --baseline RQ --train "$data/sift_learn.bvecs" \
    --plot "$QINCO_STORE/rate-distortion.png" --force

# behind lists, and searched
ivf="$QINCO_STORE/ivf"
say qinco centroids "$data/sift_learn.bvecs" --k 256 --store "$ivf" --force
say qinco train --preset qinco2-S --ivf "$ivf/centroids.h5" --time 45s --store "$ivf" --force "$data/sift_learn.bvecs"
say qinco encode "$data/sift_base.u8bin" --name base --store "$ivf" --force
say qinco pairwise "$data/sift_learn.bvecs" --skip 30000 --base base --sample 200000 --store "$ivf" --force
say qinco index base --store "$ivf" --force
say qinco search "$data/sift_query.fvecs" -k 10 --store "$ivf" --groundtruth "$data/sift_groundtruth.ivecs"
say qinco tune "$data/sift_query.fvecs" --groundtruth "$data/sift_groundtruth.ivecs" --recall 0.9 --time 30s --store "$ivf"
say qinco search "$data/sift_query.fvecs" -k 10 --recall 0.9 --store "$ivf" -o "$QINCO_STORE/neighbors.npz" --force
