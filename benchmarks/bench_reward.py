"""Reward per NFE on the digits: target and held-out reward, and distance to real digits, at growing budgets.

    python benchmarks/bench_reward.py [--methods all] [--nfe 25,50,100,250,500] [--num 100] [--seeds 5] [--first 0]
        [--halvings 1] [--checkpoint FILE] [--picture FILE]

Every method of the catalogue, at every budget tuned anew by the rule of `ntrk compare`: of the strengths tried the one
with the highest mean of target and held-out reward, on a seed that is not reported, at a distance to the nearest real
digit of at most 1.2 times the base sampler's. With --halvings K > 1 strengths are tuned more finely, up to that limit.
The budget is the number of model evaluations of one returned sample; gradients are counted beside it. One JSON line a
method and budget, then a table in Markdown, and a verdict. The rule does not look at variety; the lines do: `variety`
is the mean distance between two samples of the same digit.
"""

import argparse

import jax
import numpy as np
from timing import machine, report

import ntrk_jax as nk
from ntrk_jax.cli.compare_runs import Budget
from ntrk_jax.cli.compare_study import Plan, compare_method, judge_for, refusal, summary_of
from ntrk_jax.cli.console import BadInput
from ntrk_jax.cli.digits_study import spread
from ntrk_jax.cli.problems import problem

RATIO = 1.2


def curve(names, budgets, num, seeds, first, halvings=1, checkpoint=None):
    """{method: {budget: summary}}, and one JSON line for each as it is made."""
    task = problem("digits", checkpoint=checkpoint)
    judge, found = judge_for(task, num), {}
    asked = np.arange(num) % 10
    for name in names:
        jax.clear_caches()  # some two hundred samplers compiled and kept exhaust the memory maps of one process
        for nfe in budgets:
            plan = Plan(Budget(nfe=nfe), num, tuple(range(first, first + seeds)), halvings=halvings)
            try:
                why = refusal(name, task, plan)
                outcome = None if why else compare_method(name, task, judge, plan)
            except BadInput as error:
                why, outcome = error.message, None
            if outcome is None:
                report("reward", name, budget=nfe, left_out=why)
                continue
            entry = summary_of([outcome])[0]
            entry["mean"]["variety"] = float(np.mean(spread(outcome.first.x, asked)))
            found.setdefault(name, {})[nfe] = entry
            mean, error = entry["mean"], entry["standard_error"]
            report(
                "reward", name, budget=nfe, **entry["settings"], nfe=mean["nfe"], gradients=mean["model_vjp"],
                target=mean["mean_reward"], held_out=mean["held_out"], distance_ratio=mean["distance_ratio"],
                variety=mean["variety"],
                target_error=error["mean_reward"], held_out_error=error["held_out"], seconds=mean["seconds"],
                compile_seconds=entry["seconds_to_compile"],
            )  # fmt: skip
    return found


def table(found, budgets):
    """A Markdown table: target / held-out reward and the distance ratio at each budget."""
    lines = [
        "", "Target / held-out reward (distance ratio, * above 1.2) at each NFE:", "",
        "| method | " + " | ".join(map(str, budgets)) + " |", "|---" * (len(budgets) + 1) + "|",
    ]  # fmt: skip
    for name, row in found.items():
        lines.append(f"| {name} | " + " | ".join(_cell(row.get(nfe)) for nfe in budgets) + " |")
    return "\n".join(lines)


def _cell(entry):
    if entry is None:
        return ""
    mean = entry["mean"]
    far = "*" if mean["distance_ratio"] > RATIO else ""
    return f"{mean['mean_reward']:.1f} / {mean['held_out']:.1f} ({mean['distance_ratio']:.2f}{far})"


def verdict(found):
    """NTRK at the smallest budget beside the best rivals at the largest and at the same, all near real digits."""
    budgets = sorted({nfe for row in found.values() for nfe in row})
    ours = [name for name in found if name.startswith("ntrk") and budgets[0] in found[name]]
    if not ours:
        return "no verdict: NTRK is missing"
    lines = [f"{name} at {budgets[0]} NFE: {_numbers(found[name][budgets[0]]['mean'])}." for name in ours]
    for nfe in dict.fromkeys((budgets[-1], budgets[0])):
        rivals = {n: row[nfe]["mean"] for n, row in found.items() if nfe in row and not n.startswith(_OURS)}
        rivals = {n: mean for n, mean in rivals.items() if mean["distance_ratio"] <= RATIO}
        for key, word in (("mean_reward", "target"), ("held_out", "held-out")):
            best = max(rivals, key=lambda n, r=rivals, k=key: r[n][k], default=None)
            if best is not None:
                lines.append(f"Best rival at {nfe} NFE in {word} reward, {best}: {_numbers(rivals[best])}.")
    return "\n".join(lines)


def _numbers(mean):
    return (
        f"target {mean['mean_reward']:.2f}, held-out {mean['held_out']:.2f}, distance {mean['distance_ratio']:.2f}, "
        f"spread {mean['spread']:.2f}"
    )


_OURS = ("ntrk", "calibrated")


def picture(path, found):
    """Curves of target and held-out reward over NFE."""
    from ntrk_jax.cli.figures import figure

    fig = figure(11.0, 5.0)
    panels = fig.subplots(1, 2, sharey=True)
    for axes, key, label in zip(panels, ("mean_reward", "held_out"), ("target reward", "held-out reward"), strict=True):
        for i, (name, row) in enumerate(found.items()):
            ours = name.startswith(_OURS)
            style = {
                "lw": 2.2 if ours else 1.0,
                "ls": "-" if ours else ("--", ":", "-.")[i % 3],
                "marker": ".",
                "ms": 4,
            }
            axes.plot(list(row), [entry["mean"][key] for entry in row.values()], label=name, **style)
        axes.set(xscale="log", xlabel="NFE of one sample", ylabel=label)
        ticks = sorted({nfe for row in found.values() for nfe in row})
        axes.set_xticks(ticks, map(str, ticks))
        axes.minorticks_off()
    fig.legend(*panels[0].get_legend_handles_labels(), loc="outside right", fontsize=7, frameon=False)
    fig.savefig(path, bbox_inches="tight")


def main():
    """Print JSON lines, the table and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="all")
    parser.add_argument("--nfe", default="25,50,100,250,500")
    parser.add_argument("--num", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first of the seeds")
    parser.add_argument("--halvings", type=int, default=1, help="of the step between strengths, around the best")
    parser.add_argument("--checkpoint", help="another digits model, made by `ntrk train digits`")
    parser.add_argument("--picture")
    options = parser.parse_args()
    names = nk.methods.names() if options.methods == "all" else options.methods.split(",")
    budgets = [int(nfe) for nfe in options.nfe.split(",")]
    machine()
    found = curve(names, budgets, options.num, options.seeds, options.first, options.halvings, options.checkpoint)
    print(table(found, budgets) + "\n\n" + verdict(found), flush=True)
    if options.picture:
        picture(options.picture, found)


if __name__ == "__main__":
    main()
