"""Whitening against its bars, one JSON line a case: white noise passes, structure is removed, the cost of a sweep.

python benchmarks/bench_whitening.py [--quick]

- `white`: the smallest cosine of 100 white draws to their whitened selves (bar: 0.99999).
- `structure`: largest violation after `TypicalSet` (bar: 0.01), largest |z| of the battery after `Certified` (bar: 5),
  and the ratio of their cosines to the input (bar: 0.7 where `TypicalSet` keeps more than 0.2; goal 0.8), where that of
  `TypicalSet` says something, at two standard deviations of a noise's. `bound` is what the cosine of any array whose
  channels pass the battery stays below.
- `low rank`: the same for rows of random tokens that are multiples of one pattern up to sign, of rank 1 and of rank 2:
  the lowest ratio, how many are below 0.7, and how many of those the bound allows more.
- `sweep`: time of one sweep and domain of `TypicalSet` in units of one `jnp.sort` of the same array (bar: 3).
"""

import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from ntrk_jax.metrics.typicality import typicality
from ntrk_jax.whitening import Certified, TypicalSet, domains
from ntrk_jax.whitening.tiles import project_domain


def structured(shape):
    """The structured inputs, by name."""
    rng = np.random.default_rng(0)
    space, channels = (shape[:-1], shape[-1]) if len(shape) > 1 else (shape, 1)
    full, axes = (*space, channels), tuple(range(len(space)))
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in space], indexing="ij")
    distance = sum((g - 0.2) ** 2 for g in grid)[..., None]
    white = rng.normal(size=full)
    frequency = np.maximum(domains.radius(space), 1 / max(space))[..., None]
    ones, places = np.ones(full), np.indices(space)
    fields = {
        f"1/f^{p}": np.real(np.fft.ifftn(np.fft.fftn(white, axes=axes) / frequency**p, axes=axes)) for p in (1, 2)
    }
    fields |= {
        "blob": np.exp(-distance / 0.08) * ones,
        "checkerboard": ((-1.0) ** sum(places))[..., None] * ones,
        "stripes": ((-1.0) ** (places[-1] // 2))[..., None] * ones,
        "sparse 3%": white * (rng.random(full) < 0.03),
        "sparse 0.1%": white * (rng.random(full) < 0.001),
        "mask": white * (distance < 0.3),
        "cauchy": rng.standard_cauchy(full),
        "t3": rng.standard_t(3, full),
        "equal channels": white[..., :1] * ones,
        "constant": ones,
        "zero": 0 * ones,
        "delta": np.eye(1, white.size, white.size // 3).reshape(full),
        "sinusoid": np.sin(2 * np.pi * 3 * places[0] / space[0])[..., None] * ones,
        "signs": np.sign(white),
        "ramp": places[0][..., None] * ones,
        "quantised": np.round(white),
    }
    if channels > 2:
        flips = np.sign(rng.normal(size=channels))
        flips[0] = -flips[-1]  # of one sign they would be equal channels
        fields["signs times one channel"] = white[..., :1] * flips
        fields["rank 2"] = white[..., :2] @ rng.normal(size=(2, channels))
    return {name: jnp.asarray(field.reshape(shape), jnp.float32) for name, field in fields.items()}


def cosine(a, b):
    a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    return float(a @ b / max(np.sqrt((a @ a) * (b @ b)), 1e-30))


def channel_bound(g, limit=5.0):
    """What the cosine to g [*space, C] stays below if the channels' energies and correlations pass the battery.

    Let X [n, C] have the Gram matrix n G, trace C. Then <X, g> <= sqrt(n) |g G^(1/2)|, the sum of singular values, a
    concave function of G. The battery holds each G_ii within [low, high] and, with r_ij the correlations,
    sum_{i<j} r_ij^2 <= s, hence the convex sum_{i<j} 2 G_ij^2 / (G_ii + G_jj) <= high s. So a local maximum is global.
    For g of rank 1, w v' with |v| = 1, that is sqrt(v' G v), and with S the most that sum_i v_i^2 G_ii can be also
    v' G v <= S (1 + sqrt(2 s (C - 1) / C)), by Cauchy and Schwarz.
    """
    channels = g.shape[-1]
    g = np.asarray(g, np.float64).reshape(-1, channels)
    i, j = np.triu_indices(channels, 1)

    def chi2_limit(dof, z):
        return (1 - 2 / (9 * dof) + z * np.sqrt(2 / (9 * dof))) ** 3

    high = chi2_limit(len(g), limit) / chi2_limit(g.size, -limit)
    low = chi2_limit(len(g), -limit) / chi2_limit(g.size, limit)
    dof = len(g) - 1.0
    squares = high * i.size * chi2_limit(i.size, limit) / (dof * ((8 * dof + 1) / (8 * dof + 3)) ** 2)
    values, vectors = np.linalg.eigh(g.T @ g / np.sum(g * g))
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T

    def minus_cosine(p):
        gram = np.diag(p[:channels])
        gram[i, j] = gram[j, i] = p[channels:]
        values, vectors = np.linalg.eigh(root @ gram @ root)
        values = np.sqrt(np.maximum(values, 1e-14))
        slope = 0.5 * root @ (vectors / values) @ vectors.T @ root
        return -values.sum() / np.sqrt(channels), -np.r_[np.diag(slope), 2 * slope[i, j]] / np.sqrt(channels)

    first = np.r_[np.ones(channels), np.sign((g.T @ g)[i, j]) * np.sqrt(0.5 * squares / i.size)]
    found = optimize.minimize(
        minus_cosine, first, jac=True, method="SLSQP", bounds=[(low, high)] * channels + [(-high, high)] * i.size,
        constraints=[
            {"type": "eq", "fun": lambda p: p[:channels].sum() - channels},
            {"type": "ineq", "fun": lambda p: squares - np.sum(2 * p[channels:] ** 2 / (p[i] + p[j]))},
        ], options={"maxiter": 500},
    )  # fmt: skip
    bound = -found.fun
    if values[-2] < 1e-9:
        weights, box = vectors[:, -1] ** 2, [(low, high)] * channels
        most = -optimize.linprog(-weights, A_eq=np.ones((1, channels)), b_eq=channels, bounds=box).fun
        bound = min(bound, np.sqrt(most * (1 + np.sqrt(2 * squares / high * (1 - 1 / channels))) / channels))
    return float(bound)


def show(**row):
    print(json.dumps({k: round(v, 9) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


def seconds(f, *args, repeats=20):
    jax.block_until_ready(f(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(f(*args))
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def white(shapes, draws):
    for shape in shapes:
        for W in (TypicalSet(shape), Certified(shape)):
            for use in ("__call__", "project"):
                run = getattr(W, use)
                lowest = 1.0
                for i in range(draws):
                    z = jax.random.normal(jax.random.key(i), shape)
                    lowest = min(lowest, cosine(run(z), z))
                show(case="white", rule=type(W).__name__, use=use, shape=shape, draws=draws, lowest_cosine=lowest)


def structure(shapes):
    for shape in shapes:
        sets, certified = TypicalSet(shape), Certified(shape)
        settle, certify, battery = jax.jit(sets.detailed), jax.jit(certified.detailed), jax.jit(typicality)
        for name, g in structured(shape).items():
            a, b = settle(g, jax.random.key(1)), certify(g, jax.random.key(1))
            kept, certified_kept = cosine(a.noise, g), cosine(b.noise, g)
            show(
                case="structure", shape=shape, input=name, violation=float(a.violation), sweeps=int(a.sweeps),
                typical_set_z=float(battery(a.noise).largest), certified_z=float(battery(b.noise).largest),
                typical_set_cosine=kept, certified_cosine=certified_kept,
                ratio=certified_kept / kept if kept > 2.0 / g.size**0.5 else None, share=float(b.share),
                bound=channel_bound(g) if len(shape) > 1 and shape[-1] > 1 and float(jnp.max(jnp.abs(g))) > 0 else None,
            )  # fmt: skip


def low_rank(shapes, seeds):
    """Random tokens of low rank, which the correlations between channels hold back most."""
    for shape in shapes:
        sets, certified, channels = TypicalSet(shape), Certified(shape), shape[-1]
        settle, certify = jax.jit(sets.detailed), jax.jit(certified.detailed)
        for kind in ("signs", "rank 1", "rank 2"):
            ratios, bounds, worst = [], [], 0.0
            for seed in range(seeds):
                rng = np.random.default_rng(seed)
                mix = rng.normal(size=(2 if kind == "rank 2" else 1, channels))
                places = rng.normal(size=(int(np.prod(shape[:-1])), len(mix)))
                g = jnp.asarray((places @ (np.sign(mix) if kind == "signs" else mix)).reshape(shape), jnp.float32)
                out = certify(g, jax.random.key(1))
                kept = cosine(settle(g, jax.random.key(1)).noise, g)
                ratios.append(cosine(out.noise, g) / kept)
                bounds.append(channel_bound(g) / kept)
                worst = max(worst, float(out.largest))
            below = np.array(ratios) < 0.7
            show(
                case="low rank", shape=shape, input=kind, seeds=seeds, certified_z=worst, lowest_ratio=min(ratios),
                its_bound=bounds[int(np.argmin(ratios))], below=int(below.sum()),
                below_and_possible=int(np.sum(below & (np.array(bounds) >= 0.7))),
            )  # fmt: skip


def sweep(shapes):
    for shape in shapes:
        z = jax.random.normal(jax.random.key(0), shape)
        W = TypicalSet(shape)
        sort = seconds(jax.jit(lambda x: jnp.sort(x.reshape(-1))), z)
        for name, table in zip(domains.domain_names(shape), W.tables, strict=True):

            def visit(x, table, name=name):
                moved, worst = project_domain(domains.forward(name, x), table, 1.0)
                return domains.inverse(name, moved), worst

            took = seconds(jax.jit(visit), z, table)
            show(case="sweep", shape=shape, domain=name, ms=1e3 * took, sort_ms=1e3 * sort, sorts=took / sort)
        one = jax.jit(lambda x, rule: rule(x))
        show(case="one sweep, all domains", shape=shape, ms=1e3 * seconds(one, z, TypicalSet(shape, max_sweeps=1)))
        g = structured(shape)["1/f^1"]
        for rule in (W, Certified(shape)):
            show(case="whole", shape=shape, rule=type(rule).__name__, input="1/f^1", ms=1e3 * seconds(jax.jit(rule), g))


def main():
    quick = "--quick" in sys.argv
    sweep([(128, 128, 4)] if quick else [(128, 128, 4), (65536,), (16, 32, 32, 4), (128, 128, 16), (4096, 64)])
    vectors = [(1024,), (16, 16, 4)]
    images = [(4096,), (32, 32, 4), (16384,), (64, 64, 4), (4, 64, 64, 1), (65536,), (64, 64, 16), (16, 64, 64, 1)]
    structured_shapes = [(64, 64, 4), (32, 32, 3), (8, 8, 1), (64,), (4096,), (256, 16), (16, 32, 32, 4)]
    structure([(32, 32, 3)] if quick else structured_shapes)
    low_rank([(32, 32, 3)] if quick else [(16, 16, 3), (32, 32, 3), (64, 64, 3), (32, 32, 4), (64, 64, 4), (64, 16)], 8)
    white(vectors if quick else vectors + images, 20 if quick else 100)


if __name__ == "__main__":
    main()
