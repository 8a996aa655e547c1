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
