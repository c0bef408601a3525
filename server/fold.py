"""Fold the sites' models into one, a piece of a tensor at a time: memory does not grow with the number of sites.

Everything is float64 and about the sites' VALUES,

    mean = sum_i (w_i / sum_j w_j) v_i,

rather than their differences to the global model: g + (v - g) in float64 loses bits of v where the two differ by
more than 29 binary orders (a weight that crosses zero does), and the mean of one site has to be that site's model
bit for bit. Outer optimisers take the difference g - mean themselves.

A round's models are read twice where the fold has to look at them first (norms, Krum's distances).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.federation import Fold, Krum, Mean, Median, TrimmedMean
from common.update.tensors import State
from server.krum import select
from server.model_file import ModelFile

PIECE = 1 << 17
"""Values at a time, over all sites where they are needed together: few enough to stay in a core's cache."""

Files = dict[str, ModelFile]
"""Site -> its model."""
Piece = Callable[[Tensor, str, int, int], None]
"""Fills a row of float64 with the folded values `begin` to `end` of the tensor of a name."""


@dataclass(frozen=True)
class Folded:
    weights: dict[str, float]
    """Of each site's model in the mean; 0 where the fold left it out. Trimmed means and medians weigh all alike."""
    scales: dict[str, float]
    """What each site's difference to the round's model was scaled by, 1 for most."""
    tensors: Iterator[tuple[str, Tensor]]
    """Name and folded values, float64 in the tensor's shape, by sorted name; read once, while the files are open."""


def normalised(weights: dict[str, float]) -> dict[str, float]:
    """Weights that sum to 1; a lone site gets exactly 1.0.

    Raises:
        UserError: a weight that is negative or not finite, or no positive one.
    """
    for site, weight in weights.items():
        if not 0.0 <= weight < float("inf"):
            raise UserError(f"The weight of site {site!r} is {weight}.", "Weights must be finite and not negative.")
    total = sum(weights.values())
    if total <= 0:
        raise UserError("All weights of the round are zero.", "Use rounds.weights = 'uniform'.")
    return {site: weight / total for site, weight in weights.items()}


def fold(spec: Fold, weights: dict[str, float], files: Files, before: State) -> Folded:
    """One model of the sites' models.

    Args:
        weights: normalised.
        before: the round's model; names, shapes.
    """
    files = dict(sorted(files.items()))
    scales = dict.fromkeys(files, 1.0)
    match spec:
        case TrimmedMean(trim=trim):
            return Folded(weights, scales, assembled(before, len(files), trimmed_mean(files, trim)))
        case Median():
            trim = (len(files) - 1) // 2
            return Folded(weights, scales, assembled(before, len(files), trimmed_mean(files, trim)))
        case Krum():
            chosen = select(distances(files, before), list(files), spec)
            files = {site: files[site] for site in chosen}
            weights = dict.fromkeys(weights, 0.0) | dict.fromkeys(chosen, 1.0 / len(chosen))
        case Mean(max_norm=bound) if bound is not None:
            scales = {s: 1.0 if norm <= bound else bound / norm for s, norm in norms(files, before).items()}
    return Folded(weights, scales, assembled(before, 1, weighted_mean(files, weights, scales, before)))


def pieces(size: int, together: int) -> Iterator[tuple[int, int]]:
    step = max(1, PIECE // together)
    return ((begin, min(begin + step, size)) for begin in range(0, size, step))


def new_buffer() -> np.ndarray:
    """For the bytes of one piece; made once a pass, so that the heap does not fray with many sites."""
    return np.empty(PIECE * 4, np.uint8)


def whole(file: ModelFile, name: str, shape: torch.Size, buffer: np.ndarray) -> Tensor:
    """One tensor of a model, float64."""
    values = torch.empty(shape.numel(), dtype=torch.float64)
    for begin, end in pieces(shape.numel(), 1):
        values[begin:end] = file.read(name, begin, end, buffer)
    return values.reshape(shape)


def assembled(before: State, together: int, piece: Piece) -> Iterator[tuple[str, Tensor]]:
    """Tensor by tensor, filled by `piece(out, name, begin, end)`."""
    for name, model in sorted(before.items()):
        whole = torch.empty(model.numel(), dtype=torch.float64)
        for begin, end in pieces(model.numel(), together):
            piece(whole[begin:end], name, begin, end)
        yield name, whole.reshape(model.shape)


def weighted_mean(files: Files, weights: dict[str, float], scales: dict[str, float], before: State) -> Piece:
    buffer, share = new_buffer(), torch.empty(PIECE, dtype=torch.float64)
    first = next(iter(files))

    def piece(out: Tensor, name: str, begin: int, end: int) -> None:
        for site, file in files.items():
            values = out if site == first else share[: end - begin]
            values.copy_(file.read(name, begin, end, buffer))
            if scales[site] < 1.0:
                start = before[name].reshape(-1)[begin:end].double()
                values.sub_(start).mul_(scales[site]).add_(start)
            values.mul_(weights[site])
            if site != first:
                out.add_(values)

    return piece


def trimmed_mean(files: Files, trim: int) -> Piece:
    """Mean without the `trim` lowest and highest values of each weight (Yin et al. 2018, arXiv 1803.01498)."""
    read = together(files)

    def piece(out: Tensor, name: str, begin: int, end: int) -> None:
        values = read(name, begin, end)
        # numpy sorts in place; torch would make the sorted values and their places anew for every piece.
        values.numpy().sort(axis=0)
        torch.mean(values[trim : len(files) - trim], dim=0, out=out)

    return piece


def together(files: Files) -> Callable[[str, int, int], Tensor]:
    """Reads [sites, values] in float64, each time into the same memory."""
    buffer, values = new_buffer(), torch.empty(len(files), PIECE // len(files), dtype=torch.float64)

    def read(name: str, begin: int, end: int) -> Tensor:
        part = values[:, : end - begin]
        for row, file in zip(part, files.values(), strict=True):
            row.copy_(file.read(name, begin, end, buffer))
        return part

    return read


def norms(files: Files, before: State) -> dict[str, float]:
    """L2 norm of each site's difference to the round's model, over all tensors."""
    squares, buffer = dict.fromkeys(files, 0.0), new_buffer()
    for name, model in before.items():
        for begin, end in pieces(model.numel(), 1):
            start = model.reshape(-1)[begin:end].double()
            for site, file in files.items():
                squares[site] += float((file.read(name, begin, end, buffer).double() - start).square().sum())
    return {site: math.sqrt(square) for site, square in squares.items()}


def distances(files: Files, before: State) -> Tensor:
    """[sites, sites] squared L2 distances between the sites' models, by their differences in float64."""
    total, read = torch.zeros(len(files), len(files), dtype=torch.float64), together(files)
    for name, model in before.items():
        for begin, end in pieces(model.numel(), len(files)):
            values = read(name, begin, end)
            total += torch.cdist(values, values, compute_mode="donot_use_mm_for_euclid_dist").square()
    return total
