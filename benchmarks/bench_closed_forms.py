"""Closed forms of skewed mixtures against quadrature, and the published nine- and eight-mode mixtures.

    python benchmarks/bench_closed_forms.py

One line for each dimension (1, 2), precision and quantity: the largest error over several noise levels, points and
rewards, relative to max(1, |value|); the bars are 1e-5 in float64 and 1e-3 in float32. Then float32 against float64 in
128, 512 and 1024 dimensions, and the mean reward and log normaliser of the two published mixtures.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from timing import machine, report

from ntrk_jax import rewards, targets

LEVELS = [(1.0, 0.1), (0.95, 0.31), (0.7, 0.714), (0.3, 0.95), (0.0, 1.0), (1.0, 80.0)]
BETA = 1.3


def mixture(dim, seed, num=3):
    """Weights, means and full covariances of a random skewed mixture, within reach of the quadrature."""
    rng = np.random.default_rng([dim, seed])
    roots = rng.uniform(-0.5, 0.5, (num, dim, dim))
    covs = roots @ np.swapaxes(roots, 1, 2) + 0.12 * np.eye(dim)
    return rng.dirichlet(np.full(num, 2.0)), rng.uniform(-2.0, 2.0, (num, dim)), covs


def forms(dim, seed, covs):
    """A linear and an indefinite quadratic reward, as objects and as functions of [M, dim]."""
    rng = np.random.default_rng([dim, seed, 7])
    a = rng.standard_normal(dim)
    bent = rng.standard_normal((dim, dim))
    bent = 0.5 * (bent + bent.T)
    bent *= 0.5 * BETA / (np.abs(np.linalg.eigvalsh(bent)).max() * max(np.linalg.eigvalsh(c).max() for c in covs))
    quadratic = rewards.Quadratic(bent, a, -0.3)
    return [(rewards.Linear(a, 0.4), lambda x: x @ a + 0.4),
            (quadratic, lambda x: -0.5 * np.sum(x @ bent * x, -1) + x @ a - 0.3)]  # fmt: skip


def nodes_and_mass(dim, parts):
    """A grid [M, dim] and the density times the cell at each node."""
    axis = np.linspace(-12.0, 12.0, 9601 if dim == 1 else 601)
    nodes = np.stack(np.meshgrid(*[axis] * dim, indexing="ij"), -1).reshape(-1, dim)
    mass = np.zeros(len(nodes))
    for w, m, s in zip(*parts, strict=True):
        off = nodes - m
        mass += w * np.exp(-0.5 * np.sum(off @ np.linalg.inv(s) * off, -1)) / np.sqrt(np.linalg.det(2 * np.pi * s))
    return nodes, mass * (axis[1] - axis[0]) ** dim


def against_quadrature(dim, seed):
    """(quantity, error) pairs of one mixture in the precision that is switched on."""
    parts = mixture(dim, seed)
    nodes, mass = nodes_and_mass(dim, parts)
    target = targets.GaussianMixture(*parts)
    pairs = forms(dim, seed, parts[2])
    exact = jax.jit(lambda x, a, s: (target.log_prob_at(x, a, s), target.denoise(x, a, s), s * target.score(x, a, s)))
    values = [jax.jit(target.value_function(reward, BETA)) for reward, _ in pairs]

    def error(got, want):
        want = np.asarray(want)
        return float(np.max(np.abs(np.asarray(got, np.float64) - want)) / max(1.0, np.abs(want).max()))

    for (alpha, sigma), start in itertools.product(LEVELS, (0.8, -1.9)):
        x = start * np.arange(1.0, dim + 1) * np.hypot(alpha, sigma) / dim
        logs = -0.5 * np.sum((x - alpha * nodes) ** 2, -1) / sigma**2
        like = mass * np.exp(logs - logs.max())
        given = like / like.sum()
        mean = given @ nodes
        log_p, denoised, score = exact(jnp.asarray(x), alpha, sigma)
        yield "log density", error(log_p, np.log(like.sum()) + logs.max() - 0.5 * dim * np.log(2 * np.pi * sigma**2))
        yield "denoiser", error(denoised, mean)
        yield "score", error(score, (alpha * mean - x) / sigma)
        for value, (_, function) in zip(values, pairs, strict=True):
            want = BETA * np.log(given @ np.exp(function(nodes) / BETA))
            yield "value", error(value(jnp.asarray(x), alpha, sigma), want)
    for reward, function in pairs:
        want = np.log(mass @ np.exp(function(nodes) / BETA))
        yield "log normaliser", error(targets.tilt(target, reward, BETA).log_normalizer, want)


def high_dimension(dim):
    """The largest error of float32 against float64 of denoiser, score, values and their gradients."""
    rng = np.random.default_rng(dim)
    problem = targets.skewed(dim)
    raw = [np.asarray(a, np.float64) for a in (problem.mixture.means, problem.mixture.covs, problem.reward.a)]
    factor = rng.standard_normal((dim, dim)) / np.sqrt(dim)
    rewards_of = rewards.Linear(raw[2]), rewards.Quadratic(factor @ factor.T, raw[2])
    rows = []
    for x64 in (True, False):
        with jax.enable_x64(x64):
            target = targets.GaussianMixture(np.arange(1.0, 4.0) / 6, *raw[:2])
            slopes = [jax.value_and_grad(target.value_function(reward)) for reward in rewards_of]

            def answer(x, a, s, target=target, slopes=slopes):
                tilts = [(value, s * grad) for value, grad in (slope(x, a, s) for slope in slopes)]
                return target.denoise(x, a, s), s * target.score(x, a, s), tilts

            answer = jax.jit(answer)
            start = np.cos(np.arange(dim) ** 2)
            points = [(a * raw[0][0] + np.hypot(0.7 * a, s) * start, a, s) for a, s in [(1.0, 1e-3), *LEVELS]]
            rows.append([jax.tree.leaves(jax.device_get(answer(jnp.asarray(x), a, s))) for x, a, s in points])
    pairs = zip(*(itertools.chain(*r) for r in rows), strict=True)
    return max(float(np.abs(w - g).max() / max(1.0, np.abs(w).max())) for w, g in pairs)


def main():
    """Print every line."""
    machine()
    for dim, x64 in itertools.product((1, 2), (True, False)):
        with jax.enable_x64(x64):
            worst = {}
            for seed in range(3):
                for name, error in against_quadrature(dim, seed):
                    worst[name] = max(worst.get(name, 0.0), error)
        bar = 1e-5 if x64 else 1e-3
        for name, error in worst.items():
            case = f"{name}, d={dim}, {'float64' if x64 else 'float32'}"
            report("closed_forms", case, error=f"{error:.1e}", bar=bar, passed=error <= bar)
    for dim in (128, 512, 1024):
        error = high_dimension(dim)
        report(
            "closed_forms", f"float32 against float64, d={dim}", error=f"{error:.1e}", bar=1e-3, passed=error <= 1e-3
        )
    for name, mean, log_z in (("das9", -0.2907, -1.4397), ("das8", -1.34, -2.9678)):
        problem = getattr(targets, name)()
        tilted = targets.tilt(*problem)
        got = float(targets.expected_reward(tilted.mixture, problem.reward)), float(tilted.log_normalizer)
        passed = abs(got[0] - mean) < 1e-4 and abs(got[1] - log_z) < 1e-4
        report("closed_forms", name, mean_reward=got[0], log_normalizer=got[1], wanted=[mean, log_z], passed=passed)


if __name__ == "__main__":
    main()
