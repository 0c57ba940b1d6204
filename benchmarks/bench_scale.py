"""Steps at the sizes people use: a multimodal diffusion transformer, a decoder and a scorer, all with random weights.

    python benchmarks/bench_scale.py                             # small transformer, 262144 latents, any CPU
    python benchmarks/bench_scale.py --size billion --attention cudnn --peak-tflops 790 --repeats 10   # one GPU

Latents are FLUX-shaped, (128, 128, 16) as 4096 tokens of 64 channels, or with --latents video (8, 64, 64, 8). Weights
and latents are bfloat16 with --dtype bfloat16 (the default on a GPU), the Gaussian algebra float32. Printed, one JSON
line a case: times of a forward pass, of value and gradient through network, decoder and scorer, of whitening (to its
tolerance, and one sweep), of whole steps; what a run of several steps takes beside as many bare forward and backward
passes; peak memory for few and for many steps; and floating-point operations against --peak-tflops.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
from timing import best, machine, report

import ntrk_jax as nk

SIZES = {  # width, heads, double blocks, single blocks
    "small": (128, 4, 1, 2),
    "medium": (768, 12, 4, 8),
    "billion": (1536, 12, 10, 20),
    "flux": (3072, 24, 19, 38),
}
VIDEO = {"small": (96, 4), "medium": (768, 16), "billion": (1536, 16), "flux": (3072, 32)}
"""Width and heads for three axes of space, which share each head."""
LATENTS = {"image": ((128, 128, 16), (2, 2)), "video": ((8, 64, 64, 8), (1, 2, 2))}
NUM_TEXT, TEXT_WIDTH = 64, 256


def init_scorer(key, channels, dtype, width=64):
    """A decoder of 4 x 4 pixels a latent, and a scorer that embeds them and averages a perceptron's answers."""
    shapes = {"decode": (channels, width), "pixels": (width, 48), "embed": (48, width), "score": (width, 1)}
    keys = jax.random.split(key, len(shapes))
    return {
        n: (jax.random.normal(k, s) / s[0] ** 0.5).astype(dtype) for k, (n, s) in zip(keys, shapes.items(), strict=True)
    }


def decode_and_score(params, x):
    """The score of latents [*space, channels], []."""
    x = x.astype(params["decode"].dtype)
    pixels = jnp.tanh(jax.nn.gelu(x @ params["decode"]) @ params["pixels"])
    return jnp.mean((jax.nn.gelu(pixels @ params["embed"]) @ params["score"]).astype(jnp.float32)) * 100.0


def workload(args):
    """The model, the reward, the latents' shape and dtype."""
    width, heads, double, single = SIZES[args.size]
    if args.latents == "video":
        width, heads = VIDEO[args.size]
    shape, patch = LATENTS[args.latents]
    dtype = jnp.dtype(args.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16"))
    net = nk.models.MMDiT(
        channels=shape[-1], patch=patch, width=width, num_heads=heads, double_blocks=double, single_blocks=single,
        text_width=TEXT_WIDTH, remat=not args.keep, attention=args.attention,
    )  # fmt: skip
    params = jax.jit(net.init, static_argnums=1)(jax.random.key(0), dtype)
    text = jax.random.normal(jax.random.key(1), (NUM_TEXT, TEXT_WIDTH)).astype(dtype)
    model = nk.models.FlaxDenoiser(net, "velocity", params, nk.schedules.RectifiedFlow(), text)
    reward = nk.rewards.Neural(decode_and_score, init_scorer(jax.random.key(2), shape[-1], dtype))
    return model, reward, shape, dtype


def compiled(function, *args):
    """The compiled program, to run and to ask for its memory and operations."""
    return jax.jit(function).lower(*args).compile()


def prepared(function, *args):
    """The compiled program and what it is called with."""
    return compiled(function, *args), args


def memory(program):
    """Bytes of a program's own buffers and of its arguments, or None where the platform does not say."""
    found = program.memory_analysis()
    return {} if found is None else {"temporaries": found.temp_size_in_bytes, "arguments": found.argument_size_in_bytes}


def tokens_flops(model, shape):
    """Floating-point operations of one forward pass, counted by hand: matrix products alone."""
    net = model.apply
    tokens = 1
    for side, patch in zip(shape[:-1], net.patch, strict=True):
        tokens *= side // patch
    both, w = tokens + NUM_TEXT, net.width
    double = both * (4 + 2 * net.mlp_ratio) * w * w
    single = both * (4 + 2 * net.mlp_ratio) * w * w
    attention = 2 * both * both * w
    return 2.0 * (net.double_blocks * (double + attention) + net.single_blocks * (single + attention))


def main():
    """Print one JSON line for each case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--latents", choices=LATENTS, default="image")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--attention", choices=("xla", "cudnn"), default="xla")
    parser.add_argument("--keep", action="store_true", help="keep the insides of blocks instead of recomputing them")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--peak-tflops", type=float)
    args = parser.parse_args()
    if args.steps < 3:
        parser.error("--steps: at least 3, as the last step of a grid asks no model and the one timed is the second.")
    machine()
    model, reward, shape, dtype = workload(args)
    case = f"{args.size} {args.latents} {shape} {dtype} {'kept' if args.keep else 'rematerialised'}"
    report("scale", case, parameters=sum(p.size for p in jax.tree.leaves(model.variables)))
    steps = nk.grid(model.schedule, nk.grids.uniform(args.steps))
    key, x = jax.random.key(3), jax.random.normal(jax.random.key(4), shape).astype(dtype)
    white = single_steps(args, case, model, reward, shape, steps, key, x)
    whole_runs(args, case, model, reward, shape, white, key, x)


def single_steps(args, case, model, reward, shape, steps, key, x):
    """Times of one step and of its parts."""
    kernel, white = nk.kernels.FlowSDE(), jax.device_put(nk.whitening.TypicalSet(shape))
    samplers = {
        "plain": nk.Single(nk.Look(model), kernel),
        "dps": nk.methods.dps(model, reward, shape, kernel=kernel),
        "ntrk": nk.methods.ntrk(model, reward, shape, strength=0.05, whiten=white, kernel=kernel),
    }
    first, row = (jax.tree.map(lambda a, i=i: a[i], steps) for i in (0, 1))
    one = jax.device_put(nk.whitening.TypicalSet(shape, max_sweeps=1))
    parts = {
        "forward": prepared(lambda m, x, t: m(x, t), model, x, row.t),
        "forward_backward": prepared(value_and_grad, model, reward, x, row.t),
    }
    program, given = parts["forward_backward"]
    grad = program(*given)[1]
    for name, w in (("whitening", white), ("one_sweep", one)):
        parts[name] = prepared(lambda w, g, k: w(g, k), w, grad, key)
    for name, made in samplers.items():
        sampler = jax.device_put(made)
        state = jax.jit(lambda s, k, x, r: s.init(k, x, r))(sampler, key, x, first)
        parts[name] = prepared(lambda s, k, a, r: s.step(k, a, r), sampler, key, state, row)
    seconds = best([functools.partial(program, *given) for program, given in parts.values()], args.repeats)
    took = dict(zip(parts, seconds, strict=True))
    sweeps = int(white.detailed(grad, key).sweeps)
    report("scale", f"{case}: one step", sweeps=sweeps, **{f"{k}_ms": 1e3 * v for k, v in took.items()})
    work = tokens_flops(model, shape)
    numbers = {
        "whitening_share_of_ntrk": took["whitening"] / took["ntrk"], "ntrk_over_dps": took["ntrk"] / took["dps"],
        "forward_backward_over_dps": took["forward_backward"] / took["dps"], "forward_tflop": work / 1e12,
        "forward_tflops": work / took["forward"] / 1e12,
    }  # fmt: skip
    if args.peak_tflops:
        numbers["share_of_peak"] = numbers["forward_tflops"] / args.peak_tflops
    report("scale", f"{case}: ratios", **numbers)
    report(
        "scale",
        f"{case}: memory of one step, MiB",
        **{
            f"{k}_{name}": round(size / 2**20, 1)
            for k in ("forward", "forward_backward", "dps", "ntrk")
            for name, size in memory(parts[k][0]).items()
        },
    )
    return white


def value_and_grad(model, reward, x, t):
    """What guidance by the plug-in value needs of the networks, and nothing else."""
    return jax.value_and_grad(lambda p: reward(model(p, t)))(x.astype(jnp.float32))


def whole_runs(args, case, model, reward, shape, white, key, x):
    """A run beside as many bare evaluations, and its memory for few and for many steps."""
    sampler = nk.methods.ntrk(model, reward, shape, strength=0.05, whiten=white, kernel=nk.kernels.FlowSDE())
    sampler = jax.device_put(sampler)

    def bare(model, reward, x, times):
        def body(carry, t):
            value, grad = value_and_grad(model, reward, carry, t)
            return carry + (1e-6 * grad).astype(carry.dtype), value

        return jax.lax.scan(body, x, times)

    programs, needs = {}, {}
    for count in (args.steps, 10 * args.steps):
        steps = nk.grid(model.schedule, nk.grids.uniform(count))
        programs[count] = prepared(lambda s, k, x, r: nk.run(s, k, x, r)[0].look.x, sampler, key, x, steps)
        needs[count] = memory(programs[count][0]).get("temporaries")
    steps = nk.grid(model.schedule, nk.grids.uniform(args.steps))
    alone = compiled(bare, model, reward, x, steps.t)
    program, given = programs[args.steps]
    run, networks = best(
        [functools.partial(program, *given), functools.partial(alone, model, reward, x, steps.t)], args.repeats
    )
    many, few = needs[10 * args.steps], needs[args.steps]
    report(
        "scale",
        f"{case}: run of {args.steps} steps",
        run_s=run,
        bare_networks_s=networks,
        throughput_of_bare=networks / run,
        memory_over_bare=None if few is None else few / memory(alone)["temporaries"],
        memory_of_10_times_the_steps=None if few is None else many / few,
    )


if __name__ == "__main__":
    main()
