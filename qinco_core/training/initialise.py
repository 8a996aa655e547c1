"""Where training starts: normalisation, residual k-means for the codebooks, random weights (method §2, §5).

Shapes: N vectors, D dimension, K codewords.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from qinco_core.codec.network import Network, Step
from qinco_core.codec.precision import Plan
from qinco_core.codec.workers import run_parallel
from qinco_core.distributed import current
from qinco_core.progress import Progress

# distances computed at once, for one core's cache or a GPU's memory
_DISTANCES = {"cpu": 1 << 20, "cuda": 1 << 28}


def initialise(
    network: Network,
    x_ND: Tensor,
    lists_N: Tensor | None = None,
    *,
    noise: float,
    iterations: int,
    generator: torch.Generator,
    plan: Plan,
    progress: Progress,
    stop: Callable[[], bool],
) -> None:
    """Fill `network` in place with its starting weights.

    Args:
        network: its normalisation (and centroids, with an IVF) are set already.
        x_ND: normalised training vectors, float32, where the network is, overwritten with what plain residual
            quantization leaves of them. Of several processes each has its share (`Group.share`).
        lists_N: their list numbers, int64, with an IVF.
        noise: of the codebooks, as a share of their standard deviation.
        iterations: of each k-means.
        generator: the source of all randomness.
        plan: threads.
        progress: told each k-means iteration.
        stop: asked at each iteration; true raises KeyboardInterrupt.
    """
    config = network.config
    progress.begin("residual quantization", config.M * iterations, "iterations")
    if network.centroids is not None and lists_N is not None:
        x_ND -= network.centroids[lists_N]
    for m in range(config.M):
        centroids = kmeans(x_ND, config.K, iterations, generator, plan, progress, stop)
        x_ND -= centroids[nearest(x_ND, centroids, plan)]
        spread = noise * centroids.std()

        def noisy(c_KD: Tensor = centroids, spread: Tensor = spread) -> Tensor:
            return c_KD + spread * torch.randn(c_KD.shape, generator=generator).to(c_KD)

        if network.codebook0 is not None and m == 0:
            network.codebook0.data.copy_(noisy())
            continue
        step = network.steps[m - (network.codebook0 is not None)]
        assert isinstance(step, Step)
        step.codebook.data.copy_(noisy())
        if step.preselect is not None:
            step.preselect.data.copy_(noisy())
        initialise_weights(step, generator)
    progress.end()


def initialise_weights(step: Step, generator: torch.Generator) -> None:
    """The matrices of a step: all Kaiming-uniform under QINCo1 rules, else zero where §2 says so.

    Of two factors of W_cat the first, `w_cat_out`, is zero where W_cat is: the other one gets gradients to it at once.
    """
    matrices = [*step.w_up, *(w for w in (step.w_in, step.w_out) if w is not None)]
    if step.residual_output:
        matrices += step.concatenation[1:]
    else:
        matrices += [*step.concatenation, *step.w_down]
        _fill(step.b_cat, 1 / math.sqrt(step.concatenation[0].shape[1]), generator)
    for matrix in matrices:
        # Kaiming's bound with a = √5, torch's own choice for linear layers
        _fill(matrix, 1 / math.sqrt(matrix.shape[1]), generator)


def _fill(tensor: Tensor, bound: float, generator: torch.Generator) -> None:
    """Uniform numbers between −bound and bound; the generator is the CPU's, wherever the tensor is."""
    tensor.data.copy_(torch.empty(tensor.shape).uniform_(-bound, bound, generator=generator))


def kmeans(
    x_ND: Tensor,
    K: int,
    iterations: int,
    generator: torch.Generator,
    plan: Plan,
    progress: Progress,
    stop: Callable[[], bool],
) -> Tensor:
    """Lloyd's k-means from random vectors; an empty cluster is re-seeded with a random vector. [K, D]."""
    group = current()
    N = int(sum(group.each(len(x_ND))))
    centroids = group.rows(x_ND, torch.randperm(N, generator=generator)[:K].to(x_ND.device))
    for _ in range(iterations):
        if stop():
            raise KeyboardInterrupt
        k_N = nearest(x_ND, centroids, plan)
        counts = torch.bincount(k_N, minlength=K)
        centroids.zero_().index_add_(0, k_N, x_ND)
        group.add(centroids)
        group.add(counts)
        centroids.div_(counts.clamp(min=1)[:, None])
        empty = counts == 0
        if empty.any():
            others = torch.randint(N, (int(empty.sum()),), generator=generator)
            centroids[empty] = group.rows(x_ND, others.to(x_ND.device))
        progress.advance(1)
    return centroids


def nearest(x_ND: Tensor, centroids_KD: Tensor, plan: Plan) -> Tensor:
    """The nearest centroid of each vector, int64 [N]."""
    norm_K = centroids_KD.square().sum(1)

    def assign(chunk: Tensor) -> Tensor:
        return torch.addmm(norm_K, chunk, centroids_KD.T, alpha=-2).argmin(1)

    size = max(1, _DISTANCES[x_ND.device.type] // len(centroids_KD))
    return torch.cat(run_parallel(assign, x_ND.split(size), plan))
